"""The description of a domain that a command server hands the engine, and what the engine makes of a request by it."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple, TypeVar

from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from uuid_utils.compat import uuid7

from tandem.commands.receipts import Receipt
from tandem.commands.rules import Id, id_of
from tandem.commands.write_model import Aggregate, Keys, Loaded, States, WriteModel
from tandem.feed.envelope import envelope_of
from tandem.feed.events import EventContract
from tandem.feed.token import encode_token
from tandem.runtime.call import Metadata
from tandem.runtime.checker import Checker
from tandem.runtime.errors import InvalidArgument
from tandem.runtime.field_checks import FieldChecks
from tandem.runtime.signatures import message_typed


class CommandKind:
    """One kind of command.

    creates: whether it creates its subject, whose id the caller may leave to the server then.
    response: what answers it: a message with the subject's id and a `receipt`.
    """

    def __init__(
        self,
        aggregate: Aggregate[Any],
        request: type[Message],
        decide: "Decide",
        *,
        check: Callable[[Any, Checker], None] | None = None,
        keys: Callable[[Any, Id, Keys], None] | None = None,
        rest: "Decide | None" = None,
        response: type[Message] | None = None,
    ) -> None:
        """aggregate: what the command creates or changes. decide: the rule.

        check: names what is wrong in several fields together, or what the contract cannot say of one; None for most.
        keys: adds what the rule may read or change beside the subject itself.
        rest: for a command that is done in steps, each a transaction of its own: the events of the next step, or none
        when it is done. `decide` is the first step. The request is kept until then, so it holds no personal data.
        response: for a command that the server gives itself; that of an RPC is in the contract.
        """
        self.aggregate = aggregate
        self.request = request
        self.decide = decide
        self.check = check
        self.keys = keys
        self.rest = rest
        self.creates = request.DESCRIPTOR.fields_by_name[aggregate.id_field].has_presence
        descriptor: Any = request.DESCRIPTOR
        self.fields = FieldChecks(descriptor, but=("request_id", aggregate.id_field))
        self.response = response or _response_of(request)


class Command(NamedTuple):
    """A checked request with all that its rule needs besides the aggregates.

    request: the Protobuf request; it is the command, there is no twin of it.
    request_id: the caller's, or the server's own: an unknown COMMIT is looked up by it either way.
    refused: why the request is wrong at this moment, though another server or a later moment may find it right.
    subject_id: what the command creates or changes.
    now: the server's clock when the command is decided, UTC.
    owner: whose things alone it may change; None for anybody's.
    envelope: who caused it and why, a serialised tandem.internal.v1.Envelope: that of all its events.
    """

    kind: CommandKind
    request: Message
    request_id: Id
    subject_id: Id
    now: datetime
    envelope: bytes
    owner: Id | None = None
    refused: InvalidArgument | None = None

    @property
    def repeatable(self) -> bool:
        """Whether the caller knows the request_id, and may send the command again with it."""
        request: Any = self.request
        return bool(request.request_id)

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the command as the caller sent it, without its request_id: equal for a repeated command."""
        request: Any = self.request
        request_id = request.request_id
        # Taken out for a moment: a copy takes as long as all the rest.
        request.ClearField("request_id")
        body = request.SerializeToString(deterministic=True)
        if request_id:
            request.request_id = request_id
        return hashlib.sha256(request.DESCRIPTOR.full_name.encode() + b"\0" + body).digest()


Decide = Callable[[Any, Command, States], list[Message]]
"""A rule: (request, command, states) -> what happened, as messages of the event contract; or it raises a refusal.

Pure: no SQL, no gRPC, no clock and no randomness. What a rule needs of them is in the command.
"""

Change = Callable[[States, Any], None]
"""(states, event): replaces the states that the event changes. Raises KeyError for one that is not loaded."""

D = TypeVar("D", bound=Decide)
C = TypeVar("C", bound=Change)


def rule(
    aggregate: Aggregate[Any],
    *,
    check: Callable[[Any, Checker], None] | None = None,
    keys: Callable[[Any, Id, Keys], None] | None = None,
    rest: Decide | None = None,
    response: type[Message] | None = None,
) -> Callable[[D], D]:
    """Above a rule: the command that it decides is what its first parameter is typed as. For the rest see CommandKind.

    Raises TypeError for a rule whose first parameter is not typed as a message.
    """

    def add(decide: D) -> D:
        request = message_typed(decide, 0)
        kind = CommandKind(aggregate, request, decide, check=check, keys=keys, rest=rest, response=response)
        aggregate.kinds.append(kind)
        return decide

    return add


def change(aggregate: Aggregate[Any]) -> Callable[[C], C]:
    """Above a function that changes an aggregate, and maybe others: the event is what its second parameter is typed as.

    Raises TypeError for a function whose second parameter is not typed as a message.
    """

    def add(function: C) -> C:
        aggregate.changes.append((message_typed(function, 1), function))
        return function

    return add


def change_fields(aggregate: Aggregate[Any], event: type[Message], **fields: Any) -> None:
    """An event that gives what it is about these values, the same each time, and the event's version."""
    aggregate.changes.append((event, partial(aggregate.change, **fields)))


