"""A batch in memory: the rows it holds and what its commands decide on them, one after the other. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from command_server.aggregates import Aggregates, Id, Keys, version_of
from command_server.apply import apply
from command_server.catalogue import CATALOGUE
from command_server.command import Command, Receipt
from command_server.decide.rules import timestamp
from command_server.storage.feed import Appended, FoundReceipt, StoredReceipt
from commerce.event.v1.event_pb2 import Event
from shop.events import EVENTS
from tandem.runtime.errors import InvalidArgument, TandemError, Violation


def keys_of(batch: Iterable[Command]) -> Keys:
    """All aggregates that the batch's commands may read or change."""
    keys = Keys()
    for it in batch:
        CATALOGUE[type(it.request)].keys(it.request, it.subject_id, keys)
    return keys


class Accepted(NamedTuple):
    """A command that is stored: by an earlier transaction (FoundReceipt) or by the one under way (StoredReceipt)."""

    receipt: FoundReceipt | StoredReceipt
    replayed: bool

    def receipt_after(self, appended: Appended | None) -> Receipt:
        """The receipt that the caller gets, once the batch is appended."""
        it = self.receipt
        if isinstance(it, FoundReceipt):
            return Receipt(it.subject_id, it.position, it.version, it.epoch, self.replayed)
        assert appended is not None, "a command was decided and not appended"
        return Receipt(it.subject_id, appended.base + it.offset, it.version, appended.epoch, self.replayed)


Outcome = Accepted | TandemError
"""What became of a command: accepted, or refused."""


@dataclass
class Decisions:
    """What a batch does: an outcome for each command in order, and what is to be written."""

    aggregates: Aggregates
    outcomes: list[Outcome] = field(default_factory=list)
    events: list[tuple[str, Event]] = field(default_factory=list)
    receipts: list[StoredReceipt] = field(default_factory=list)


def decide_batch(batch: Sequence[Command], loaded: Aggregates, found: Mapping[Id, FoundReceipt]) -> Decisions:
    """Decides the commands in order of arrival: each sees the events of those before, a refused one leaves no trace."""
    decisions = Decisions(loaded.copy())
    stored: dict[Id, StoredReceipt] = {}
    for command in batch:
        earlier = found.get(command.request_id) or stored.get(command.request_id)
        try:
            if earlier is None:
                stored[command.request_id] = receipt = _decide(command, decisions)
                outcome = Accepted(receipt, replayed=False)
            else:
                _check_same(command, earlier)
                outcome = Accepted(earlier, replayed=True)
        except TandemError as refusal:
            decisions.outcomes.append(refusal)
        else:
            decisions.outcomes.append(outcome)
    decisions.receipts = list(stored.values())
    return decisions


def _check_same(command: Command, earlier: FoundReceipt | StoredReceipt) -> None:
    if earlier.fingerprint != command.fingerprint:
        raise InvalidArgument(
            [Violation("request_id", "was used for another command; take a new one", "REUSED")],
            reason="REQUEST_ID_REUSED",
        )


def _decide(command: Command, decisions: Decisions) -> StoredReceipt:
    kind = CATALOGUE[type(command.request)]
    changes = kind.decide(command.request, command, decisions.aggregates)
    recorded_at = timestamp(command.now)
    for change in changes:
        apply(decisions.aggregates, change)
        decisions.events.append((EVENTS.kind_of(type(change)), EVENTS.wrap(change, recorded_at)))
    return StoredReceipt(
        request_id=command.request_id,
        fingerprint=command.fingerprint,
        subject_id=command.subject_id,
        offset=len(decisions.events),
        version=version_of(decisions.aggregates, kind.subject, command.subject_id),
    )
