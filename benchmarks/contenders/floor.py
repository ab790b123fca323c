"""The floor under PlaceOrder: what the executor says to PostgreSQL, said again with nothing around it.

The executor of this very checkout stores orders in one database while all its statements are written down, with their
parameters as the driver got them. They are then sent to another copy of that database as it was: the same SQL, rows,
batches and round trips, without gRPC, validation, rules, sealing, serialising or SQLAlchemy, and by psycopg's own
cursors. When the storage code changes, so does this, by itself.
"""

import asyncio
import gc
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import psycopg
from google.protobuf.message import Message
from psycopg import pq
from pydantic import SecretStr
from sqlalchemy import Engine, event

from benchmarks.measure import Sample
from command_server.app import DOMAIN
from tandem.commands.acknowledged import Acknowledged
from tandem.commands.executor import Executor, create_executor_engine
from tandem.commands.ledger import Ledger
from tandem.commands.settings import ExecutorSettings
from tandem.feed.table import SCHEMA
from tandem.runtime.call import LocalCall, Method
from tandem.runtime.settings import DatabaseSettings

# What is in the write database of a shop that sold something; compared after the replay.
_COUNTS = f"""
SELECT (SELECT count(*) FROM {SCHEMA}.customer_order), (SELECT count(*) FROM {SCHEMA}.order_line),
  (SELECT count(*) FROM {SCHEMA}.event), (SELECT count(*) FROM {SCHEMA}.receipt),
  (SELECT sum(stock) FROM {SCHEMA}.product), (SELECT position FROM {SCHEMA}.feed_head)
"""

_WARM_UP = 0.1


class Statement(NamedTuple):
    query: Any
    params: Any


Transaction = list[list[Statement]]
"""Its pipelines, from the one with BEGIN to the one with COMMIT."""


@dataclass
class Recording:
    """batches: the transactions that stored orders, each of `batch_size` of them.

    counts: what was in the database at the end, so that a replay can be held against it.
    """

    batches: list[Transaction]
    batch_size: int
    counts: tuple[Any, ...]


def record(url: str, orders: Sequence[Message], batch_size: int) -> Recording:
    """Stores orders with Tandem's executor in the database at `url`, of a shop that is open."""
    transactions: list[Transaction] = []
    with _engine(url) as engine:
        _write_down(engine, transactions)
        asyncio.run(_store(engine, orders, batch_size))
        with engine.connect() as connection:
            counts = _counts(_driver(connection))
    expected = math.ceil(len(orders) / batch_size)
    found = len(transactions)
    assert found == expected, f"the executor stored {len(orders)} orders in {found} transactions, not in {expected}"
    return Recording(transactions, batch_size, counts)


