"""An event as brokers carry it: a CloudEvent 1.0 in binary mode, so its attributes are headers and its data the bytes.

id               the position and its mark: the same for one event whatever the feed's epoch, another one for another
                 event at the same position in a history that was lost. Who dedupes by it sees each event once
source           of all events of this feed, as the settings say
type             the full name of the event's message, such as acme.v1.OrderPlaced
subject          the id of the aggregate that it is about; partitionkey is the same
time             when it was stored
datacontenttype  application/protobuf
dataschema       urn:protobuf:, and the name of the message that the data is: the domain's event, with its oneof
sequence         the position, with leading zeros to 20 digits: texts that are in the order of the feed
tandemversion    of the kind, as the relay knew it: events are published in their newest version
tandemmark       the mark, see tandem.feed.events
tandemactor, tandemrequest, tandemcausation, tandemcorrelation, traceparent
                 the envelope; left out where it is empty
"""

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from google.protobuf.message import DecodeError

from tandem.feed.events import EventContract, FeedEvent
from tandem.internal.v1.stored_pb2 import Envelope

CONTENT_TYPE = "application/protobuf"
_ENVELOPE = {
    "tandemactor": "actor",
    "tandemrequest": "request_id",
    "tandemcausation": "causation_id",
    "tandemcorrelation": "correlation_id",
    "traceparent": "traceparent",
}
# As the bindings to protocols with headers want it: what is no visible ASCII, `"` and `%` are escaped.
_UNESCAPED = "".join(chr(it) for it in range(0x21, 0x7F) if chr(it) not in '"%')


class NotPublishable(Exception):
    """The event cannot be published by this program; the message says why."""


@dataclass(frozen=True, slots=True)
class CloudEvent:
    """attributes: by name, as text. recorded_at: in seconds since the Unix epoch. kind, key, position, mark: of the
    event, as the attributes say them too.
    """

    position: int
    mark: int
    kind: str
    key: str
    recorded_at: float
    attributes: dict[str, str]
    data: bytes

    def headers(self, prefix: str) -> dict[str, str]:
        """prefix: that the protocol has before each name, such as `ce-`."""
        return {prefix + name: quote(value, safe=_UNESCAPED) for name, value in self.attributes.items()}


class CloudEvents:
    """Makes CloudEvents of a feed's events, and a feed's events of CloudEvents."""

    def __init__(self, contract: EventContract[Any], source: str, *, opened: bool) -> None:
        """opened: whether the personal data in them is.

        Raises ValueError for a contract with a kind that has no field `…_id`.
        """
        self._contract = contract
        self._source = source
        self._opened = opened
        self._schema = f"urn:protobuf:{contract.message.DESCRIPTOR.full_name}"
        self._types = {kind: it.full_name for kind, it in contract.messages.items()}
        self._kinds = {name: kind for kind, name in self._types.items()}
        self._keys: dict[str, str] = {}
        for kind, message in contract.messages.items():
            key = next((it.name for it in message.fields if it.name.endswith("_id")), None)
            if key is None:
                raise ValueError(f"{message.full_name} has no field …_id, which says what the event is about")
            self._keys[kind] = key

    def of(self, stored: FeedEvent) -> CloudEvent:
        """Raises NotPublishable for an event of a newer program, and for one that cannot be read."""
        kind = stored.kind
        try:
            event = stored.event if self._opened else stored.sealed()
            envelope = stored.envelope
        except (DecodeError, ValueError) as error:
            raise NotPublishable(f"event {stored.position} cannot be read: {error}") from error
        if self._contract.kind_in(event) != kind:
            raise NotPublishable(f"event {stored.position} is of a kind that this program does not know: {kind}")
        message = getattr(event, kind)
        key: str = getattr(message, self._keys[kind])
        version = self._contract.versions[kind]
        as_it_is = stored.version == version and not (self._opened and self._contract.has_sealed(stored.payload, kind))
        attributes = {
            "specversion": "1.0",
            "id": f"{stored.position}-{stored.mark:x}",
            "source": self._source,
            "type": self._types[kind],
            "subject": key,
            "partitionkey": key,
            "time": event.recorded_at.ToJsonString(),
            "datacontenttype": CONTENT_TYPE,
            "dataschema": self._schema,
            "sequence": f"{stored.position:020}",
            "tandemversion": str(version),
            "tandemmark": str(stored.mark),
        }
        if envelope is not None:
            for name, field in _ENVELOPE.items():
                if value := getattr(envelope, field):
                    attributes[name] = value
        return CloudEvent(
            stored.position,
            stored.mark,
            kind,
            key,
            event.recorded_at.seconds + event.recorded_at.nanos / 1e9,
            attributes,
            stored.payload if as_it_is else event.SerializeToString(deterministic=True),
        )

    def feed_event(self, headers: dict[str, str], prefix: str, data: bytes) -> FeedEvent:
        """The inverse of `of` and `CloudEvent.headers`. Raises ValueError for what is none.

        An event of a type that this program does not know has that as its kind.
        """
        attributes = {
            name.lower().removeprefix(prefix): unquote(value)
            for name, value in headers.items()
            if name.lower().startswith(prefix)
        }
        try:
            kind = self._kinds.get(attributes["type"], attributes["type"])
            position, mark = int(attributes["sequence"]), int(attributes["tandemmark"])
            version = int(attributes["tandemversion"])
        except KeyError as error:
            raise ValueError(f"no event of a feed: it has no {error}") from None
        said = {field: attributes[name] for name, field in _ENVELOPE.items() if name in attributes}
        envelope = Envelope(**said).SerializeToString() if said else None
        return FeedEvent(self._contract, position, kind, data, None, envelope, version, None, mark)
