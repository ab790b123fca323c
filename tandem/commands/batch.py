"""A batch in memory: what its commands decide on the loaded states, one after the other. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.status_pb2 import Status

from tandem.commands.domain import Command, Domain
from tandem.commands.receipts import Receipt
from tandem.commands.rules import Id, timestamp
from tandem.commands.write_model import States
from tandem.runtime.errors import InvalidArgument, RefusedBefore, SomebodyElses, TandemError, Violation, to_status


@dataclass
class Decisions:
    """What a batch does: an outcome for each command in order, and what is to be written.

    states: after all events. outcomes: receipts, of this batch or of earlier ones, and refusals.
    events: (kind, message of the event contract). envelopes: of each event, serialised.
    receipts: of the commands that this batch stores or refuses; a refusal of a command whose caller cannot repeat it
    needs none. stepped: of commands that were begun by an earlier batch, and have done a step more in this one.
    begun: the commands among both that have steps left, with their requests.
    """

    states: States
    outcomes: list[Receipt | TandemError] = field(default_factory=list)
    events: list[tuple[str, Any]] = field(default_factory=list)
    envelopes: list[bytes] = field(default_factory=list)
    receipts: list[Receipt] = field(default_factory=list)
    stepped: list[Receipt] = field(default_factory=list)
    begun: list[tuple[Receipt, Message]] = field(default_factory=list)


def decide_batch(domain: Domain, batch: Sequence[Command], loaded: States, found: Mapping[Id, Receipt]) -> Decisions:
    """Decides the commands in order of arrival: each sees the events of those before, a refused one leaves no trace.

    found: the receipts that are stored already, by request id.
    """
    decisions = Decisions(loaded.copy())
    stored: dict[Id, Receipt] = {}
    requests: dict[Id, Message] = {}
    now: datetime | None = None
    for command in batch:
        if command.now is not now:
            # Once for a batch, whose commands were taken at one moment.
            now = command.now
            recorded_at = timestamp(now)
        earlier = stored.get(command.request_id) or found.get(command.request_id)
        outcome: Receipt | TandemError
        try:
            if command.owner is not None:
                _must_be_own(domain, command, decisions.states)
            if earlier is not None:
                outcome = _replayed(command, earlier)
                # One step in a batch: the states hold what one step needs, and would say that nothing is left.
                if outcome.unfinished is not None and command.request_id not in stored:
                    stored[command.request_id] = outcome = _go_on(domain, command, outcome, decisions, recorded_at)
            elif command.refused is not None:
                raise command.refused
            else:
                stored[command.request_id] = outcome = _decide(domain, command, decisions, recorded_at)
            if outcome.unfinished is not None:
                requests[command.request_id] = command.request
        except TandemError as refusal:
            outcome = refusal
            if earlier is None and command.repeatable:
                stored[command.request_id] = _refused(command, refusal)
        decisions.outcomes.append(outcome)
    for it in stored.values():
        (decisions.stepped if it.request_id in found else decisions.receipts).append(it)
    decisions.begun = [(stored[it], request) for it, request in requests.items() if stored[it].unfinished is not None]
    return decisions


def _must_be_own(domain: Domain, command: Command, states: States) -> None:
    """Raises SomebodyElses. What is not there the rule refuses, in the same words."""
    aggregate = command.kind.aggregate
    state = states[aggregate].get(command.subject_id)
    if state is None or command.kind.creates or domain.owner_field not in aggregate.table.columns:
        # Whose it is stands in the request, and was looked at there.
        return
    if getattr(state, domain.owner_field) != command.owner:
        raise SomebodyElses(aggregate.name, f"{aggregate.name}s/{command.subject_id}")


def _replayed(command: Command, earlier: Receipt) -> Receipt:
    if earlier.fingerprint != command.fingerprint:
        raise InvalidArgument(
            [Violation("request_id", "was used for another command; take a new one", "REUSED")],
            reason="REQUEST_ID_REUSED",
        )
    if earlier.refusal is not None:
        raise RefusedBefore(Status.FromString(earlier.refusal))
    return earlier._replace(replayed=True)


def _refused(command: Command, refusal: TandemError) -> Receipt:
    """What keeps the refusal true: a call of the same command that comes late to another server is refused, too."""
    return Receipt(
        request_id=command.request_id,
        fingerprint=command.fingerprint,
        subject_id=command.subject_id,
        position=0,
        version=0,
        refusal=to_status(refusal).SerializeToString(),
    )


def _decide(domain: Domain, command: Command, decisions: Decisions, recorded_at: Timestamp) -> Receipt:
    kind = command.kind
    _apply(domain, kind.decide(command.request, command, decisions.states), command.envelope, decisions, recorded_at)
    return Receipt(
        request_id=command.request_id,
        fingerprint=command.fingerprint,
        subject_id=command.subject_id,
        position=len(decisions.events),
        version=decisions.states[kind.aggregate][command.subject_id].version,
        unfinished=command.envelope if _is_left(command, decisions.states) else None,
    )


def _go_on(domain: Domain, command: Command, earlier: Receipt, decisions: Decisions, recorded_at: Timestamp) -> Receipt:
    """The next step of a command that is done in steps. Its events say who caused the first."""
    rest, envelope = command.kind.rest, earlier.unfinished
    assert rest is not None, "its kind is done in steps"
    assert envelope is not None, "it is unfinished"
    changes = rest(command.request, command, decisions.states)
    assert changes, "what is unfinished has a step left"
    _apply(domain, changes, envelope, decisions, recorded_at)
    return earlier._replace(
        position=len(decisions.events),
        epoch=None,
        unfinished=envelope if _is_left(command, decisions.states) else None,
    )


def _is_left(command: Command, states: States) -> bool:
    rest = command.kind.rest
    return rest is not None and bool(rest(command.request, command, states))


def _apply(
    domain: Domain, changes: Iterable[Message], envelope: bytes, decisions: Decisions, recorded_at: Timestamp
) -> None:
    events = domain.events
    for change in changes:
        domain.changes[type(change)](decisions.states, change)
        decisions.events.append((events.kind_of(type(change)), events.wrap(change, recorded_at)))
        decisions.envelopes.append(envelope)
