"""How often answers of PostgreSQL are waited for: what a batch takes on its way, by the pool of its connection.

A connection counts for itself, which takes 0.1 µs. Nobody adds up before somebody asks.
"""

import threading
from collections import Counter
from collections.abc import Iterable
from typing import Any
from weakref import ReferenceType, ref

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector


class Waits:
    """Of one connection, for whoever uses it. number: how often an answer was waited for."""

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = 0


class RoundTrips(Collector):
    """For any thread."""

    labels = ("pool",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended: Counter[str] = Counter()
        self._open: list[tuple[ReferenceType[Any], Waits, str]] = []
        REGISTRY.register(self)

    def watch(self, connection: Any, waits: Waits, pool: str) -> None:
        """Until nobody else has the connection any more; what it has counted stays."""
        with self._lock:
            before, self._open = self._open, [(ref(connection), waits, pool)]
            for it in before:
                # Asked once: it may go at any moment.
                if it[0]() is None:
                    self._ended[it[2]] += it[1].number
                else:
                    self._open.append(it)

    def numbers(self) -> Counter[str]:
        """By pool."""
        with self._lock:
            numbers = self._ended.copy()
            for _, waits, pool in self._open:
                numbers[pool] += waits.number
        return numbers

    def describe(self) -> Iterable[CounterMetricFamily]:
        return [
            CounterMetricFamily(
                "tandem_database_round_trips",
                "Times that an answer of a database was waited for, by the connections' application_name",
                labels=self.labels,
            )
        ]

    def collect(self) -> Iterable[CounterMetricFamily]:
        [family] = self.describe()
        for pool, number in self.numbers().items():
            family.add_metric([pool], number)
        return [family]


ROUND_TRIPS = RoundTrips()