class Domain:
    """Commands, events and aggregates, as one description."""

    def __init__(
        self,
        *,
        service: ServiceDescriptor,
        events: EventContract[Any],
        loads: Sequence[Loaded[Any]],
        owner_field: str = "",
    ) -> None:
        """loads: aggregates and their parts, in the order in which they are locked. The rules of these aggregates are
        the domain's, and what events change in them.

        owner_field: names whose a thing is, in requests and in the states of aggregates that have an owner.

        Raises ValueError where something is missing or said twice: an RPC without a rule, an event without a change.
        """
        self.service = service
        self.events = events
        self.model = WriteModel(loads)
        kinds: list[CommandKind] = [kind for it in self.model.aggregates for kind in it.kinds]
        changes = [change for it in self.model.aggregates for change in it.changes]
        self.kinds = {it.request: it for it in kinds}
        self.changes = dict(changes)
        self.owner_field = owner_field
        _must_match(
            f"RPCs of {service.full_name}",
            [method.input_type.name for method in service.methods],
            f"rules in {_modules(it.decide for it in kinds)}",
            [it.request.DESCRIPTOR.name for it in kinds if it.request.DESCRIPTOR.file is service.file],
        )
        _must_match(
            f"events of {events.message.DESCRIPTOR.full_name}",
            events.kinds,
            f"changes in {_modules(change for _, change in changes)}",
            [events.kind_of(event) for event, _ in changes],
        )

    @property
    def owner_fields(self) -> dict[str, str]:
        """As tandem.runtime.server.Service has it."""
        return {
            method.name: self.owner_field if self.owner_field in method.input_type.fields_by_name else ""
            for method, kind in ((it, self._kind_of(it)) for it in self.service.methods)
            if self.owner_field in method.input_type.fields_by_name or self.owner_field in kind.aggregate.table.columns
        }

    def _kind_of(self, method: MethodDescriptor) -> CommandKind:
        return next(it for request, it in self.kinds.items() if request.DESCRIPTOR is method.input_type)

    def command_of(
        self, request: Any, now: datetime, metadata: Metadata = (), actor: str = "", owner: Id | None = None
    ) -> Command:
        """The command that a request is, with the ids that the caller left to the server. Raises InvalidArgument.

        metadata, actor, owner: of the call. A request that is wrong at this moment alone, and has a
        request_id, is a command that is refused: the refusal is to be stored as any other.
        """
        kind = self.kinds[type(request)]
        check = Checker()
        if request.request_id:
            check.uuid("request_id", request.request_id)
        id_field = kind.aggregate.id_field
        subject = getattr(request, id_field)
        named = not kind.creates or request.HasField(id_field)
        if named:
            check.uuid(id_field, subject)
        kind.fields.check(request, check, now=now)
        if kind.check is not None:
            kind.check(request, check)
        refused = None
        try:
            check.finish()
        except InvalidArgument as error:
            if not (check.only_now and request.request_id):
                raise
            refused = error
        request_id = id_of(request.request_id or str(uuid7()))
        return Command(
            kind,
            request,
            request_id,
            id_of(subject if named else str(uuid7())),
            now,
            envelope_of(metadata, request_id, actor).SerializeToString(),
            owner,
            refused,
        )

    def keys_of(self, batch: Iterable[Command]) -> Keys:
        """All that the batch's commands may read or change."""
        keys = Keys()
        for it in batch:
            kind = it.kind
            keys[kind.aggregate].add(it.subject_id)
            if kind.keys is not None:
                kind.keys(it.request, it.subject_id, keys)
        return keys

    def response_to(self, command: Command, receipt: Receipt) -> Message:
        """What the caller gets for a command that is stored."""
        assert receipt.epoch is not None, "appended"
        kind = command.kind
        response = kind.response()
        setattr(response, kind.aggregate.id_field, receipt.subject_id)
        proof: Any = response.receipt  # type: ignore[attr-defined]
        proof.consistency_token = encode_token(receipt.epoch, receipt.position, receipt.mark)
        proof.position = receipt.position
        proof.version = receipt.version
        proof.replayed = receipt.replayed
        return response


def _response_of(request: type[Message]) -> type[Message]:
    """The response of the RPC that takes the request, which stands in the same file of the contract."""
    name = request.DESCRIPTOR.full_name
    file: Any = request.DESCRIPTOR.file
    for service in file.services_by_name.values():
        for method in service.methods:
            if method.input_type.full_name == name:
                return message_factory.GetMessageClass(method.output_type)
    raise ValueError(f"no RPC takes {name}, and no response is given for it")


def _modules(functions: Iterable[Callable[..., Any]]) -> str:
    """Where they are written, for whoever must add one. A method or a partial is of another module than its table."""
    return ", ".join(sorted({repr(it.__module__) for it in functions if isinstance(it, FunctionType)}))


def _must_match(names: str, expected: Collection[str], others: str, found: Sequence[str]) -> None:
    """Each of those in the one list is in the other, once."""
    problems = [
        *(f"{it} is among the {names} and not among the {others}" for it in sorted(set(expected) - set(found))),
        *(f"{it} is among the {others} and not among the {names}" for it in sorted(set(found) - set(expected))),
        *(f"{it} is twice among the {others}" for it in sorted({it for it in found if found.count(it) > 1})),
    ]
    if problems:
        raise ValueError("; ".join(problems))