def replay(url: str, recording: Recording) -> Sample:
    """Sends the recorded statements to another copy of the database that they were recorded in.

    AssertionError if what is there then differs. The first tenth is to warm up: what a statement takes is measured when
    the driver has prepared it. A rate of orders; latencies are those of a batch, and the server's processor time is the
    driver's in this process.
    """
    warm_up = math.ceil(_WARM_UP * len(recording.batches))
    with _engine(url) as engine, engine.connect() as connection, _no_collections():
        driver = _driver(connection)
        for transaction in recording.batches[:warm_up]:
            _send(driver, transaction)
        batch_seconds = []
        started, cpu = time.perf_counter(), time.process_time()
        for transaction in recording.batches[warm_up:]:
            began = time.perf_counter()
            _send(driver, transaction)
            batch_seconds.append(time.perf_counter() - began)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        counts = _counts(driver)
    assert counts == recording.counts, f"the replay left {counts}, the executor {recording.counts}"
    orders = len(batch_seconds) * recording.batch_size
    batch_seconds.sort()
    return Sample(
        rate=orders / seconds,
        p50=batch_seconds[len(batch_seconds) // 2],
        p99=batch_seconds[len(batch_seconds) * 99 // 100],
        cpu={"server": cpu / orders},
    )


def store(url: str, requests: Sequence[Message]) -> None:
    """Stores them in the migrated database at `url`, with Tandem's executor in this process."""
    with _engine(url) as engine:
        asyncio.run(_store(engine, requests, ExecutorSettings().max_batch))
        with engine.connect() as connection:
            _tidy(_driver(connection))


async def _store(engine: Engine, requests: Sequence[Message], batch_size: int) -> None:
    """All of them, in batches of exactly this size: they wait already when the executor starts."""
    settings = ExecutorSettings(threads=1, max_batch=batch_size, max_waiting=max(1, len(requests)))
    executor = Executor(engine, DOMAIN, settings, Acknowledged(kept_seconds=600), Ledger(None))
    methods = {it: Method(it.DESCRIPTOR.name, it) for it in {type(request) for request in requests}}
    calls = [LocalCall(methods[type(it)], it, seconds=math.inf) for it in requests]
    executor.put_all(calls)
    await executor.start()
    try:
        await asyncio.gather(*(asyncio.wrap_future(it.future) for it in calls))
    finally:
        await executor.stop()


def _write_down(engine: Engine, transactions: list[Transaction]) -> None:
    """Has each statement of the engine's transactions written down, however it is sent."""
    entered: list[list[Statement]] = []

    def write_down(query: Any, params: Any) -> None:
        if query == "BEGIN":
            transactions.append([])
        if entered:
            transactions[-1].append(entered.pop())
        transactions[-1][-1].append(Statement(query, params or None))

    class Recorder(psycopg.Cursor[Any]):
        def execute(self, query: Any, params: Any = None, **options: Any) -> "Recorder":
            connection = self.connection.pgconn
            if connection.pipeline_status != pq.PipelineStatus.OFF:
                write_down(query, params)
            elif connection.transaction_status != pq.TransactionStatus.IDLE:
                raise NotImplementedError("the floor does not know statements apart; teach it, so that it stays true")
            super().execute(query, params, **options)
            return self

        def executemany(self, *_: Any, **__: Any) -> None:
            raise NotImplementedError("the floor does not know executemany; teach it, so that it stays true")

        def copy(self, *_: Any, **__: Any) -> Any:
            raise NotImplementedError("the floor does not know COPY; teach it, so that it stays true")

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _: object) -> None:
        connection.cursor_factory = Recorder
        pipeline, send = connection.pipeline, connection.send

        def enter_pipeline() -> Any:
            entered[:] = [[]]
            return pipeline()

        def send_and_write_down(query: str, params: Any = (), **options: Any) -> Any:
            if connection.pgconn.pipeline_status != pq.PipelineStatus.OFF:
                write_down(query, params)
            return send(query, params, **options)

        connection.pipeline = enter_pipeline
        connection.send = send_and_write_down


def _send(connection: "psycopg.Connection[Any]", transaction: Transaction) -> None:
    """By psycopg's own cursors. What PostgreSQL answers is received, and not read."""
    for statements in transaction:
        with connection.pipeline():
            for it in statements:
                connection.execute(it.query, it.params)


def _tidy(connection: "psycopg.Connection[Any]") -> None:
    """What a database does by itself after a while; without statistics a batch may read the whole catalogue."""
    connection.execute("VACUUM ANALYZE")


def _counts(connection: "psycopg.Connection[Any]") -> tuple[Any, ...]:
    row = connection.execute(_COUNTS).fetchone()
    assert row is not None
    return tuple(row)


@contextmanager
def _engine(url: str) -> Iterator[Engine]:
    """As the command server's own: the session's settings and the driver's are part of what is measured."""
    engine = create_executor_engine(DatabaseSettings(url=SecretStr(url)), ExecutorSettings(threads=1))
    try:
        yield engine
    finally:
        engine.dispose()


def _driver(connection: Any) -> "psycopg.Connection[Any]":
    driver = connection.connection.dbapi_connection
    assert isinstance(driver, psycopg.Connection)
    return driver


@contextmanager
def _no_collections() -> Iterator[None]:
    """The recording is a million objects; searching them for garbage would be the floor's cost and not the SQL's."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
