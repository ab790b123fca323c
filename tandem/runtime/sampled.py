"""Gauges that are read when somebody asks for them: what they say costs nothing while nobody does."""

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar
from weakref import ReferenceType, ref

from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

T = TypeVar("T", bound=object)


class SampledGauge(Collector, Generic[T]):
    """A gauge of things that come and go. Those that have the same labels are one sample. For any thread."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str],
        read: Callable[..., float],
        together: Callable[[Iterable[float]], float] = sum,
    ) -> None:
        """read: gets a thing and its labels; any thread calls it. together: makes one value of several."""
        self.name, self.documentation, self.labels = name, documentation, tuple(labels)
        self._read = read
        self._together = together
        self._lock = threading.Lock()
        self._watched: list[tuple[ReferenceType[T], tuple[str, ...]]] = []
        REGISTRY.register(self)

    def watch(self, what: T, *labels: str) -> None:
        """Until nobody else has it any more."""
        with self._lock:
            # Here and not when one goes: the garbage collector may run while this thread has the lock.
            self._watched = [it for it in self._watched if it[0]() is not None]
            self._watched.append((ref(what), labels))

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return [GaugeMetricFamily(self.name, self.documentation, labels=self.labels)]

    def values(self) -> dict[tuple[str, ...], float]:
        """By labels."""
        with self._lock:
            watched = [(it(), labels) for it, labels in self._watched]
        values: dict[tuple[str, ...], list[float]] = {}
        for what, labels in watched:
            if what is not None:
                values.setdefault(labels, []).append(self._read(what, *labels))
        return {labels: self._together(them) for labels, them in values.items()}

    def collect(self) -> Iterable[GaugeMetricFamily]:
        [family] = self.describe()
        for labels, value in self.values().items():
            family.add_metric(labels, value)
        return [family]
