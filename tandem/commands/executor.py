"""Group commit: whatever waits is stored in one transaction.

Python pays for each round trip and PostgreSQL for each commit, so both are paid per batch. Nothing is delayed: a batch
is what came in while the one before was prepared. Each thread owns a connection, and no call can be cancelled into the
middle of a transaction: a caller that goes away only stops waiting.
"""

import itertools
import math
import time
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
from prometheus_client import Counter, Histogram
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from tenacity import RetryCallState, RetryError, Retrying, retry_if_exception, wait_exponential_jitter

from tandem.commands.acknowledged import Acknowledged
from tandem.commands.batch import decide_batch
from tandem.commands.busy import BusyRows
from tandem.commands.domain import Command, Domain
from tandem.commands.ledger import Kind, Ledger
from tandem.commands.receipts import (
    Receipt,
    append,
    append_refusals,
    find_receipts,
    keep_unfinished,
    stored_events,
    wake_followers,
)
from tandem.commands.rules import Id
from tandem.commands.settings import ExecutorSettings
from tandem.commands.write_model import Keys
from tandem.feed import table as feed
from tandem.runtime import audit
from tandem.runtime.call import Call, Stage
from tandem.runtime.clock import Clock, utc_now
from tandem.runtime.database import Driver, create_database_engine, driver_of, pipelined
from tandem.runtime.errors import SomebodyElses, TandemError, Unavailable
from tandem.runtime.notifications import Notified
from tandem.runtime.settings import DatabaseSettings
from tandem.runtime.sqlstate import WAITED_TOO_LONG, BatchAction, failure_of
from tandem.runtime.statements import Rows, is_answered
from tandem.runtime.telemetry import log
from tandem.runtime.tracing import TRACING, metadata_of
from tandem.runtime.worker import Worker

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

COMMANDS = Counter("tandem_commands_total", "Commands by outcome", ["outcome"])
BATCH_SIZE = Histogram(
    "tandem_command_batch_size", "Commands in a transaction", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256)
)
RETRIES = Counter("tandem_command_batch_retries_total", "Batches that were run again after a failure that may pass")
SET_ASIDE = Counter("tandem_commands_set_aside_total", "Commands set aside because others keep rows locked")

# Of two transactions that create the same thing or store the same request_id one wins, and the other sees that when it
# is run again. One more run is enough for one such command; the others are for several of them in a batch.
_MAX_COLLISIONS = 5
# A batch that is decided so soon after it was taken keeps the time of then: another costs 1 µs for each command.
_AT_ONCE = timedelta(milliseconds=20)

FREE_HEAD = f"""
SELECT FROM {feed.feed_head.fullname} WHERE span >= (SELECT span FROM {feed.NEWEST_HEAD} AS h) FOR UPDATE SKIP LOCKED
"""  # noqa: S608 - only a table's name is put in


def create_executor_engine(settings: DatabaseSettings, executor: ExecutorSettings) -> Engine:
    """For an executor: it says BEGIN and COMMIT itself, since psycopg's own wait for their answers."""
    return create_database_engine(
        settings.model_copy(update={"lock_timeout": min(settings.lock_timeout, executor.row_wait_seconds)}),
        name="tandem-command",
        # One for the commands that are set aside.
        pool_size=executor.threads + 1,
        by_key=True,
        autocommit=True,
        # Who is told of a receipt or a refusal is told for good.
        durable=True,
        # A batch has a few statements, of which one at most waits long.
        longest_transaction=4 * settings.statement_timeout,
    )


