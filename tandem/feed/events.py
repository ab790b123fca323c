"""The events in the feed: what an event is called, and the event with its position."""

from dataclasses import dataclass
from functools import cached_property

from commerce.event.v1.event_pb2 import Event

# The names of the events, from the contract: the fields of the oneof.
EVENT_KINDS: tuple[str, ...] = tuple(field.name for field in Event.DESCRIPTOR.oneofs_by_name["kind"].fields)


@dataclass(frozen=True)
class FeedEvent:
    """An event and its place in the feed.

    kind: one of EVENT_KINDS, or a newer program's that this one does not know. payload: the event as it is stored.
    """

    position: int
    kind: str
    payload: bytes

    @cached_property
    def event(self) -> Event:
        """The event, parsed once and only where it is wanted. Raises google.protobuf.message.DecodeError."""
        return Event.FromString(self.payload)
