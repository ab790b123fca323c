"""The shop's events, as the engine's feed needs to know them.

An upcaster has the name of what version 2 says more. tests/golden has the events of every version, as they were stored.
"""

from commerce.event.v1.event_pb2 import Event
from tandem.feed.events import EventContract


def registered_at(event: Event, _supplement: bytes | None) -> None:
    """A customer was registered when it was recorded."""
    registered = event.customer_registered
    if not registered.HasField("registered_at"):
        registered.registered_at.CopyFrom(event.recorded_at)


def placed_at_and_amounts(event: Event, supplement: bytes | None) -> None:
    """When an order that was cancelled had been placed, and what it took off: an OrderCancelled in the supplement."""
    if supplement is not None and not event.order_cancelled.HasField("placed_at"):
        event.order_cancelled.ParseFromString(supplement)


def period_that_is_paid_for(event: Event, _supplement: bytes | None) -> None:
    """A subscription began with its first period: there was no other way to bring one in."""
    started = event.subscription_started
    if not started.HasField("period_start"):
        started.period_start.CopyFrom(started.started_at)
        started.period_count = 1


EVENTS = EventContract(
    Event,
    subject_field="customer_id",
    upcasters={
        "customer_registered": [registered_at],
        "order_cancelled": [placed_at_and_amounts],
        "subscription_started": [period_that_is_paid_for],
    },
)
"""A customer is the data subject of the personal data in an event."""
