"""Cells by customer, simulated: 1, 10 and 100 of them, over what one cell took when `cell` measured it (costs.json).

A cell is a write database, its command servers, projectors, read database, cache and query servers. A customer's cell
follows from his id, and customers differ: the n-th buys an n-th as often as the first, to the power of `SKEW`. Orders
come at random times, at `LOAD` of what all cells could take together; a cell stores what waits in one transaction,
whose time grows with the orders in it, as two measurements of the cell say. A question about all customers, a list or a
sum, is put to all cells and is as late as the last of their answers; each takes as long as a search, the dearest query,
with the measured median and 99th percentile. A cell whose leader dies does not answer for `AWAY_SECONDS`, once in
`AWAY_EVERY_DAYS`.
"""

import hashlib
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.scale import cell
from benchmarks.scale.cell import CALLERS, Costs, Load
from benchmarks.scale.tables import Table
from tandem.commands.settings import ExecutorSettings

CELLS = (1, 10, 100)
CUSTOMERS = 200_000
SKEW = 0.7
LOAD = 0.7
SECONDS = 20.0
"""That orders are simulated for; the first quarter does not count."""
QUESTIONS = 20_000
AWAY_SECONDS = 30.0
AWAY_EVERY_DAYS = 90.0
_DAY = 86_400.0


def missing() -> str | None:
    return None if cell.COSTS.exists() else "no cell was measured: python -m benchmarks.scale --only cell"


def run(_folder: Path, _say: Callable[[str], None]) -> Iterator[Table]:
    yield table(cell.recorded())


@dataclass(frozen=True)
class Batches:
    """A transaction of n orders takes fixed + n * each seconds, and takes at most `most`."""

    fixed: float
    each: float
    most: int

    @classmethod
    def of(cls, costs: Costs, most: int = ExecutorSettings().max_batch) -> "Batches":
        """Through two measurements; a fixed part that came out below zero is none.

        Raises ValueError where they do not say what a larger batch takes.
        """
        (few, many), (size, larger) = (
            [costs.orders[it] for it in CALLERS],
            [costs.batches[it] for it in CALLERS],
        )
        more, longer = larger - size, larger / many.rate - size / few.rate
        if more < size / 2 or longer <= 0:
            raise ValueError(
                f"batches of {size:.1f} and {larger:.1f} orders are too much alike to tell what one more takes"
            )
        each = longer / more
        return cls(max(0.0, size / few.rate - size * each), each, most)

    def seconds(self, orders: int) -> float:
        return self.fixed + orders * self.each

    @property
    def limit(self) -> float:
        """Orders a second of one cell, in full batches."""
        return self.most / self.seconds(self.most)


def weights(customers: int, skew: float) -> list[float]:
    """How often each of them buys, of all orders."""
    shares = [number**-skew for number in range(1, customers + 1)]
    total = sum(shares)
    return [it / total for it in shares]


def cell_of(customer: int, cells: int) -> int:
    """By a hash of the id, so that nobody keeps a list."""
    return int.from_bytes(hashlib.blake2b(customer.to_bytes(8), digest_size=8).digest()) % cells


def shares(cells: int, of_customers: Sequence[float]) -> list[float]:
    """Each cell's part of all orders."""
    found = [0.0] * cells
    for customer, weight in enumerate(of_customers):
        found[cell_of(customer, cells)] += weight
    return found


def waits(batches: Batches, rate: float, dice: random.Random, seconds: float = SECONDS) -> list[float]:
    """How long each order took in a cell to which `rate` come a second, from its coming to its answer."""
    coming = itertools.accumulate(dice.expovariate(rate) for _ in itertools.count())
    found: list[float] = []
    waiting: list[float] = []
    now, following = 0.0, next(coming)
    while now < seconds:
        while following <= now:
            waiting.append(following)
            following = next(coming)
        if not waiting:
            now = following
            continue
        batch, waiting = waiting[: batches.most], waiting[batches.most :]
        now += batches.seconds(len(batch))
        found += [now - came for came in batch if came > seconds / 4]
    return found


def answers(load: Load, cells: int, dice: random.Random, count: int = QUESTIONS) -> list[float]:
    """How late the last of so many cells is, for each of `count` questions, in order."""
    middle, spread = math.log(load.p50), math.log(load.p99 / load.p50) / 2.326
    return sorted(max(dice.lognormvariate(middle, spread) for _ in range(cells)) for _ in range(count))


def away(cells: int) -> float:
    """How often at least one cell does not answer."""
    return 1 - (1 - AWAY_SECONDS / (AWAY_EVERY_DAYS * _DAY)) ** cells


def percentile(values: Sequence[float], hundredth: int) -> float:
    return sorted(values)[len(values) * hundredth // 100]


def row(costs: Costs, cells: int) -> tuple[str, ...]:
    dice = random.Random(f"{cells} cells")
    batches = Batches.of(costs)
    each = shares(cells, weights(CUSTOMERS, SKEW))
    hottest = max(each) * cells
    orders = LOAD * batches.limit * cells
    # What the hottest cell can take is what all of them can: its customers are nobody else's.
    sustained = batches.limit / max(each)
    hot = waits(batches, min(orders * max(each), 0.98 * batches.limit), dice)
    late = answers(costs.search, cells, dice, QUESTIONS // max(1, cells // 10))
    return (
        str(cells),
        f"{sustained:,.0f}",
        f"{hottest:.2f}",
        f"{1e3 * percentile(hot, 50):.1f}, {1e3 * percentile(hot, 99):.1f}",
        f"{1e3 * percentile(late, 50):.0f}, {1e3 * percentile(late, 99):.0f}",
        f"{1e6 * cells * (costs.search.server + costs.search.stores):,.0f}",
        f"{1e6 * away(cells):,.1f}",
    )


def table(costs: Costs) -> Table:
    return Table(
        f"Cells by customer, simulated over the costs of {costs.machine}",
        (
            "cells",
            "orders/s that all take",
            "orders of the fullest cell, times the mean",
            f"an order there at {LOAD:.0%} load: p50, p99 in ms",
            "a question to all cells: p50, p99 in ms",
            "its processor time, µs",
            "of a million such questions, without some cell",
        ),
        [row(costs, cells) for cells in CELLS],
    )
