"""Group commit: whatever waits is stored in one transaction.

Python pays for each round trip and PostgreSQL for each commit, so both are paid per batch. Nothing is delayed: a batch
is what came in while the one before was prepared. Each thread owns a connection, and no call can be cancelled into the
middle of a transaction: a caller that goes away only stops waiting.
"""

from collections import Counter as Counts
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import psycopg.errors
from prometheus_client import Counter, Histogram
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from tenacity import RetryError, Retrying, retry_if_exception, stop_after_delay, wait_exponential_jitter

from tandem.commands.batch import decide_batch
from tandem.commands.clock import Clock, utc_now
from tandem.commands.domain import Command, Domain
from tandem.commands.receipts import Receipt, append, append_refusals, find_receipts, stored_events
from tandem.commands.settings import ExecutorSettings
from tandem.runtime.call import Call
from tandem.runtime.database import create_database_engine, may_pass, pipelined
from tandem.runtime.errors import TandemError, Unavailable
from tandem.runtime.settings import DatabaseSettings
from tandem.runtime.telemetry import log
from tandem.runtime.worker import Worker

COMMANDS = Counter("tandem_commands_total", "Commands by outcome", ["outcome"])
BATCH_SIZE = Histogram(
    "tandem_command_batch_size", "Commands in a transaction", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256)
)
RETRIES = Counter("tandem_command_batch_retries_total", "Batches that were run again after a failure that may pass")

# Of two transactions that create the same thing or store the same request_id one wins, and the other sees that when it
# is run again. One more run is enough for one such command; the others are for several of them in a batch.
_MAX_COLLISIONS = 5
# A batch that is decided so soon after it was taken keeps the time of then: another costs 1 µs for each command.
_AT_ONCE = timedelta(milliseconds=20)


def create_executor_engine(settings: DatabaseSettings, threads: int) -> Engine:
    """For an executor: it says BEGIN and COMMIT itself, since psycopg's own wait for their answers."""
    return create_database_engine(
        settings,
        name="tandem-command",
        pool_size=threads,
        by_key=True,
        autocommit=True,
        # Who is told of a receipt or a refusal is told for good.
        durable=True,
        # A batch has a few statements, of which one at most waits long.
        longest_transaction=4 * settings.statement_timeout,
    )


class Executor(Worker):
    """Takes the calls of commands, and answers each when its command is stored.

    A call fails with the rule's refusal, or with Unavailable: reason STORE_UNAVAILABLE (nothing was done) or
    OUTCOME_UNKNOWN (repeat it with its request_id).
    """

    def __init__(self, engine: Engine, domain: Domain, settings: ExecutorSettings, *, clock: Clock = utc_now) -> None:
        """engine: as `create_executor_engine` makes it; the executor disposes of it. clock: this server's."""
        self._engine = engine
        self._storing = [_Storing(engine, domain, settings, clock, self.prepared) for _ in range(settings.threads)]
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

    async def stop(self) -> None:
        """Stores what is still waiting, then ends the threads."""
        await super().stop()
        for it in self._storing:
            it.disconnect()
        self._engine.dispose()


