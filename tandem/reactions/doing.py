"""Gives the commands that reactions have written down, each once: all its attempts have one request id."""

from collections.abc import Mapping, Sequence
from concurrent.futures import wait
from datetime import datetime, timedelta
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.message_factory import GetMessageClass
from prometheus_client import Counter
from sqlalchemy import Engine

from tandem.reactions.reaction import Reaction
from tandem.reactions.settings import ReactionSettings
from tandem.reactions.tasks import Claimed, Due, Kind, Settled, claim, settle
from tandem.runtime.call import LocalCall, Method, Stage
from tandem.runtime.errors import (
    AlreadyExists,
    Conflict,
    DeadlineExceeded,
    NotFound,
    Overloaded,
    PreconditionFailed,
    RefusedBefore,
    Unavailable,
)
from tandem.runtime.telemetry import log

DONE = Counter(
    "tandem_reactions_total",
    "What reactions were to do, by what became of the attempt: done, refused by a rule, failed and tried again, parked",
    ["reaction", "outcome"],
)

ACTOR = "reaction/"
"""Before its name: who gave a command, as the envelopes of the events say."""

# The state of the store has the last word: what it refuses is not to be done any more.
_REFUSALS = (AlreadyExists, Conflict, NotFound, PreconditionFailed, RefusedBefore)
_PASSES = (DeadlineExceeded, Overloaded, Unavailable)
# Of failures that nobody expected: 1, 4, 16 and 64 s after the others.
_MAX_ATTEMPTS = 5
_LONGEST_PAUSE_SECONDS = 60.0


class Commands:
    """For one thread."""

    def __init__(
        self, engine: Engine, executor: Stage, reactions: Sequence[Reaction], settings: ReactionSettings
    ) -> None:
        self._engine = engine
        self._executor = executor
        self._reactions = {it.name: it for it in reactions}
        self._settings = settings

    def give_due(self, caught_up: Mapping[str, datetime]) -> bool:
        """Gives those whose time has come; whether there may be more. Raises SQLAlchemyError.

        caught_up: by reaction, the moment whose events all have been taken: a timer that is due later may yet be
        cancelled.
        """
        due = [Due(it.name, Kind.DO, it.version) for it in self._reactions.values()]
        for name, moment in caught_up.items():
            it = self._reactions[name]
            due.append(Due(name, Kind.TIMER, it.version, moment - it.delay))
        lease = timedelta(seconds=2 * self._settings.attempt_seconds)
        with self._engine.begin() as connection:
            claimed = claim(connection, due, lease=lease, most=self._settings.batch)
        settled = self._give(claimed)
        if settled:
            with self._engine.begin() as connection:
                settle(connection, settled)
            for one in settled:
                note_settled(one)
        return len(claimed) >= self._settings.batch

    def _give(self, claimed: Sequence[Claimed]) -> list[Settled]:
        settled: list[Settled] = []
        given: list[tuple[Claimed, LocalCall]] = []
        for it in claimed:
            try:
                given.append((it, self._call_of(it)))
            except Exception as error:  # a command that this program does not know, or cannot read
                settled.append(self._failed(it, error))
        # Together, so that they are stored together.
        self._executor.put_all([call for _, call in given])
        wait([call.future for _, call in given], timeout=self._settings.attempt_seconds)
        for it, call in given:
            if call.future.done():
                settled.append(self._settled(it, call.future.exception()))
            else:
                call.future.cancel()
                settled.append(self._again(it, "there was no answer in time"))
        return settled

    def _settled(self, it: Claimed, error: BaseException | None) -> Settled:
        if error is None:
            return Settled(it, outcome="done")
        if isinstance(error, _REFUSALS):
            return Settled(it, outcome=f"refused: {error.reason}")
        return self._again(it, repr(error)) if isinstance(error, _PASSES) else self._failed(it, error)

    def _call_of(self, it: Claimed) -> LocalCall:
        # The domain has imported its messages.
        kind: Any = GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(it.type))
        request = kind.FromString(it.payload)
        request.request_id = str(it.request_id)
        metadata = [("tandem-actor", ACTOR + it.reaction), ("tandem-causation-id", it.causation_id)]
        if it.correlation_id:
            metadata.append(("tandem-correlation-id", it.correlation_id))
        method = Method(kind.DESCRIPTOR.name.removesuffix("Request"), kind)
        return LocalCall(method, request, seconds=self._settings.attempt_seconds, metadata=metadata)

    def _again(self, it: Claimed, error: str) -> Settled:
        return self._in(it, min(_LONGEST_PAUSE_SECONDS, 2.0 ** min(it.attempts - 1, 10)), error)

    def _failed(self, it: Claimed, error: BaseException) -> Settled:
        """An error that nobody expected: of the reaction, or of the domain."""
        said = repr(error)[:1000]
        log.error("a reaction's command failed", reaction=it.reaction, key=it.key, attempts=it.attempts, error=said)
        if it.attempts >= _MAX_ATTEMPTS:
            return Settled(it, error=said)
        return self._in(it, 4.0 ** (it.attempts - 1), said)

    def _in(self, it: Claimed, seconds: float, error: str) -> Settled:
        delay = self._reactions[it.reaction].delay.total_seconds() if it.kind == Kind.TIMER else 0.0
        return Settled(it, error=error, again_in=seconds - delay)


def note_settled(it: Settled) -> None:
    if it.outcome:
        outcome = "refused" if it.outcome.startswith("refused") else "done"
    else:
        outcome = "parked" if it.again_in is None else "failed"
    DONE.labels(it.claimed.reaction, outcome).inc()
