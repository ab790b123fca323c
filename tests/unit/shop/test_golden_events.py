"""Events of every version are read for ever: tests/golden/events has their bytes, by the newest migration of then.

Before 0003 personal data was stored in the clear. The file of a version is never written again.
"""

from pathlib import Path

import pytest

from commerce.event.v1.event_pb2 import Event, OrderCancelled, OrderPaid, ReleasedStock
from commerce.type.v1.money_pb2 import Money
from shop.events import EVENTS
from tandem.feed.events import FeedEvent, NewerVersion
from tandem.testing.golden import Golden, must_be_kept, read
from tests.support.events import at

FOLDER = Path(__file__).parents[2] / "golden" / "events"
GOLDEN = {path.stem: list(read(path)) for path in sorted(FOLDER.glob("*.jsonl"))}


@pytest.mark.parametrize(
    "golden",
    [pytest.param(it, id=f"{release}-{it.kind}") for release, events in GOLDEN.items() for it in events],
)
def test_an_event_says_what_it_said_when_it_was_stored(golden: Golden) -> None:
    golden.must_say_the_same(EVENTS)


def test_every_version_of_every_kind_is_kept() -> None:
    must_be_kept(EVENTS, [it for events in GOLDEN.values() for it in events])


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