class Executor(Worker):
    """Takes the calls of commands, and answers each when its command is stored.

    A call fails with the rule's refusal, or with Unavailable: reason STORE_UNAVAILABLE or ROWS_BUSY (nothing was done),
    or OUTCOME_UNKNOWN (repeat it with its request_id).

    A command that needs rows which another session keeps locked is set aside: it goes to a worker with one thread,
    which tries it again until it is stored or its time is over. The others of its batch are stored at once, and as long
    as the rows are known to be locked, no command that needs them joins a batch.

    A command that is done in steps goes there too, after its first: each step is a transaction, with those of others in
    between, and the call is answered after the last. Where it ends before, `Resumption` goes on with the command.
    """

    def __init__(
        self,
        engine: Engine,
        domain: Domain,
        settings: ExecutorSettings,
        acknowledged: Acknowledged,
        ledger: Ledger,
        *,
        clock: Clock = utc_now,
    ) -> None:
        """engine: as `create_executor_engine` makes it; the executor disposes of it.

        acknowledged: gets each commit, and looks for the last one on each new connection. ledger: gets who is erased.
        clock: this server's.
        """
        self._engine = engine
        self._settings = settings
        new_storing = partial(
            _Storing,
            engine,
            domain,
            settings,
            acknowledged=acknowledged,
            ledger=ledger,
            clock=clock,
            busy=BusyRows(settings.retry_seconds),
            followers=Notified("the followers of the feed"),
        )
        last = new_storing()
        self._aside = Worker(
            "commands-aside",
            [last.answer_aside],
            # All of them at once: they are looked at together.
            max_batch=settings.max_waiting,
            max_waiting=settings.max_waiting,
        )
        self._storing = [
            new_storing(prepared=self.prepared, given_up=self._refuse_old) for _ in range(settings.threads)
        ]
        for it in (last, *self._storing):
            it.aside = self._aside
        # While PostgreSQL writes and commits the batch of one thread, another prepares the next. One prepares at a
        # time: Python works for one anyway, and without this a thread that is free would take the first command that
        # comes, alone, and small batches cost more.
        super().__init__(
            "commands",
            [it.answer for it in self._storing],
            max_batch=settings.max_batch,
            max_waiting=settings.max_waiting,
            one_prepares=True,
        )
        self._storing.append(last)

    async def start(self) -> None:
        await super().start()
        await self._aside.start()

    def _refuse_old(self) -> None:
        """Ends what has waited while a batch was given up: it would wait as long once more, and maybe past its time."""
        self.refuse_waiting(self._settings.retry_seconds, _database_away())

    async def stop(self) -> None:
        """Stores what is still waiting, then ends the threads."""
        await super().stop()
        await self._aside.stop()
        for it in self._storing:
            it.disconnect()
        self._engine.dispose()


class _Aside(NamedTuple):
    """What a call that is set aside has asked: the command as it is tried again, and until when.

    until: on the clock of time.monotonic(). replayed: of a command that has begun, whether an earlier call began it.
    """

    command: Command
    until: float
    replayed: bool = False


