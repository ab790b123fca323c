"""An event as followers get it: opened, serialised, and with what it is about."""

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError

from commerce.event.v1.event_pb2 import Event
from commerce.feed.v1.feed_service_pb2 import FeedItem, SubscribeResponse
from shop.events import EVENTS
from tandem.feed.events import FeedEvent

_IDS = ("customer_id", "order_id", "product_id", "subscription_id")
_LISTS_OF_IDS = ("order_ids",)


@dataclass(frozen=True, slots=True)
class Entry:
    """ids: what the event is about. item: the field `events` of a SubscribeResponse with this event, serialised.

    personal_of: whose personal data is in it; empty for none. unreadable: why it cannot be sent; empty when it can.
    """

    position: int
    kind: str
    ids: frozenset[str] = frozenset()
    item: bytes = b""
    personal_of: str = ""
    unreadable: str = ""


def entry_of(stored: FeedEvent) -> Entry:
    """Never raises: an event that cannot be read concerns those alone who ask for it."""
    try:
        event = stored.event
    except (DecodeError, ValueError) as error:
        return Entry(stored.position, stored.kind, unreadable=str(error) or type(error).__name__)
    if event.WhichOneof("kind") != stored.kind:
        # A newer command server's. Where its personal data would be, if it has any, is not known here.
        return Entry(stored.position, stored.kind, unreadable=f"{stored.kind} is not known to this projector")
    return Entry(
        stored.position,
        stored.kind,
        ids_of(event),
        _item(stored.position, stored.kind, event),
        EVENTS.subject_of(event) or "",
    )


def without_personal_data(entry: Entry) -> Entry:
    [item] = SubscribeResponse.FromString(entry.item).events
    payload: Any = getattr(item.event, entry.kind)
    payload.ClearField("personal")
    return replace(entry, item=_item(entry.position, entry.kind, item.event), personal_of="")


def ids_of(event: Event) -> frozenset[str]:
    """The ids of all customers, orders, products and subscriptions that the event names."""
    kind = event.WhichOneof("kind")
    if kind is None:
        return frozenset()
    payload = getattr(event, kind)
    return frozenset(found for read in _READERS[kind] for found in read(payload))


def _item(position: int, kind: str, event: Event) -> bytes:
    return SubscribeResponse(events=[FeedItem(position=position, type=kind, event=event)]).SerializeToString()


_Reader = Callable[[Any], Iterable[str]]


def _readers(payload: Descriptor) -> list[_Reader]:
    """What reads the ids out of an event's payload: its own, its lists of ids, and those of its lines."""
    found: list[_Reader] = []
    for field in payload.fields:
        if field.name in _IDS:
            found.append(_own(field.name))
        elif field.name in _LISTS_OF_IDS:
            found.append(operator.attrgetter(field.name))
        elif field.message_type is not None and field.is_repeated:
            found += [_of_lines(field.name, inner.name) for inner in field.message_type.fields if inner.name in _IDS]
    return found


def _own(name: str) -> _Reader:
    get = operator.attrgetter(name)
    return lambda payload: (get(payload),)


def _of_lines(lines: str, name: str) -> _Reader:
    get_lines, get = operator.attrgetter(lines), operator.attrgetter(name)
    return lambda payload: map(get, get_lines(payload))


_READERS = {
    it.name: _readers(it.message_type) for it in Event.DESCRIPTOR.oneofs_by_name["kind"].fields if it.message_type
}