class _Storing:
    """The handler of one thread: from calls to commands, through a transaction, to answers."""

    def __init__(
        self,
        engine: Engine,
        domain: Domain,
        settings: ExecutorSettings,
        clock: Clock,
        prepared: Callable[[], None],
    ) -> None:
        """prepared: called when the work that is left is PostgreSQL's, so that another thread prepares its batch."""
        self._engine = engine
        self._domain = domain
        self._settings = settings
        self._clock = clock
        self._prepared = prepared
        self._connection: Connection | None = None

    def answer(self, calls: Sequence[Call]) -> None:
        taken: list[Call] = []
        batch: list[Command] = []
        for call in calls:
            try:
                batch.append(self._domain.command_of(call.request, self._clock(), call.metadata()))
            except Exception as error:
                # A wrong request, which concerns no other call.
                call.fail(error)
            else:
                taken.append(call)
        if not batch:
            return
        outcomes = self._store(batch)
        for name, count in Counts(map(_outcome_name, outcomes)).items():
            COMMANDS.labels(name).inc(count)
        for call, command, outcome in zip(taken, batch, outcomes, strict=True):
            if isinstance(outcome, Receipt):
                call.reply(self._domain.response_to(command, outcome))
            else:
                call.fail(outcome)

    def _store(self, batch: Sequence[Command]) -> Sequence[Receipt | Exception]:
        """Stores a batch, with all its failures dealt with: each command gets its receipt or its own error.

        A failure that will not pass is some command's fault: halving the batch leaves that one alone with it.
        """
        try:
            return self._store_with_retries(batch)
        except Unavailable as error:
            return [error] * len(batch)
        except Exception as error:
            if len(batch) == 1:
                return [error]
            log.warning("splitting a batch that failed", size=len(batch), error=repr(error)[:500])
            middle = len(batch) // 2
            return [*self._store(batch[:middle]), *self._store(batch[middle:])]

    def _store_with_retries(self, batch: Sequence[Command]) -> list[Receipt | TandemError]:
        failures = _Failures()
        retrying = Retrying(
            retry=retry_if_exception(failures.may_pass),
            stop=stop_after_delay(self._settings.retry_seconds),
            wait=wait_exponential_jitter(multiplier=0.01, max=0.5, jitter=0.01),
            before_sleep=lambda _: RETRIES.inc(),
        )
        try:
            outcomes: list[Receipt | TandemError] = retrying(self._store_once, batch, failures)
        except RetryError as error:
            cause, answer = error.last_attempt.exception(), failures.given_up()
            log.warning("a batch could not be stored", size=len(batch), reason=answer.reason, error=repr(cause)[:500])
            raise answer from cause
        return outcomes

    def _store_once(self, batch: Sequence[Command], failures: "_Failures") -> list[Receipt | TandemError]:
        """One transaction, in two round trips. Rows are locked before receipts are looked up: see find_receipts."""
        domain = self._domain
        with self._connected() as connection:
            with pipelined(connection) as driver:
                driver.execute("BEGIN")
                rows = domain.model.load(connection, domain.keys_of(batch))
                receipts = find_receipts(connection, [it.request_id for it in batch])
            loaded, subject_keys = rows()
            now = self._clock()
            if now - batch[0].now > _AT_ONCE:
                # The batch has waited, for rows or for the database: it is decided now, and its events say so.
                batch = [it._replace(now=now) for it in batch]
            decisions = decide_batch(domain, batch, loaded, receipts())
            outcomes = decisions.outcomes
            if decisions.receipts and not decisions.events:
                failures.committing = True
                with pipelined(connection) as driver:
                    append_refusals(connection, decisions.receipts)
                    driver.execute("COMMIT")
                    self._prepared()
            elif decisions.receipts:
                failures.committing = True
                with pipelined(connection) as driver:
                    subject_keys |= domain.model.save(connection, loaded, decisions.states)
                    # PostgreSQL writes the rows while the events are being sealed.
                    events = stored_events(domain.events, decisions.events, decisions.envelopes, subject_keys)
                    head = append(connection, events, decisions.receipts)
                    driver.execute("COMMIT")
                    self._prepared()
                epoch, base, mark = head()
                outcomes = [it.appended(epoch, base, mark) if isinstance(it, Receipt) else it for it in outcomes]
            # Ends the transaction where nothing was to be stored.
            connection.commit()
        BATCH_SIZE.observe(len(batch))
        return outcomes

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        """The thread's own, kept until something fails: to get it and give it back takes as long as a statement."""
        connection = self._connection = self._connection or self._engine.connect()
        try:
            yield connection
        except BaseException:
            self.disconnect()
            raise

    def disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class _Failures:
    """What a failure of the database means for a batch, through all its attempts. Nothing else decides it.

        the connection broke while COMMIT was on its way  run again: the receipts tell whether it was stored
        a unique violation                                run again, a few times: what another stored is seen then
        the connection, a deadlock, a failover            run again
        anything else                                     some command's fault: the batch is split

    What is run again for too long is given up. Its commands may be stored nevertheless, where the outcome of a COMMIT
    is unknown.
    """

    def __init__(self) -> None:
        self.committing = False
        """Set by an attempt when it begins what ends with COMMIT."""
        self._outcome_unknown = False
        self._collisions = 0

    def may_pass(self, error: BaseException) -> bool:
        """Whether the batch is to be run again."""
        committing, self.committing = self.committing, False
        if isinstance(error, DBAPIError):
            if committing and error.connection_invalidated:
                self._outcome_unknown = True
            if isinstance(error.orig, psycopg.errors.UniqueViolation):
                self._collisions += 1
                return self._collisions <= _MAX_COLLISIONS
        return may_pass(error)

    def given_up(self) -> Unavailable:
        """What the callers get when there is no time left."""
        if self._outcome_unknown:
            return Unavailable(
                "the connection broke while the command was being stored; repeat it with the same request_id to learn"
                " the outcome",
                reason="OUTCOME_UNKNOWN",
            )
        return Unavailable("the write database is away; nothing was done", reason="STORE_UNAVAILABLE")


def _outcome_name(outcome: Receipt | Exception) -> str:
    if isinstance(outcome, Receipt):
        return "replayed" if outcome.replayed else "stored"
    return "refused" if isinstance(outcome, TandemError) and not isinstance(outcome, Unavailable) else "failed"
