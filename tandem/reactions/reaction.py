"""What a domain says of a reaction: a pure function for each event that it takes, and what they return. No store here.

def order_placed(event: OrderPlaced, at: datetime) -> Effects:
    return [At(at, CancelUnpaidOrderRequest(order_id=event.order_id))]

Reaction("unpaid_orders", EVENTS, on=[order_placed], unless=[OrderPaid, OrderCancelled], delay=timedelta(days=14))
"""

import json
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from google.protobuf.message import Message
from sqlalchemy import Connection

from tandem.feed.events import EventContract, FeedEvent
from tandem.reactions.tasks import MAX_PAYLOAD_BYTES, Kind, Task
from tandem.runtime.checker import is_uuid
from tandem.runtime.signatures import message_typed


class Do(NamedTuple):
    """A command, at once."""

    command: Message


class At(NamedTuple):
    """A command, when the reaction's delay has passed since a moment, unless another of its events comes before that.

    It takes the place of the one that waits for the same aggregate.
    """

    moment: datetime
    command: Message


class Post(NamedTuple):
    """A webhook, at once.

    type: of the message, such as `product.stock_low`. about: the id of the aggregate that it tells of. data: of JSON.
    Neither it nor a command may hold personal data: what is to be done is neither sealed nor erased.
    """

    type: str
    about: str
    data: Mapping[str, Any]


Effects = Sequence[Do | At | Post]

React = Callable[[Any, datetime], Effects]
"""(event, when it was stored, by the database's clock, UTC) -> what is to be done. Personal data in the event is
sealed.

Pure: no SQL, no clock, no randomness.
"""


class Reaction:
    """What is done because of some kinds of events.

    name: in the store, in request ids and for operators; another name is another reaction. version: one more whenever
    it takes other kinds of events: a program of a lower version lets it be. delay: of what is `At`, the same for what
    waits already. is_on: whether this program follows it and does it; one that is off can still be listed, replayed and
    dropped.
    """

    def __init__(
        self,
        name: str,
        contract: EventContract[Any],
        *,
        on: Iterable[React],
        unless: Iterable[type[Message]] = (),
        version: int = 1,
        delay: timedelta = timedelta(0),
        begins_with: Callable[[Connection], Iterator[tuple[str, At]]] | None = None,
        is_on: bool = True,
    ) -> None:
        """on: functions; the event that each takes is what its first parameter is typed as. unless: events of which
        nothing follows, but that what waits for their aggregate is not done.

        begins_with: (aggregate's id, what is to be done) of what was there already when the reaction is begun, as the
        write tables say it; it begins with the feed's head.

        Raises ValueError where an event is there twice, or has no field `…_id`, which says what it is about.
        """
        self.name = name
        self.contract = contract
        self.version = version
        self.delay = delay
        self.begins_with = begins_with
        self.is_on = is_on
        functions = [(message_typed(it, 0), it) for it in on] + [(it, _nothing) for it in unless]
        self._functions = {contract.kind_of(event): function for event, function in functions}
        if len(self._functions) < len(functions):
            raise ValueError(f"{name} takes an event twice")
        self._keys = {kind: _key_field(contract, kind) for kind in self._functions}

    @property
    def kinds(self) -> Collection[str]:
        """Of the events that it takes."""
        return self._functions.keys()

    def react(self, event: Message, at: datetime) -> Effects:
        """What follows from an event of one of the kinds: the kind's own message."""
        return self._functions[self.contract.kind_of(type(event))](event, at)

    def key_of(self, kind: str, event: Any) -> str:
        """The id of the aggregate that an event is about: its first field `…_id`. event: the contract's message.

        Raises ValueError where that is no UUID.
        """
        key: str = getattr(getattr(event, kind), self._keys[kind])
        if not is_uuid(key):
            raise ValueError(f"{self._keys[kind]} is {key[:100]!r}, which is no UUID")
        return key.lower()

    def tasks(self, stored: FeedEvent, event: Any, secret: uuid.UUID) -> list[Task]:
        """What is to be done because of a stored event, as it is written down.

        event: what is stored, sealed. secret: of this reaction in this store. Raises whatever the function does, and
        ValueError for what cannot be written down.
        """
        kind = stored.kind
        at = stored.stored_at
        assert at is not None  # as scan_events has it
        effects = self._functions[kind](getattr(event, kind), at)
        if not effects:
            return []
        causes = Causes(stored.position, stored.mark, stored.correlation_id or "")
        key = self.key_of(kind, event)
        return [self.task_of(it, key, at, causes, number, secret) for number, it in enumerate(effects)]

    def task_of(  # noqa: PLR0917 - what a task is made of
        self, effect: Do | At | Post, key: str, at: datetime, causes: "Causes", number: int, secret: uuid.UUID
    ) -> Task:
        """Its request id is of name and position, under a secret: no caller can use it first."""
        name = f"{self.name}/{causes.position}/{causes.mark}/{number}"
        if isinstance(effect, Post):
            key, kind, type_, due = effect.about, Kind.POST, effect.type, at
            body = {"type": type_, "timestamp": at.isoformat().replace("+00:00", "Z"), "data": effect.data}
            payload = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        else:
            timed = isinstance(effect, At)
            kind, due = (Kind.TIMER, effect.moment) if isinstance(effect, At) else (Kind.DO, at)
            if timed and due.tzinfo is None:
                raise ValueError("the moment of a timer has no zone")
            type_, payload = effect.command.DESCRIPTOR.full_name, effect.command.SerializeToString(deterministic=True)
        if not is_uuid(key):
            raise ValueError(f"what {self.name} is to do is about {key[:100]!r}, which is no UUID")
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise ValueError(f"{type_} of {len(payload)} bytes is too large; at most {MAX_PAYLOAD_BYTES} are taken")
        return Task(
            self.name, causes.position, number, key.lower(), kind, type_, payload, uuid.uuid5(secret, name),
            f"{causes.position}-{causes.mark:x}", causes.correlation_id, due,
        )  # fmt: skip


class Causes(NamedTuple):
    """The event because of which something is done: its place, its mark, and what it is a part of."""

    position: int
    mark: int
    correlation_id: str


def _nothing(_event: Any, _at: datetime) -> Effects:
    return ()


def _key_field(contract: EventContract[Any], kind: str) -> str:
    message = contract.messages[kind]
    found = next((it.name for it in message.fields if it.name.endswith("_id")), None)
    if found is None:
        raise ValueError(f"{message.full_name} has no field …_id, which says what the event is about")
    return found
