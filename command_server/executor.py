"""Group commit: whatever waits is stored in one transaction.

Python pays for each round trip and PostgreSQL for each commit, so both are paid per batch. Nothing is delayed: a batch
is what came in while the one before was prepared. A lane is a thread with a connection; no call can be cancelled into
the middle of a transaction, because a call only waits for a future.
"""

import asyncio
import queue
import threading
import time
from collections import Counter as Counts
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import psycopg.errors
from prometheus_client import Counter, Histogram
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from tenacity import RetryError, Retrying, retry_if_exception, stop_after_delay, wait_exponential_jitter

from command_server.command import Command, Receipt
from command_server.settings import ExecutorSettings
from command_server.storage.aggregates import load, save
from command_server.storage.feed import append, find_receipts, stored
from command_server.working_set import Accepted, decide_batch, keys_of
from tandem.runtime.database import create_database_engine, may_pass, pipelined
from tandem.runtime.desk import take_together
from tandem.runtime.errors import DeadlineExceeded, Overloaded, TandemError, Unavailable
from tandem.runtime.settings import DatabaseSettings
from tandem.runtime.telemetry import log

COMMANDS = Counter("tandem_commands_total", "Commands by outcome", ["outcome"])
BATCH_SIZE = Histogram(
    "tandem_command_batch_size", "Commands in a transaction", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256)
)
RETRIES = Counter("tandem_command_batch_retries_total", "Batches that were run again after a failure that may pass")

# Two transactions that create the same thing or store the same request_id: one wins, the other sees it when run again.
# Once is enough for that; more is for several in one batch.
_MAX_COLLISIONS = 5
# Some times as long as a batch takes to prepare.
_TURN_SECONDS = 0.05


CommandReply = Callable[[Receipt | BaseException | None], None]
"""Gets what became of a command, on a lane's thread, once: what `Executor.submit` returns or raises.

None where nobody waits for it any more, and it was not run.
"""


class _Waiting(NamedTuple):
    command: Command
    deadline: float
    reply: "CommandReply"
    gone: Callable[[], bool]


class _CommitInDoubt(Exception):
    """The connection broke when COMMIT was on its way; `__cause__` says how. The receipts will tell."""


class _Turn:
    """Whose turn it is to prepare a batch: one lane's, while PostgreSQL writes and commits those of the others.

    Python works for one at a time anyway. Without turns a lane that is free would take the first command that comes,
    and small batches cost more.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lane: int | None = None

    def begin(self) -> None:
        """Waits for the turn, but not long: another lane may wait for rows that somebody keeps."""
        lane = threading.get_ident()
        if self._lane != lane and self._lock.acquire(timeout=_TURN_SECONDS):
            self._lane = lane

    def end(self) -> None:
        """Does nothing for a lane whose turn it is not."""
        if self._lane == threading.get_ident():
            self._lane = None
            self._lock.release()


def create_lanes_engine(settings: DatabaseSettings, lanes: int) -> Engine:
    """For an executor: it says BEGIN and COMMIT itself, since psycopg's own wait for their answers."""
    return create_database_engine(
        settings,
        name="tandem-command",
        pool_size=lanes,
        by_key=True,
        autocommit=True,
        # A batch has a few statements, of which one at most waits long.
        longest_transaction=4 * settings.statement_timeout,
    )


