"""SalesSummary: an order counts on its own day, once, and a cancelled one as cancelled on that same day."""

import random
from collections import Counter, defaultdict
from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commerce.event.v1.event_pb2 import Event, OrderLine, OrderPlaced
from commerce.internal.v1.stored_pb2 import SalesSummaryRow, SalesSums
from projector.sales_summary import PROJECTION, key_of
from tandem.projection.changes import ViewChanges
from tests.support import events
from tests.support.builders import identity
from tests.support.events import Shop, feed_events, timestamp
from tests.support.projecting import fold

ONE, TWO = identity("product", 1), identity("product", 2)


def changed(*history: Event) -> ViewChanges:
    return fold(PROJECTION, feed_events(history), {})


def rows(*history: Event) -> dict[str, SalesSummaryRow]:
    """The rows after the events by name: "2026-01-31/USD/" for all products of a day."""
    changes = changed(*history)
    assert changes.stopped_by is None
    found = [SalesSummaryRow.FromString(row.value) for row in changes.rows.values() if row]
    by_name = {f"{it.day}/{it.currency_code}/{it.product_id}": it for it in found}
    assert {key_of(name) for name in by_name} == set(changes.rows), "a row is what its key says"
    return by_name


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def an_order(order: int = 1, moment: str = "2026-01-31T12:00", lines: tuple[tuple[int, int], ...] = ((1, 1),)) -> Event:
    return events.order_placed(order, lines=lines, placed_at=timestamp(at(moment)))


def sums(orders: int, units: int, revenue: int, fees: int) -> SalesSums:
    return SalesSums(order_count=orders, unit_count=units, revenue=revenue, shipping_fees=fees)


def test_an_order_counts_for_its_day_and_for_each_product_on_its_day() -> None:
    found = rows(an_order(lines=((1, 2), (2, 3))))
    assert {name: row.sold for name, row in found.items()} == {
        "2026-01-31/USD/": sums(1, 5, 4500, 495),
        f"2026-01-31/USD/{ONE}": sums(1, 2, 1800, 0),
        f"2026-01-31/USD/{TWO}": sums(1, 3, 2700, 0),
    }
    assert all(row.cancelled == SalesSums() for row in found.values())


def test_a_product_on_two_lines_of_an_order_is_one_order_of_it() -> None:
    found = rows(an_order(lines=((1, 2), (2, 50), (1, 3))))
    assert found[f"2026-01-31/USD/{ONE}"].sold == sums(1, 5, 4500, 0)


def test_a_day_begins_and_ends_at_midnight_utc() -> None:
    found = rows(an_order(1, "2025-12-31T23:59:59.999999"), an_order(2, "2026-01-01T00:00"))
    assert {name for name in found if name.endswith("/")} == {"2025-12-31/USD/", "2026-01-01/USD/"}


def test_an_order_from_before_1970_has_its_day_and_its_products_names() -> None:
    found = rows(an_order(moment="0999-03-01T06:00"))
    assert found["0999-03-01/USD/"].sold.order_count == 1
    assert found[f"0999-03-01/USD/{ONE}"].product_name == "Product 1"


def test_currencies_have_rows_of_their_own() -> None:
    moment = timestamp(at("2026-01-31T12:00"))
    found = rows(
        events.order_placed(1, placed_at=moment), events.order_placed(2, placed_at=moment, currency="JPY"),
    )  # fmt: skip
    assert found["2026-01-31/USD/"].sold == found["2026-01-31/JPY/"].sold == sums(1, 1, 900, 495)


def test_a_cancelled_order_moves_from_sold_to_cancelled_on_the_day_on_which_it_was_placed() -> None:
    first, second = an_order(1, lines=((1, 2), (2, 3))), an_order(2)
    found = rows(first, second, events.order_cancelled(placed=first))
    assert found["2026-01-31/USD/"].sold == sums(1, 1, 900, 495)
    assert found["2026-01-31/USD/"].cancelled == sums(1, 5, 4500, 495)
    assert found[f"2026-01-31/USD/{TWO}"].sold == SalesSums()
    assert found[f"2026-01-31/USD/{TWO}"].cancelled == sums(1, 3, 2700, 0)