class _Storing:
    """The handler of one thread: from calls to commands, through a transaction, to answers."""

    aside: Stage
    """Where calls go that are set aside."""

    def __init__(
        self,
        engine: Engine,
        domain: Domain,
        settings: ExecutorSettings,
        *,
        acknowledged: Acknowledged,
        ledger: Ledger,
        clock: Clock,
        busy: BusyRows,
        followers: Notified,
        prepared: Callable[[], None] = lambda: None,
        given_up: Callable[[], None] = lambda: None,
    ) -> None:
        """acknowledged, ledger, busy, followers: shared by all threads.

        prepared: called when the work that is left is PostgreSQL's, so that another thread prepares its batch.
        given_up: called when a batch was given up because the database does not answer.
        """
        self._engine = engine
        self._domain = domain
        self._settings = settings
        self._acknowledged = acknowledged
        self._ledger = ledger
        self._clock = clock
        self._busy = busy
        self._followers = followers
        self._prepared = prepared
        self._given_up = given_up
        self._connection: Connection | None = None
        self._committed: Rows | psycopg.Cursor[Any] | None = None
        """Of a batch that is being appended, the answer to its COMMIT."""
        self._span: SpanContext | None = None
        """Of the batch that is under way, where it is traced."""
        self._rounds = itertools.count()
        """Of `answer_aside`: each tries another command first."""

    def answer(self, calls: Sequence[Call]) -> None:
        taken: list[Call] = []
        batch: list[Command] = []
        some_are_busy = bool(self._busy)
        for call in calls:
            try:
                metadata = metadata_of(call, call.method.name) if TRACING.is_on else call.metadata()
                command = self._domain.command_of(call.request, self._clock(), metadata, call.actor, call.owner)
            except Exception as error:
                # A wrong request, which concerns no other call.
                call.fail(error)
                continue
            if some_are_busy and self._busy.may_hold_up(self._domain.keys_of([command])):
                self._set_aside(call, command)
                continue
            taken.append(call)
            batch.append(command)
        if batch:
            failures = _Failures(self._settings.retry_seconds)
            outcomes = self._store_for(taken, batch, failures)
            if failures.database_is_away:
                # Before the answers: who repeats a command after its answer has not waited.
                self._given_up()
            self._answer_with(taken, batch, outcomes)

    def answer_aside(self, calls: Sequence[Call]) -> None:
        """Stores what needs no locked rows any more. Where all do, tries one command, and those that need no others.

        It waits for its rows as any transaction does, `row_wait_seconds` at most: so it gets them also where others
        want them all the time, and the thread does not look again and again for nothing.
        """
        now = time.monotonic()
        waiting: list[Call] = []
        for call in calls:
            if call.asked.until <= now:
                COMMANDS.labels("failed").inc()
                call.fail(_rows_busy())
            else:
                waiting.append(call)
        if not waiting:
            return
        held = self._look([call.asked.command for call in waiting]).rows
        needs = [self._domain.keys_of([call.asked.command]) for call in waiting]
        tried = [call for call, keys in zip(waiting, needs, strict=True) if not keys.meets(held)]
        if not tried:
            others = held.without(needs[next(self._rounds) % len(needs)])
            tried = [call for call, keys in zip(waiting, needs, strict=True) if not keys.meets(others)]
        for first in range(0, len(tried), self._settings.max_batch):
            some = tried[first : first + self._settings.max_batch]
            batch = [call.asked.command for call in some]
            begun = [call.asked.command.request_id for call in some if call.begun]
            failures = _Failures(self._settings.retry_seconds, begun)
            self._answer_with(some, batch, self._store_for(some, batch, failures))
        for call in waiting:
            if call.code is None:
                call.next = self.aside

    def _answer_with(
        self, calls: Sequence[Call], batch: Sequence[Command], outcomes: "Sequence[Receipt | Exception | None]"
    ) -> None:
        for name, count in Counts([_outcome_name(it) for it in outcomes if it is not None]).items():
            COMMANDS.labels(name).inc(count)
        for call, command, outcome in zip(calls, batch, outcomes, strict=True):
            if outcome is None:
                self._set_aside(call, command)
            elif not isinstance(outcome, Receipt):
                if isinstance(outcome, SomebodyElses):
                    audit.somebody_elses(call, call.method.name, outcome.resource_name)
                call.fail(outcome)
            elif outcome.unfinished is not None:
                self._go_on(call, command, outcome)
            else:
                receipt = outcome._replace(replayed=call.asked.replayed) if call.begun else outcome
                call.reply(self._domain.response_to(command, receipt))

    def _set_aside(self, call: Call, command: Command) -> None:
        if call.asked is None:
            SET_ASIDE.inc()
            call.asked = _Aside(command, time.monotonic() + self._settings.retry_seconds)
        call.next = self.aside

    def _go_on(self, call: Call, command: Command, receipt: Receipt) -> None:
        if not call.begun:
            call.begun = True
            call.asked = _Aside(command, math.inf, receipt.replayed)
        call.next = self.aside

    def _store_for(
        self, calls: Sequence[Call], batch: Sequence[Command], failures: "_Failures"
    ) -> "list[Receipt | Exception | None]":
        if not TRACING.is_on:
            return self._store(batch, failures)
        spans = [TRACING.span_of(call, call.method.name) for call in calls]
        with TRACING.together("command batch", spans) as self._span:
            return self._store(batch, failures)

    def _store(self, batch: Sequence[Command], failures: "_Failures") -> "list[Receipt | Exception | None]":
        """Stores a batch, with all its failures dealt with: each command gets its receipt or its own error.

        None for a command that is to be set aside: nothing of it is done, and others keep rows locked that it needs.
        A failure that will not pass is some command's fault: halving the batch leaves that one alone with it.
        """
        while batch:
            retrying = Retrying(
                retry=retry_if_exception(failures.may_pass),
                stop=failures.are_over,
                wait=wait_exponential_jitter(multiplier=0.01, max=0.5, jitter=0.01),
                before_sleep=lambda _: RETRIES.inc(),
            )
            try:
                return list(retrying(self._store_once, batch, failures))
            except RetryError as error:
                return failures.given_up(batch, error.last_attempt.exception())
            except Exception as error:
                if failure_of(error).batch in WAITED_TOO_LONG:
                    outcomes = self._store_apart(batch, failures, error)
                    if outcomes is None:
                        continue
                    return outcomes
                if len(batch) == 1:
                    return [error]
                log.warning("splitting a batch that failed", size=len(batch), error=repr(error)[:500])
                return self._store_halves(batch, failures)
        return []

    def _store_halves(self, batch: Sequence[Command], failures: "_Failures") -> "list[Receipt | Exception | None]":
        middle = len(batch) // 2
        return [*self._store(batch[:middle], failures), *self._store(batch[middle:], failures)]

    def _store_apart(
        self, batch: Sequence[Command], failures: "_Failures", error: Exception
    ) -> "list[Receipt | Exception | None] | None":
        """As `_store`, for a batch that has waited too long: what waits for locked rows is set aside, the rest stored.

        None when no command is to blame, or the one that is cannot be set aside: the batch is tried again as it is.
        A command whose COMMIT is in doubt is never set aside, since nobody could say then that nothing was done.
        """
        held, everywhere = self._look(batch)
        waits = [self._domain.keys_of([it]).meets(held) and not failures.in_doubt(it) for it in batch]
        log.warning("a batch waited too long", size=len(batch), set_aside=sum(waits), error=repr(error)[:500])
        if any(waits):
            others = iter(self._store([it for it, waiting in zip(batch, waits, strict=True) if not waiting], failures))
            return [None if waiting else next(others) for waiting in waits]
        if failures.are_over() or (len(batch) == 1 and failure_of(error).batch is BatchAction.LATE):
            return failures.given_up(batch, error)
        if len(batch) > 1 and not everywhere:
            return self._store_halves(batch, failures)
        if everywhere or failures.in_doubt(batch[0]):
            return None
        # What it would create is being created by another transaction, which keeps that to itself until its COMMIT.
        return [None]

    def _look(self, batch: Sequence[Command]) -> "_Held":
        """What others keep locked of that which the batch needs; it waits for nothing."""
        keys = self._domain.keys_of(batch)
        try:
            with self._connected() as connection:
                held = self._domain.model.find_held(connection, keys)
                with driver_of(connection) as driver:
                    head_is_free = driver.execute(FREE_HEAD).rowcount == 1
                connection.commit()
        except DBAPIError as error:
            log.warning("it is not known which rows are locked", error=repr(error)[:500])
            return _Held(Keys(), everywhere=True)
        self._busy.found(keys, held)
        return _Held(held, everywhere=not head_is_free)

    def _store_once(self, batch: Sequence[Command], failures: "_Failures") -> list[Receipt | TandemError]:
        """One transaction, in two round trips. Rows are locked before receipts are looked up: see find_receipts."""
        domain = self._domain
        with self._connected() as connection:
            with pipelined(connection) as driver:
                driver.send("BEGIN")
                rows = domain.model.load(connection, domain.keys_of(batch))
                receipts = find_receipts(connection, [it.request_id for it in batch])
            loaded, subject_keys = rows()
            now = self._clock()
            # Any may have waited longest: those that are set aside come in no order.
            if now - min(it.now for it in batch) > _AT_ONCE:
                # Rows or the database have held it up: the batch is decided now, and its events say so.
                batch = [it._replace(now=now) for it in batch]
            decisions = decide_batch(domain, batch, loaded, receipts())
            outcomes = failures.resolved(decisions.outcomes)
            if decisions.receipts and not decisions.events:
                failures.committing = decisions.receipts
                with pipelined(connection) as driver:
                    append_refusals(connection, decisions.receipts)
                    driver.send("COMMIT")
                    self._prepared()
            elif decisions.events:
                failures.committing = decisions.receipts + decisions.stepped
                began = time.monotonic()
                with self._appending(connection) as driver:
                    new_keys, erased = domain.model.save(connection, loaded, decisions.states)
                    subject_keys |= new_keys
                    driver.flush()
                    # PostgreSQL writes the rows while the events are being sealed.
                    events = stored_events(domain.events, decisions.events, decisions.envelopes, subject_keys)
                    head = append(connection, events, decisions.receipts, decisions.stepped)
                    if decisions.begun:
                        keep_unfinished(connection, decisions.begun)
                    self._committed = driver.send("COMMIT")
                    wake_followers(driver, again=self._followers.fails)
                    self._prepared()
                epoch, base, mark = head()
                if TRACING.is_on and self._span is not None:
                    TRACING.note("commit", began, self._span, time.monotonic(), after_position=base)
                self._acknowledged.add(epoch, base, decisions.receipts + decisions.stepped)
                if erased:
                    # Before anybody is told.
                    self._ledger.add(Kind.ERASED, erased)
                outcomes = [it.appended(epoch, base, mark) if isinstance(it, Receipt) else it for it in outcomes]
            if connection.invalidated:
                # It broke behind COMMIT's answer.
                self.disconnect()
            else:
                # Ends the transaction where nothing was to be stored.
                connection.commit()
        BATCH_SIZE.observe(len(batch))
        return outcomes

    @contextmanager
    def _appending(self, connection: Connection) -> Iterator[Driver]:
        """A pipeline with a COMMIT. When that is answered the batch is stored, whatever fails behind it."""
        self._committed = None
        try:
            with pipelined(connection) as driver:
                yield driver
        except DBAPIError as error:
            if self._committed is None or not is_answered(self._committed):
                raise
            self._followers.note(error)
        else:
            self._followers.note(None)

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        """The thread's own, kept until something fails: to get it and give it back takes as long as a statement."""
        is_new = self._connection is None
        connection = self._connection = self._connection or self._engine.connect()
        try:
            if is_new:
                self._acknowledged.look_for(connection)
            yield connection
        except BaseException:
            self.disconnect()
            raise

    def disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class _Held(NamedTuple):
    """What others keep locked.

    everywhere: nothing can be stored, whatever it is: the feed's head is locked, or it could not be found out.
    """

    rows: Keys
    everywhere: bool


