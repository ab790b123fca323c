"""The events in the feed: what an event is called, and the event with its position."""

from dataclasses import dataclass

from commerce.event.v1.event_pb2 import Event

# The names of the events, from the contract: the fields of the oneof.
EVENT_KINDS: tuple[str, ...] = tuple(field.name for field in Event.DESCRIPTOR.oneofs_by_name["kind"].fields)


@dataclass(frozen=True)
class FeedEvent:
    """An event and its place in the feed. `kind` is one of EVENT_KINDS, or a newer program's that this one ignores."""

    position: int
    kind: str
    event: Event