class Executor:
    """Takes commands and stores them. `start` and `stop` make it a Component."""

    def __init__(self, engine: Engine, settings: ExecutorSettings) -> None:
        """engine: as `create_lanes_engine` makes it; the executor disposes of it."""
        self._engine = engine
        self._settings = settings
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._lanes: list[threading.Thread] = []
        self._turn = _Turn()
        self._lane = threading.local()

    async def start(self) -> None:
        for number in range(self._settings.lanes):
            lane = threading.Thread(target=self._run_lane, name=f"lane-{number}", daemon=True)
            lane.start()
            self._lanes.append(lane)

    async def stop(self) -> None:
        """Stores what is still waiting, then ends the lanes."""
        for _ in self._lanes:
            self._waiting.put(None)
        for lane in self._lanes:
            await asyncio.to_thread(lane.join)
        self._lanes.clear()
        self._engine.dispose()

    async def submit(self, command: Command, deadline: float) -> Receipt:
        """Stores a command; returns when it is durable.

        deadline: on the clock of time.monotonic(); a command that still waits then is not run.
        Raises the rule's refusal (TandemError), Overloaded when too many wait, DeadlineExceeded, or Unavailable with
        reason STORE_UNAVAILABLE (nothing was done) or OUTCOME_UNKNOWN (repeat it with its request_id).
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Receipt] = loop.create_future()

        def reply(outcome: Receipt | BaseException | None) -> None:
            loop.call_soon_threadsafe(_resolve, answer, outcome)

        self.put(command, deadline, reply, answer.cancelled)
        return await answer

    def put(self, command: Command, deadline: float, reply: CommandReply, gone: Callable[[], bool]) -> None:
        """As `submit`, for callers that wait elsewhere, from any thread. Raises Overloaded.

        gone: whether nobody waits any more; the command is not run when that is seen before it has begun.
        """
        if self._waiting.qsize() >= self._settings.max_waiting:
            raise Overloaded(f"{self._settings.max_waiting} commands are waiting already")
        self._waiting.put(_Waiting(command, deadline, reply, gone))

    def _run_lane(self) -> None:
        stop = False
        while not stop:
            self._turn.begin()
            batch, stop = take_together(self._waiting, self._settings.max_batch)
            live = self._without_late(batch)
            if live:
                outcomes = self._store(live)
                self._turn.end()
                self._answer(outcomes)
        self._turn.end()
        self._disconnect()

    def _without_late(self, batch: Sequence[_Waiting]) -> list[_Waiting]:
        """Answers those that are not worth running any more; returns the others."""
        now = time.monotonic()
        live = []
        for it in batch:
            if it.gone():
                it.reply(None)
            elif it.deadline <= now:
                self._answer([(it, DeadlineExceeded("the deadline passed before the command was run"))])
            else:
                live.append(it)
        return live

    def _store(self, batch: Sequence[_Waiting]) -> list[tuple[_Waiting, Receipt | BaseException]]:
        """Stores a batch, with all its failures dealt with: each command gets its receipt or its own error.

        A failure that will not pass is some command's fault: halving the batch leaves that one alone with it.
        """
        try:
            outcomes = self._store_with_retries([it.command for it in batch])
        except Unavailable as error:
            return [(it, error) for it in batch]
        except Exception as error:
            if len(batch) == 1:
                return [(batch[0], error)]
            log.warning("splitting a batch that failed", size=len(batch), error=repr(error)[:500])
            middle = len(batch) // 2
            return self._store(batch[:middle]) + self._store(batch[middle:])
        return list(zip(batch, outcomes, strict=True))

    def _store_with_retries(self, batch: Sequence[Command]) -> list[Receipt | TandemError]:
        in_doubt = False
        collisions = 0

        def worth_another_run(error: BaseException) -> bool:
            nonlocal in_doubt, collisions
            if isinstance(error, _CommitInDoubt):
                in_doubt = True
                return True
            if _collided(error):
                collisions += 1
                return collisions <= _MAX_COLLISIONS
            return may_pass(error)

        retrying = Retrying(
            retry=retry_if_exception(worth_another_run),
            stop=stop_after_delay(self._settings.retry_seconds),
            wait=wait_exponential_jitter(multiplier=0.01, max=0.5, jitter=0.01),
            before_sleep=lambda _: RETRIES.inc(),
        )
        try:
            outcomes: list[Receipt | TandemError] = retrying(self._store_once, batch)
        except RetryError as error:
            cause = error.last_attempt.exception()
            log.warning("a batch could not be stored", size=len(batch), in_doubt=in_doubt, error=repr(cause)[:500])
            raise _unavailable(in_doubt) from cause
        return outcomes

    def _store_once(self, batch: Sequence[Command]) -> list[Receipt | TandemError]:
        """One transaction, in two round trips. Rows are locked before receipts are looked up: see find_receipts."""
        with self._connected() as connection:
            with pipelined(connection) as driver:
                driver.execute("BEGIN")
                aggregates = load(connection, keys_of(batch))
                receipts = find_receipts(connection, [it.request_id for it in batch])
            loaded, personal_keys = aggregates()
            decisions = decide_batch(batch, loaded, receipts())
            appended = None
            if decisions.receipts:
                try:
                    with pipelined(connection) as driver:
                        personal_keys |= save(connection, loaded, decisions.aggregates)
                        # PostgreSQL writes the rows while the events are being sealed.
                        events = stored(decisions.events, personal_keys)
                        head = append(connection, events, decisions.receipts)
                        driver.execute("COMMIT")
                        self._turn.end()
                except DBAPIError as error:
                    if error.connection_invalidated:
                        raise _CommitInDoubt from error
                    raise
                appended = head()
            # PostgreSQL hears of it where nothing was to be stored.
            connection.commit()
        BATCH_SIZE.observe(len(batch))
        return [it.receipt_after(appended) if isinstance(it, Accepted) else it for it in decisions.outcomes]

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        """The lane's own, kept until something fails: to get it and give it back takes as long as a statement."""
        kept: Connection | None = getattr(self._lane, "connection", None)
        connection = self._lane.connection = kept or self._engine.connect()
        try:
            yield connection
        except BaseException:
            self._disconnect()
            raise

    def _disconnect(self) -> None:
        connection: Connection | None = getattr(self._lane, "connection", None)
        self._lane.connection = None
        if connection is not None:
            connection.close()

    def _answer(self, answers: Sequence[tuple[_Waiting, Receipt | BaseException]]) -> None:
        for outcome, count in Counts(_outcome_name(result) for _, result in answers).items():
            COMMANDS.labels(outcome).inc(count)
        for waiting, result in answers:
            waiting.reply(result)


def _resolve(answer: asyncio.Future[Receipt], result: Receipt | BaseException | None) -> None:
    if answer.done() or result is None:
        # The caller has gone; a command that was run stays as it is, and its request_id finds the receipt.
        return
    if isinstance(result, Receipt):
        answer.set_result(result)
    else:
        answer.set_exception(result)


def _outcome_name(result: Receipt | BaseException) -> str:
    if isinstance(result, Receipt):
        return "replayed" if result.replayed else "stored"
    return "refused" if isinstance(result, TandemError) and not isinstance(result, Unavailable) else "failed"


def _collided(error: BaseException) -> bool:
    return isinstance(error, DBAPIError) and isinstance(error.orig, psycopg.errors.UniqueViolation)


def _unavailable(in_doubt: bool) -> Unavailable:
    if in_doubt:
        return Unavailable(
            "the connection broke while the command was being stored; repeat it with the same request_id to learn"
            " the outcome",
            reason="OUTCOME_UNKNOWN",
        )
    return Unavailable("the write database is away; nothing was done", reason="STORE_UNAVAILABLE")
