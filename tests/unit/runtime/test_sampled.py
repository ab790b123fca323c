"""A sampled gauge says what is now, of those that are there, and keeps none of them."""

import gc
from collections.abc import Iterator

import pytest
from prometheus_client import REGISTRY

from tandem.runtime.sampled import SampledGauge
from tests.support.metrics import sample


class Queue:
    def __init__(self, length: int) -> None:
        self.length = length


@pytest.fixture
def gauge() -> Iterator[SampledGauge[Queue]]:
    it: SampledGauge[Queue] = SampledGauge("queue_length", "Calls", ["queue"], lambda queue, _: queue.length)
    yield it
    REGISTRY.unregister(it)


def value(name: str) -> float | None:
    return sample("queue_length", queue=name)


def test_it_is_read_when_it_is_asked_for(gauge: SampledGauge[Queue]) -> None:
    queue = Queue(1)
    gauge.watch(queue, "orders")
    assert value("orders") == 1
    queue.length = 3
    assert value("orders") == 3


def test_things_with_the_same_labels_are_one_sample(gauge: SampledGauge[Queue]) -> None:
    queues = [Queue(1), Queue(2), Queue(7)]
    for queue, name in zip(queues, ("orders", "orders", "lists"), strict=True):
        gauge.watch(queue, name)
    assert (value("orders"), value("lists")) == (3, 7)


def test_what_has_gone_is_said_no_more(gauge: SampledGauge[Queue]) -> None:
    queue = Queue(1)
    gauge.watch(queue, "orders")
    del queue
    gc.collect()
    assert value("orders") is None
