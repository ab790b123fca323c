"""The events in the feed: what an event is called, and the event with its position."""

from dataclasses import dataclass, field
from functools import cached_property

from commerce.event.v1.event_pb2 import Event
from tandem.feed.personal import open_sealed

# The names of the events, from the contract: the fields of the oneof.
EVENT_KINDS: tuple[str, ...] = tuple(it.name for it in Event.DESCRIPTOR.oneofs_by_name["kind"].fields)


@dataclass(frozen=True)
class FeedEvent:
    """An event and its place in the feed.

    kind: one of EVENT_KINDS, or a newer program's that this one does not know. payload: the event as it is stored.
    key: what its personal data is sealed with; None where there is none, and when the customer was erased.
    """

    position: int
    kind: str
    payload: bytes
    key: bytes | None = field(default=None, repr=False)

    @cached_property
    def event(self) -> Event:
        """The event, parsed and opened once and only where it is wanted; without personal data once that is erased.

        Raises google.protobuf.message.DecodeError and tandem.feed.personal.WrongKey, a ValueError.
        """
        event = Event.FromString(self.payload)
        open_sealed(event, self.key)
        return event
