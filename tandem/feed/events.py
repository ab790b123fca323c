"""The events in the feed: what the domain's events are, and an event with its position."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from tandem.feed import sealing
from tandem.internal.v1.stored_pb2 import Envelope

E = TypeVar("E", bound=Message)

Upcaster = Callable[[Any, bytes | None], None]
"""(event, its supplement or None) -> nothing: makes the event, the domain's message, what the next version says.

A pure function. It must pass over an event that says all of it already: which version an event has, servers of before
there were versions did not say. What an event cannot know by itself is in its supplement, see tandem.feed.table.
"""


class NewerVersion(ValueError):
    """The event has a version that this program does not know."""


class EventContract(Generic[E]):
    """A domain's events: one Protobuf message, with a oneof that has a field for each kind of event.

    The message has a field `recorded_at` of google.protobuf.Timestamp. Each kind has a message of its own. One that
    tells of a person, the data subject, does so in its field `personal` alone, and names the subject beside it, in the
    field `subject_field`: a UUID as text. In the store `personal` holds nothing but `sealed`, a field of bytes.

    Stored events are never changed. Where a kind has come to say more, its version is one more than it was, and an
    upcaster makes the one version the next when an event is read: rules and followers meet the newest version alone.

    kinds: the names of the oneof's fields. messages: the descriptors of their messages, by kind.
    kind_of: the kind of a message's class; raises KeyError where there is none. versions: the newest, by kind.
    """

    def __init__(
        self,
        message: type[E],
        *,
        oneof: str = "kind",
        personal: str = "personal",
        subject_field: str,
        upcasters: Mapping[str, Sequence[Upcaster]] | None = None,
    ) -> None:
        """upcasters: by kind, from version 1 on, for the kinds that have more than one version.

        Raises ValueError for a message that is not as described, and for upcasters of a kind that is not there.
        """
        self.message = message
        self._oneof = oneof
        self._personal = personal
        self._subject_field = subject_field
        descriptor = message.DESCRIPTOR
        if oneof not in descriptor.oneofs_by_name or "recorded_at" not in descriptor.fields_by_name:
            raise ValueError(f"{descriptor.full_name} has no oneof {oneof}, or no field recorded_at")
        fields = descriptor.oneofs_by_name[oneof].fields
        self.kinds: tuple[str, ...] = tuple(it.name for it in fields)
        empty = message()
        kind_by_class: dict[type[Message], str] = {type(getattr(empty, kind)): kind for kind in self.kinds}
        self.kind_of = kind_by_class.__getitem__
        messages = self.messages = {it.name: it.message_type for it in fields if it.message_type is not None}
        if len(messages) < len(fields) or len(kind_by_class) < len(fields):
            raise ValueError(f"each field of {descriptor.full_name}.{oneof} must have a message of its own")
        self._upcasters = {kind: tuple(several) for kind, several in (upcasters or {}).items()}
        if unknown := self._upcasters.keys() - messages.keys():
            raise ValueError(f"{descriptor.full_name}.{oneof} has no {', '.join(sorted(unknown))} to upcast")
        self.versions = {kind: 1 + len(self._upcasters.get(kind, ())) for kind in self.kinds}
        self._personal_kinds = frozenset(kind for kind, it in messages.items() if personal in it.fields_by_name)
        for kind in self._personal_kinds:
            it = messages[kind]
            if subject_field not in it.fields_by_name:
                raise ValueError(f"{it.full_name} has {personal} and no {subject_field}")
            data = it.fields_by_name[personal].message_type
            if data is None or "sealed" not in data.fields_by_name:
                raise ValueError(f"{it.full_name}.{personal} has no field sealed")

    def wrap(self, change: Message, recorded_at: Timestamp) -> E:
        """The event of a change, a message of one of the kinds. Raises KeyError for any other message."""
        event = self.message(recorded_at=recorded_at)
        getattr(event, self.kind_of(type(change))).CopyFrom(change)
        return event

    def parse(self, payload: bytes, key: bytes | None) -> E:
        """The stored event, with its personal data opened by its subject's key, or without it where the key is None.

        Raises google.protobuf.message.DecodeError and tandem.feed.sealing.WrongKey, a ValueError.
        """
        event = self.message.FromString(payload)
        it = self._with_personal(event)
        if it is not None and (sealed := getattr(it, self._personal).sealed):
            if key is None:
                it.ClearField(self._personal)
            else:
                plain = sealing.open_sealed(sealed, getattr(it, self._subject_field), key)
                personal = getattr(it, self._personal)
                personal.Clear()
                personal.MergeFromString(plain)
        return event

    def has_sealed(self, payload: bytes, kind: str) -> bool:
        """Whether a stored event of the kind has personal data. Raises google.protobuf.message.DecodeError."""
        if kind not in self._personal_kinds:
            return False
        it = self._with_personal(self.message.FromString(payload))
        return it is not None and bool(getattr(it, self._personal).sealed)

    def upcast(self, event: E, kind: str, version: int, supplement: bytes | None) -> None:
        """Makes an event of `version`, of one of our kinds, say what the newest does. Raises NewerVersion.

        An event that is of another kind than it is stored as stays as it is: who reads it finds that out.
        """
        newest = self.versions[kind]
        if version > newest:
            raise NewerVersion(f"{kind} of version {version} is not known to this program, which knows {newest}")
        if self.kind_in(event) == kind:
            for upcaster in self._upcasters.get(kind, ())[version - 1 :]:
                upcaster(event, supplement)

    def kind_in(self, event: E) -> str | None:
        """The kind of an event; None for one of a newer program that has a kind which this one does not know."""
        kind: str | None = event.WhichOneof(self._oneof)
        return kind

    def subject_of(self, event: E) -> str | None:
        """The id of the data subject whose personal data the event holds; None for an event without any."""
        it = self._with_personal(event)
        if it is None or not it.HasField(self._personal):
            return None
        subject_id: str = getattr(it, self._subject_field)
        return subject_id

    def names_subject(self, kind: str) -> bool:
        """Whether events of a kind have the field that names a data subject."""
        return kind in self.messages and self._subject_field in self.messages[kind].fields_by_name

    def subject_named_by(self, event: E) -> str:
        """The id of the data subject that the event names, whether it holds personal data or not."""
        subject_id: str = getattr(getattr(event, self.kind_in(event) or ""), self._subject_field)
        return subject_id

    def clear_personal(self, event: E) -> None:
        """Takes the personal data out of an event that has a field for it."""
        self._with_personal(event).ClearField(self._personal)

    def seal(self, event: E, key: bytes) -> E:
        """The event as it is to be stored. It must be one that has personal data."""
        sealed = self.message()
        sealed.CopyFrom(event)
        it = self._with_personal(sealed)
        personal = getattr(it, self._personal)
        plain = personal.SerializeToString(deterministic=True)
        personal.Clear()
        personal.sealed = sealing.seal(plain, getattr(it, self._subject_field), key)
        return sealed

    def _with_personal(self, event: E) -> Any:
        """The message of the event's kind, where that has a field for personal data; else None."""
        kind = event.WhichOneof(self._oneof)
        return getattr(event, kind) if kind in self._personal_kinds else None