def test_a_name_is_the_one_of_the_latest_order_and_not_of_the_last_that_came_in() -> None:
    renamed, imported = an_order(1, "2026-01-31T12:00"), an_order(2, "2026-01-31T11:59:59")
    renamed.order_placed.lines[0].product_name = "Its name at noon"
    for history in ([renamed, imported], [imported, renamed]):
        found = rows(*history)
        assert found[f"2026-01-31/USD/{ONE}"].product_name == "Its name at noon"
        assert found["2026-01-31/USD/"].product_name == "", "all products have no name"


def test_of_two_orders_of_one_moment_the_last_that_came_in_tells_the_name() -> None:
    first, second = an_order(1), an_order(2)
    second.order_placed.lines[0].product_name = "Its name then"
    assert rows(first, second)[f"2026-01-31/USD/{ONE}"].product_name == "Its name then"


def test_columns_say_what_the_row_says() -> None:
    order = an_order(lines=((1, 2),))
    by_key = changed(order, events.order_cancelled(placed=order), an_order(2)).rows
    total, product = by_key[key_of("2026-01-31/USD/")], by_key[key_of(f"2026-01-31/USD/{ONE}")]
    assert total
    assert total.columns == (date(2026, 1, 31), "USD", None, 1, 1, 900, 495, 1, 2, 1800, 495)
    assert product
    assert product.columns == (date(2026, 1, 31), "USD", ONE, 1, 1, 900, 0, 1, 2, 1800, 0)


@pytest.mark.parametrize("known", [[], [an_order(2, "2026-01-30T12:00")]])
def test_a_cancellation_of_an_order_that_is_not_in_the_view_is_parked(known: list[Event]) -> None:
    changes = changed(*known, events.order_cancelled(placed=an_order()))
    assert {it.key for it in changes.parked} == {key_of("2026-01-31/USD/"), key_of(f"2026-01-31/USD/{ONE}")}
    assert {it.scope for it in changes.parked} == {"2026-01-31"}, "the day whose sums lack something"


def test_a_cancellation_that_does_not_tell_the_day_is_refused_with_the_reason() -> None:
    order = an_order()
    cancelled = events.order_cancelled(placed=order)
    cancelled.order_cancelled.ClearField("placed_at")
    changes = changed(order, cancelled)
    assert "does not say when the order was placed" in str(changes.stopped_by)


@given(rng=st.randoms(use_true_random=False), count=st.integers(1, 80))
def test_every_row_is_the_plain_sum_of_its_orders(rng: random.Random, count: int) -> None:
    history = list(Shop(rng).events(count))
    gone = {it.order_cancelled.order_id for it in history if it.HasField("order_cancelled")}
    sold: defaultdict[str, Counter[str]] = defaultdict(Counter)
    cancelled: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for order in (it.order_placed for it in history if it.HasField("order_placed")):
        for name, share in plain_shares(order).items():
            (cancelled if order.order_id in gone else sold)[name] += Counter(share)
    found = rows(*history)
    assert found.keys() == sold.keys() | cancelled.keys()
    for name, row in found.items():
        assert numbers(row.sold) == sold[name]
        assert numbers(row.cancelled) == cancelled[name]


def plain_shares(order: OrderPlaced) -> dict[str, dict[str, int]]:
    """What an order adds to each row, by the row's name."""
    day, currency = order.placed_at.ToDatetime().strftime("%Y-%m-%d"), order.total.currency_code
    shares = {f"{day}/{currency}/": plain_sums(list(order.lines)) | {"shipping_fees": order.shipping_fee.minor_units}}
    for product in {line.product_id for line in order.lines}:
        own = [line for line in order.lines if line.product_id == product]
        shares[f"{day}/{currency}/{product}"] = plain_sums(own)
    return shares


def plain_sums(lines: list[OrderLine]) -> dict[str, int]:
    units, revenue = sum(it.quantity for it in lines), sum(it.line_total.minor_units for it in lines)
    return {"order_count": 1, "unit_count": units, "revenue": revenue}


def numbers(it: SalesSums) -> Counter[str]:
    return +Counter({field.name: getattr(it, field.name) for field in SalesSums.DESCRIPTOR.fields})