class _Failures:
    """What a failure of the database means for a batch, through all its attempts: what tandem.runtime.sqlstate says.

    When the connection broke while COMMIT was on its way, the next attempt finds in the receipts whether it was stored.
    What is run again for too long is given up. Its commands may be stored nevertheless, where the outcome of a COMMIT
    is unknown.
    """

    def __init__(self, seconds: float, begun: Iterable[Id] = ()) -> None:
        """seconds: for how long a batch is run again.

        begun: the request ids of commands that have done steps: of them, too, nobody may say that nothing was done.
        """
        self.committing: Sequence[Receipt] = ()
        """Of an attempt, when it begins what ends with COMMIT: the receipts that are stored by it."""
        self.database_is_away = False
        """Whether it has not answered until there was no time left."""
        self._seconds = seconds
        self._end = time.monotonic() + seconds
        self._waited = False
        self._collisions = 0
        self._in_doubt: set[Id] = set()
        self._begun = frozenset(begun)

    def in_doubt(self, command: Command) -> bool:
        """Whether it may be stored: the connection broke during its COMMIT."""
        return command.request_id in self._in_doubt

    def may_pass(self, error: BaseException) -> bool:
        """Whether the batch is to be run again as it is."""
        committing, self.committing = self.committing, ()
        failure = failure_of(error)
        if failure.unknown:
            self._in_doubt |= {it.request_id for it in committing}
        if failure.batch in WAITED_TOO_LONG and not self._waited:
            # However long the first wait was, there is time to find out who is to blame.
            self._waited = True
            self._end = time.monotonic() + self._seconds
        if failure.batch is BatchAction.COLLIDED:
            self._collisions += 1
            return self._collisions <= _MAX_COLLISIONS
        return failure.batch is BatchAction.AGAIN

    def are_over(self, _state: RetryCallState | None = None) -> bool:
        """Whether there is no time left for another attempt."""
        return time.monotonic() >= self._end

    def resolved(self, outcomes: list[Receipt | TandemError]) -> list[Receipt | TandemError]:
        """The outcomes, where receipts of an earlier attempt are those of this very call: it has replayed nothing."""
        own = self._in_doubt | self._begun
        told: set[Id] = set()
        for number, it in enumerate(outcomes if own else ()):
            if isinstance(it, Receipt) and it.replayed and it.request_id in own - told:
                # Once: who sent the same a second time, in this batch, gets a replay.
                told.add(it.request_id)
                outcomes[number] = it._replace(replayed=False)
        return outcomes

    def given_up(self, batch: Sequence[Command], error: BaseException | None) -> list[Receipt | Exception | None]:
        """What the callers get when there is no time left. error: what failed last."""
        if error is not None and failure_of(error).batch is BatchAction.LOCKED:
            answer = _rows_busy()
        else:
            answer = _database_away()
            self.database_is_away = True
        unknown = Unavailable(
            "the connection broke while the command was being stored; repeat it with the same request_id to learn the"
            " outcome",
            reason="OUTCOME_UNKNOWN",
        )
        in_doubt = sum(map(self.in_doubt, batch))
        log.warning(
            "a batch could not be stored", size=len(batch), in_doubt=in_doubt, reason=answer.reason,
            error=repr(error)[:500],
        )  # fmt: skip
        return [unknown if self.in_doubt(it) or it.request_id in self._begun else answer for it in batch]


def _database_away() -> Unavailable:
    return Unavailable("the write database is away, or slow; nothing was done", reason="STORE_UNAVAILABLE")


def _rows_busy() -> Unavailable:
    return Unavailable("another session keeps rows locked that it needs; nothing was done", reason="ROWS_BUSY")


def _outcome_name(outcome: Receipt | Exception) -> str:
    if isinstance(outcome, Receipt):
        if outcome.unfinished is not None:
            return "begun"
        return "replayed" if outcome.replayed else "stored"
    return "refused" if isinstance(outcome, TandemError) and not isinstance(outcome, Unavailable) else "failed"
