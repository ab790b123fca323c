"""What a projector says of its views in metrics."""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import NamedTuple

from prometheus_client import Counter, Gauge, Histogram

HEAD = Gauge("tandem_feed_head", "The last position of the feed that this projector has seen")
SILENT = Gauge("tandem_feed_silent_seconds", "How long this projector has not been able to read the feed")
POSITION = Gauge("tandem_projection_position", "The last position that a view has taken in", ["view"])
PARKED_KEYS = Gauge("tandem_projection_parked_keys", "Rows of a view that take in no more events", ["view"])
FAILED = Gauge("tandem_projection_failed", "1 while a view cannot go on in this projector", ["view"])
PROJECTED = Counter("tandem_projected_events_total", "Events of the feed that a view has passed", ["view"])
HELD_UP = Counter(
    "tandem_projection_batches_held_up_total",
    "Batches of a view that a lock or a time-out kept from being stored",
    ["view"],
)
BATCH_SECONDS = Histogram(
    "tandem_projection_batch_seconds",
    "Time from reading a batch to announcing it",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5),
)
GENERATION_STATE = Gauge("tandem_generation_state", "1 for the state of a view's other generation", ["view", "state"])
GENERATION_PROGRESS = Gauge(
    "tandem_generation_progress_ratio",
    "How far a view's other generation is in the feed, of where the served one is",
    ["view"],
)
GENERATION_DIFFERENCES = Gauge(
    "tandem_generation_differences",
    "Rows in which the generations of a view differed when they were compared: changed, missing or added",
    ["view", "kind"],
)
# Looked up once: `labels` takes 0.6 µs, and every batch sets both for each view.
position_of = cache(POSITION.labels)
projected_of = cache(PROJECTED.labels)
failed_of = cache(FAILED.labels)
parked_keys_of = cache(PARKED_KEYS.labels)


def show(view: str, *, problem: str, parked: int) -> None:
    failed_of(view).set(bool(problem))
    parked_keys_of(view).set(parked)


class ShownGeneration(NamedTuple):
    """Of a view of this projector's. differences: by kind; none before it was compared."""

    view: str
    state: str
    progress: float
    differences: Mapping[str, int]


def show_generations(found: Iterable[ShownGeneration]) -> None:
    """In place of all that were shown before."""
    for metric in (GENERATION_STATE, GENERATION_PROGRESS, GENERATION_DIFFERENCES):
        metric.clear()
    for it in found:
        GENERATION_STATE.labels(it.view, it.state).set(1)
        GENERATION_PROGRESS.labels(it.view).set(it.progress)
        for kind, number in it.differences.items():
            GENERATION_DIFFERENCES.labels(it.view, kind).set(number)


def forget(view: str) -> None:
    """Of another generation that is not here any more."""
    for metric in (POSITION, PARKED_KEYS, FAILED, PROJECTED, HELD_UP):
        metric.remove(view)
    for looked_up in (position_of, projected_of, failed_of, parked_keys_of):
        looked_up.cache_clear()
