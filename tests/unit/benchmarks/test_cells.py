"""Cells by customer are simulated over what one cell took."""

import random
from dataclasses import replace

import pytest

from benchmarks.scale.cell import Costs, Load
from benchmarks.scale.cells import Batches, answers, away, cell_of, percentile, shares, table, waits, weights

FEW, MANY = (Load(rate=rate, p50=0.02, p99=0.05, server=2e-4, stores=1e-4) for rate in (2_000, 4_000))
SEARCH = Load(rate=1_000, p50=0.010, p99=0.030, server=3e-4, stores=2e-4)
COSTS = Costs(
    machine="a machine",
    orders={64: FEW, 256: MANY},
    batches={64: 20.0, 256: 100.0},
    read=FEW,
    search=SEARCH,
    events=6_000,
    event_cpu=1e-4,
    write_bytes=1e3,
    read_bytes=1e3,
    follower_bytes=1e4,
    follower_cpu=1e-5,
    watcher_bytes=1e4,
    watcher_cpu=1e-5,
)


def test_a_batch_takes_the_time_that_was_measured_at_both_sizes() -> None:
    batches = Batches.of(COSTS)
    assert batches.seconds(20) == pytest.approx(20 / 2_000)
    assert batches.seconds(100) == pytest.approx(100 / 4_000)
    assert batches.limit > 4_000, "full batches take more orders a second than smaller ones"


def test_two_measurements_of_the_same_size_say_nothing() -> None:
    with pytest.raises(ValueError, match="too much alike"):
        Batches.of(replace(COSTS, batches={64: 27.7, 256: 26.7}))


def test_each_customer_has_one_cell_and_all_cells_together_have_all_orders() -> None:
    each = shares(10, weights(5_000, 0.7))
    assert sum(each) == pytest.approx(1)
    assert all(each), "no cell is without customers"
    assert [cell_of(number, 10) for number in range(50)] == [cell_of(number, 10) for number in range(50)]
    assert shares(1, weights(5_000, 0.7)) == [pytest.approx(1)]


def test_orders_wait_longer_the_nearer_a_cell_is_to_its_limit_and_none_waits_less_than_a_batch() -> None:
    batches = Batches.of(COSTS)
    some, many = (waits(batches, share * batches.limit, random.Random("orders"), seconds=5.0) for share in (0.3, 0.95))
    assert min(some) >= batches.seconds(1)
    assert percentile(some, 50) < percentile(many, 50)
    # All that came and could be stored was stored.
    assert len(some) == pytest.approx(0.3 * batches.limit * 5.0 * 0.75, rel=0.1)


def test_a_search_of_more_cells_is_later_and_lacks_a_cell_more_often() -> None:
    one, hundred = (answers(SEARCH, cells, random.Random("searches"), count=2_000) for cells in (1, 100))
    assert percentile(one, 50) == pytest.approx(SEARCH.p50, rel=0.1)
    assert percentile(hundred, 50) > percentile(one, 99) * 0.8
    assert away(1) < away(100) < 100 * away(1)


def test_the_table_has_a_row_for_each_number_of_cells_and_more_cells_take_more_orders() -> None:
    found = table(COSTS)
    assert [row[0] for row in found.rows] == ["1", "10", "100"]
    sustained = [float(row[1].replace(",", "")) for row in found.rows]
    assert sustained == sorted(sustained)
    assert "| 100 |" in found.markdown()
