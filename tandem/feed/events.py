"""The events in the feed: what an event is called, and the event with its position."""

from typing import Any

from commerce.event.v1.event_pb2 import Event
from tandem.feed.personal import open_sealed

# The names of the events, from the contract: the fields of the oneof.
EVENT_KINDS: tuple[str, ...] = tuple(it.name for it in Event.DESCRIPTOR.oneofs_by_name["kind"].fields)


class FeedEvent:
    """An event and its place in the feed. Not to be changed.

    kind: one of EVENT_KINDS, or a newer program's that this one does not know. payload: the event as it is stored.
    key: what its personal data is sealed with; None where there is none, and when the customer was erased.
    """

    __slots__ = ("_event", "_key", "kind", "payload", "position")

    def __init__(self, position: int, kind: str, payload: bytes, key: bytes | None = None) -> None:
        self.position = position
        self.kind = kind
        self.payload = payload
        self._key = key
        self._event: Event | None = None

    @property
    def event(self) -> Event:
        """The event, parsed and opened once and only where it is wanted; without personal data once that is erased.

        Raises google.protobuf.message.DecodeError and tandem.feed.personal.WrongKey, a ValueError.
        """
        if self._event is None:
            event = Event.FromString(self.payload)
            open_sealed(event, self._key)
            self._event = event
        return self._event

    @property
    def message(self) -> Any:
        """The event of its kind. For one of EVENT_KINDS; raises as `event` does."""
        return getattr(self.event, self.kind)
