"""Events of every version are read for ever: tests/golden/events has their bytes, by the newest migration of then.

Before 0003 personal data was stored in the clear. The file of a version is never written again.
"""

from collections.abc import Mapping
from typing import Any

import pytest

from commerce.event.v1.event_pb2 import Event, OrderCancelled, OrderPaid, ReleasedStock
from commerce.type.v1.money_pb2 import Money
from shop.events import EVENTS
from tandem.feed.events import FeedEvent, NewerVersion
from tests.support.events import at
from tests.support.golden import FOLDER, Golden, as_dict, read

GOLDEN = {path.stem: list(read(path)) for path in sorted(FOLDER.glob("*.jsonl"))}


@pytest.mark.parametrize(
    "golden",
    [pytest.param(it, id=f"{release}-{it.kind}") for release, events in GOLDEN.items() for it in events],
)
def test_an_event_says_what_it_said_when_it_was_stored(golden: Golden) -> None:
    said = as_dict(golden.event().event)
    # An upcaster of a later version may add to it.
    assert merged(said, golden.says) == said


def merged(said: Any, then: Any) -> Any:
    if isinstance(said, Mapping) and isinstance(then, Mapping):
        return {**said, **{name: merged(said.get(name), value) for name, value in then.items()}}
    if isinstance(said, list) and isinstance(then, list) and len(said) == len(then):
        return [merged(*pair) for pair in zip(said, then, strict=True)]
    return then


def test_every_version_of_every_kind_is_kept() -> None:
    kept = {(it.kind, it.version) for events in GOLDEN.values() for it in events}
    needed = {(kind, version) for kind, newest in EVENTS.versions.items() for version in range(1, newest + 1)}
    missing = sorted(needed - kept)
    assert missing == [], "run python -m tests.support.golden > tests/golden/events/NAME.jsonl"


def test_no_file_is_the_same_as_another() -> None:
    assert len({tuple(it.payload for it in events) for events in GOLDEN.values()}) == len(GOLDEN)


def read_back(event: Event, version: int = 1, supplement: bytes | None = None) -> Event:
    kind = str(event.WhichOneof("kind"))
    found: Event = FeedEvent(EVENTS, 1, kind, event.SerializeToString(), None, None, version, supplement).event
    return found


def test_a_customer_of_before_was_registered_when_it_was_recorded() -> None:
    event = Event(recorded_at=at(5))
    event.customer_registered.version = 1
    assert read_back(event).customer_registered.registered_at == at(5)
    event.customer_registered.registered_at.CopyFrom(at(4))
    assert read_back(event) == event, "one that says it keeps it"


def test_a_subscription_of_before_began_with_its_first_period() -> None:
    event = Event()
    event.subscription_started.started_at.CopyFrom(at(1))
    found = read_back(event).subscription_started
    assert (found.period_start, found.period_count) == (at(1), 1)
    event.subscription_started.period_start.CopyFrom(at(9))
    event.subscription_started.period_count = 7
    assert read_back(event) == event


def test_a_cancellation_of_before_says_what_stands_beside_it() -> None:
    stored = Event(order_cancelled=OrderCancelled(order_id="1", released=[ReleasedStock(product_id="2", quantity=3)]))
    whole = Event()
    whole.CopyFrom(stored)
    whole.order_cancelled.placed_at.CopyFrom(at(1))
    whole.order_cancelled.released[0].line_total.CopyFrom(Money(minor_units=5, currency_code="EUR"))
    beside = whole.order_cancelled.SerializeToString()
    assert read_back(stored, supplement=beside) == whole
    assert read_back(stored) == stored, "where nothing stands beside it"
    assert read_back(whole, supplement=b"\xff") == whole, "it says it already"


def test_an_event_of_a_version_that_is_not_known_is_not_read() -> None:
    with pytest.raises(NewerVersion, match="order_paid of version 2 is not known to this program, which knows 1"):
        read_back(Event(order_paid=OrderPaid(order_id="1")), version=2)