class FeedEvent:
    """An event and its place in the feed. Not to be changed.

    kind: one of the contract's, or a newer program's that this one does not know. payload: the event as it is stored,
    in its `version`. supplement: what that version does not say, where it is known.
    key: what its personal data is sealed with; None where there is none, and when the data subject was erased.
    envelope_payload: the envelope as it is stored; None for an event from before there were envelopes. mark: its
    commit's, which no other history has at this position; 0 for an event from before there were marks. stored_at: by
    the database's clock, UTC, where whoever stored it goes by his own; None where it was not asked for.
    """

    __slots__ = (
        "_contract",
        "_envelope",
        "_event",
        "_key",
        "envelope_payload",
        "kind",
        "mark",
        "payload",
        "position",
        "stored_at",
        "supplement",
        "version",
    )

    def __init__(  # noqa: PLR0917 - the columns of a row, in their order
        self,
        contract: EventContract[Any],
        position: int,
        kind: str,
        payload: bytes,
        key: bytes | None = None,
        envelope_payload: bytes | None = None,
        version: int = 1,
        supplement: bytes | None = None,
        mark: int | None = None,
        stored_at: datetime | None = None,
    ) -> None:
        self._contract = contract
        self.position = position
        self.mark = mark or 0
        self.stored_at = stored_at and stored_at.astimezone(UTC)
        self.kind = kind
        self.payload = payload
        self.envelope_payload = envelope_payload
        self.version = version
        self.supplement = supplement
        self._key = key
        self._event: Any = None
        self._envelope: Envelope | None = None

    @property
    def event(self) -> Any:
        """The contract's message in its newest version, parsed once and only where it is wanted.

        Raises as `EventContract.parse` and `upcast` do.
        """
        if self._event is None:
            event = self._contract.parse(self.payload, self._key)
            if self.version != self._contract.versions.get(self.kind, self.version):
                self._contract.upcast(event, self.kind, self.version, self.supplement)
            self._event = event
        return self._event

    def sealed(self) -> Any:
        """As `event`, with the personal data in it still sealed: for whoever passes it on. Raises DecodeError and
        NewerVersion.
        """
        event = self._contract.message.FromString(self.payload)
        if self.version != self._contract.versions.get(self.kind, self.version):
            self._contract.upcast(event, self.kind, self.version, self.supplement)
        return event

    @property
    def message(self) -> Any:
        """The event of its kind. For one of the contract's kinds; raises as `event` does."""
        return getattr(self.event, self.kind)

    @property
    def is_unopened(self) -> bool:
        """Whether it has personal data that cannot be opened any more, since its subject was erased."""
        return self._key is None and self._contract.has_sealed(self.payload, self.kind)

    @property
    def envelope(self) -> Envelope | None:
        """Who caused it, parsed once and only where it is wanted. Raises google.protobuf.message.DecodeError."""
        if self._envelope is None and self.envelope_payload is not None:
            self._envelope = Envelope.FromString(self.envelope_payload)
        return self._envelope

    @property
    def correlation_id(self) -> str | None:
        """Of its envelope, empty without one; None when the envelope cannot be read."""
        try:
            return self.envelope.correlation_id if self.envelope is not None else ""
        except DecodeError:
            return None
