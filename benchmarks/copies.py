"""Makes a shop larger without placing every order: copies all orders as often as wanted, by SQL.

Each copy is an order of its own: in the write model, with its receipt, with its event at a position of its own at the
feed's end, with what reactions wait for, in the views order_details and order_summary, and in every sum and stock. What
is left out is the change log, which is that of a shop that took longer to grow than the log is kept. To be called while
no service runs, and when views and reactions had all of the feed: those of the copies have all of theirs.

Indexes and references are taken off before and made again after: to put ten million random keys into an index one by
one takes as long as a disk has to find each page. Ranges of copies are made side by side, each in its own transaction,
from the originals in temporary tables, so that a range takes as long at the end as at the beginning.
"""

import hashlib
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from sqlalchemy import create_engine

from commerce.internal.v1.stored_pb2 import SalesSummaryRow
from commerce.query.v1.views_pb2 import ProductCard
from tandem.commands.partitions import ensure_partitions

_WRITE_TABLES = (
    "tandem_write.customer_order",
    "tandem_write.order_line",
    "tandem_write.event",
    "tandem_write.receipt",
    "tandem_write.reaction_task",
)
_READ_TABLES = ("tandem_read.order_details", "tandem_read.order_summary")
# Orders that are copied in a transaction.
_STEP = 100_000
# More than what as many originals take, whose indexes are less well packed: WAL, and what an index is sorted in.
_DISK_MORE = 12 << 30

# Made of the order's id, so that who wants to read a copy can tell its id: see copy_id. At random as that is, with a
# first byte of 0: see shop.py.
_NEW_ID = "CAST('00' || substr(md5(CAST({old} AS text) || ':' || c.number), 3) AS uuid)"
# The id of an order, as it stands in a message, has the same length in each.
_RENAMED = (
    "overlay({value} PLACING convert_to(CAST({new} AS text), 'UTF8')"
    " FROM position(convert_to(CAST({old} AS text), 'UTF8') IN {value}))"
)
_COPIES = "generate_series(CAST(%(first)s AS int), CAST(%(last)s AS int)) AS c (number)"
_POSITION = "CAST(%(head)s AS bigint) + (c.number - 1) * CAST(%(count)s AS bigint) + p.number"

# The originals, in each session.
_WRITTEN: tuple[LiteralString, ...] = (
    """
    CREATE TEMP TABLE placed AS
    SELECT row_number() OVER (ORDER BY e.position) AS number, e.position, r.subject_id AS order_id,
        r.request_id, r.fingerprint, r.version AS order_version, r.created_at,
        e.kind, e.recorded_at, e.payload, e.subject_id, e.envelope, e.mark, e.version
    FROM tandem_write.event AS e JOIN tandem_write.receipt AS r USING (position) WHERE e.kind = 'order_placed'""",
    "CREATE TEMP TABLE ordered AS SELECT * FROM tandem_write.customer_order",
    "CREATE TEMP TABLE line AS SELECT * FROM tandem_write.order_line",
    """
    CREATE TEMP TABLE task AS
    SELECT p.number, t.number AS task_number, t.reaction, t.key, t.kind, t.type, t.payload, t.request_id,
        t.causation_id, t.correlation_id, t.at, t.first_at, t.created_at
    FROM tandem_write.reaction_task AS t JOIN placed AS p ON p.position = t.position AND p.order_id = t.key""",
)
_WRITE = (
    f"""
    INSERT INTO tandem_write.customer_order (id, version, customer_id, status, currency, total, placed_at)
    SELECT {_NEW_ID.format(old="o.id")}, o.version, o.customer_id, o.status, o.currency, o.total, o.placed_at
    FROM {_COPIES}, ordered AS o""",
    f"""
    INSERT INTO tandem_write.order_line
    SELECT {_NEW_ID.format(old="l.order_id")}, l.line_number, l.product_id, l.quantity, l.unit_price,
        l.discount_basis_points, l.line_total
    FROM {_COPIES}, line AS l""",
    f"""
    INSERT INTO tandem_write.event (position, kind, recorded_at, payload, subject_id, envelope, mark, version)
    SELECT {_POSITION}, p.kind, p.recorded_at,
        {_RENAMED.format(value="p.payload", old="p.order_id", new=_NEW_ID.format(old="p.order_id"))},
        p.subject_id, p.envelope, p.mark, p.version
    FROM {_COPIES}, placed AS p""",
    f"""
    INSERT INTO tandem_write.receipt (request_id, fingerprint, subject_id, position, version, created_at)
    SELECT {_NEW_ID.format(old="p.request_id")}, p.fingerprint, {_NEW_ID.format(old="p.order_id")},
        {_POSITION}, p.order_version, p.created_at
    FROM {_COPIES}, placed AS p""",
    f"""
    INSERT INTO tandem_write.reaction_task (reaction, position, number, key, kind, type, payload, request_id,
        causation_id, correlation_id, at, first_at, created_at)
    SELECT p.reaction, {_POSITION}, p.task_number, {_NEW_ID.format(old="p.key")}, p.kind, p.type,
        {_RENAMED.format(value="p.payload", old="p.key", new=_NEW_ID.format(old="p.key"))},
        {_NEW_ID.format(old="p.request_id")}, p.causation_id, p.correlation_id, p.at, p.first_at, p.created_at
    FROM {_COPIES}, task AS p""",
)
_WRITE_ONCE = (
    """
    UPDATE tandem_write.product AS p SET stock = p.stock - %(copies)s * s.sold
    FROM (SELECT product_id, sum(quantity) AS sold FROM tandem_write.order_line GROUP BY product_id) AS s
    WHERE s.product_id = p.id""",
    # Reactions that are behind would follow the copies while somebody measures something else.
    "UPDATE tandem_write.reaction SET position = position + CAST(%(copies)s AS bigint) * %(count)s",
    "UPDATE tandem_write.feed_head SET position = position + CAST(%(copies)s AS bigint) * %(count)s",
)

# Of the last order, and so of its last copy, which ends the feed.
_LAST_MARK = "SELECT mark FROM tandem_write.event WHERE kind = 'order_placed' ORDER BY position DESC LIMIT 1"

# The positions of the copies are those of the write database.
_VIEWED: tuple[LiteralString, ...] = (
    """
    CREATE TEMP TABLE placed AS
    SELECT row_number() OVER (ORDER BY s.placed_position) AS number, key, s.customer_id, s.placed_at,
        s.value AS summary, d.value AS details
    FROM tandem_read.order_summary AS s JOIN tandem_read.order_details AS d USING (key)""",
)
_READ = (
    f"""
    INSERT INTO tandem_read.order_details (key, position, value)
    SELECT {_NEW_ID.format(old="p.key")}, {_POSITION},
        {_RENAMED.format(value="p.details", old="p.key", new=_NEW_ID.format(old="p.key"))}
    FROM {_COPIES}, placed AS p""",
    f"""
    INSERT INTO tandem_read.order_summary (key, position, customer_id, placed_at, placed_position, value)
    SELECT {_NEW_ID.format(old="p.key")}, {_POSITION}, p.customer_id, p.placed_at, {_POSITION},
        {_RENAMED.format(value="p.summary", old="p.key", new=_NEW_ID.format(old="p.key"))}
    FROM {_COPIES}, placed AS p""",
)
_READ_ONCE = (
    "UPDATE tandem_read.projection"
    " SET position = CAST(%(head)s AS bigint) + CAST(%(copies)s AS bigint) * %(count)s, mark = %(mark)s",
)

# What a table with partitions takes is theirs.
_SIZE: LiteralString = """
    SELECT CAST(sum(pg_total_relation_size(c.oid)) AS bigint) FROM pg_class AS c
        LEFT JOIN pg_inherits AS i ON i.inhrelid = c.oid
    WHERE c.oid = ANY(CAST(%(tables)s AS regclass[])) OR i.inhparent = ANY(CAST(%(tables)s AS regclass[]))"""

_PARTITIONS: LiteralString = """
    SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = ANY(CAST(%(tables)s AS regclass[]))"""

# Of references to these tables and from them, of keys and of indexes: what takes each off, and what makes it again.
# What a partition has of its table is its table's.
_CONSTRAINTS: LiteralString = """
    SELECT format('ALTER TABLE %%s DROP CONSTRAINT %%I', conrelid::regclass, conname),
        format('ALTER TABLE %%s ADD CONSTRAINT %%I %%s', conrelid::regclass, conname, pg_get_constraintdef(oid))
            -- Copies refer to what the originals refer to.
            || CASE WHEN contype = 'f' AND (SELECT relkind FROM pg_class WHERE oid = conrelid) = 'r'
                THEN ' NOT VALID' ELSE '' END
    FROM pg_constraint
    WHERE conparentid = 0 AND contype = ANY(%(types)s)
        AND (conrelid = ANY(CAST(%(tables)s AS regclass[])) OR confrelid = ANY(CAST(%(tables)s AS regclass[])))"""
_INDEXES: LiteralString = """
    SELECT format('DROP INDEX %%s', i.indexrelid::regclass), pg_get_indexdef(i.indexrelid)
    FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
    WHERE i.indrelid = ANY(CAST(%(tables)s AS regclass[])) AND NOT c.relispartition
        AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = i.indexrelid)"""


def copy_id(order_id: str, number: int) -> str:
    """The id of copy `number` of an order, from 1."""
    digest = hashlib.md5(f"{order_id}:{number}".encode(), usedforsecurity=False).digest()
    return str(uuid.UUID(bytes=b"\0" + digest[1:]))


def bytes_of(write_url: str, read_url: str) -> tuple[int, int]:
    """The disk space that all orders take, and their number."""
    taken, count = 0, 0
    for url, tables in ((write_url, _WRITE_TABLES), (read_url, _READ_TABLES)):
        with psycopg.connect(url) as connection:
            [(size,)] = connection.execute(_SIZE, {"tables": list(tables)}).fetchall()
            [(count,)] = connection.execute(f"SELECT count(*) FROM {tables[0]}".encode()).fetchall()
        taken += size
    return taken, count


def has_room(folder: Path, write_url: str, read_url: str, orders: int, say: Callable[[str], None]) -> bool:
    taken, count = bytes_of(write_url, read_url)
    needed, free = round(taken / count * orders) + _DISK_MORE, shutil.disk_usage(folder).free
    say(f"{orders:,} orders will take {needed / 2**30:.1f} GiB at most; {folder} has {free / 2**30:.1f} GiB")
    return needed <= free


def copy_orders(
    write_url: str,
    read_url: str,
    copies: int,
    say: Callable[[str], None],
    *,
    most_seconds: float = float("inf"),
) -> None:
    """Adds so many copies of each order. All orders must be as they were placed.

    Raises TimeoutError as soon as the copies are known to take longer than that.
    """
    with psycopg.connect(write_url) as connection:
        [(head, count)] = connection.execute(
            "SELECT position, (SELECT count(*) FROM tandem_write.customer_order) FROM tandem_write.feed_head"
        ).fetchall()
        [(mark,)] = connection.execute(_LAST_MARK).fetchall()
    arguments = {"copies": copies, "head": head, "count": count, "mark": mark}
    both = (write_url, read_url)
    _execute_once(write_url, _WRITE_ONCE, arguments)
    _execute_once(read_url, _READ_ONCE, arguments)
    with psycopg.connect(read_url) as connection:
        _multiply_sales(connection, 1 + copies)
        _take_from_cards(connection, copies)
    _make_room_in_the_feed(write_url)
    again = {url: _take_off(url, tables) for url, tables in zip(both, (_WRITE_TABLES, _READ_TABLES), strict=True)}
    _Copying(both, arguments, say, most_seconds).run()
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for what, statements in zip(("keys and indexes", "references"), zip(*again.values(), strict=True), strict=True):
            began = time.monotonic()
            todo = [(url, it) for url, each in zip(again, statements, strict=True) for it in each]
            list(threads.map(_make_again, *zip(*todo, strict=True)) if todo else ())
            say(f"made again: {len(todo)} {what}, {time.monotonic() - began:.0f} s")
        began = time.monotonic()
        list(threads.map(_tidy, both))
        say(f"tidied, {time.monotonic() - began:.0f} s")
    taken, orders = bytes_of(write_url, read_url)
    say(f"{orders:,} orders take {taken / 2**30:.2f} GiB, {taken / orders:,.0f} bytes each")


class _Copying:
    """Makes all copies, range by range, in as many sessions of each database as there are processors."""

    def __init__(
        self, urls: Sequence[str], arguments: Mapping[str, int], say: Callable[[str], None], most_seconds: float
    ) -> None:
        self._urls = urls
        self._arguments = arguments
        self._say = say
        self._most_seconds = most_seconds
        self._workers = os.cpu_count() or 1
        # Nobody writes before all have the originals.
        self._prepared = threading.Barrier(self._workers)
        self._lock = threading.Lock()
        self._ranges = self._all_ranges()
        self._done = 0

    def _all_ranges(self) -> Iterator[tuple[int, int]]:
        step = max(1, _STEP // self._arguments["count"])
        for first in range(1, self._arguments["copies"] + 1, step):
            yield first, min(first + step - 1, self._arguments["copies"])

    def run(self) -> None:
        self._began = time.monotonic()
        with ThreadPoolExecutor(self._workers) as threads:
            for each in [threads.submit(self._work) for _ in range(self._workers)]:
                each.result()

    def _work(self) -> None:
        with ExitStack() as exits:
            write, read = [exits.enter_context(psycopg.connect(url, autocommit=True)) for url in self._urls]
            try:
                for connection, originals in ((write, _WRITTEN), (read, _VIEWED)):
                    # No look at each reference, and no wait for the disk at each commit.
                    connection.execute("SET session_replication_role = replica")
                    connection.execute("SET synchronous_commit = off")
                    for statement in originals:
                        connection.execute(statement)
                self._prepared.wait()
            except BaseException:
                self._prepared.abort()
                raise
            while (copies := self._next()) is not None:
                first, last = copies
                for connection, statements in ((write, _WRITE), (read, _READ)):
                    with connection.transaction():
                        for it in statements:
                            connection.execute(it, {**self._arguments, "first": first, "last": last})
                self._finished(last - first + 1)

    def _next(self) -> tuple[int, int] | None:
        with self._lock:
            return next(self._ranges, None)

    def _finished(self, copies: int) -> None:
        with self._lock:
            self._done += copies
            took = time.monotonic() - self._began
            expected = took * self._arguments["copies"] / self._done
            count = self._arguments["count"]
            self._say(f"copied {self._done * count:,} orders in {took:.0f} s; all will take some {expected:.0f} s")
            if expected > self._most_seconds:
                self._ranges = iter(())
                raise TimeoutError(f"to copy will take {expected:.0f} s, and may take {self._most_seconds:.0f} s")


def _execute_once(url: str, statements: Sequence[str], arguments: Mapping[str, int]) -> None:
    with psycopg.connect(url) as connection:
        for statement in statements:
            # Only those that it has: psycopg wants to know what type each of them is.
            used = {name: value for name, value in arguments.items() if f"%({name})s" in statement}
            connection.execute(statement.encode(), used)


def _make_room_in_the_feed(url: str) -> None:
    """Partitions up to the head and beyond, as a command server makes them while it goes on."""
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    try:
        with engine.begin() as connection:
            ensure_partitions(connection)
    finally:
        engine.dispose()


def _take_off(url: str, tables: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes references, keys and indexes off. Returns what makes keys and indexes again, and references after them."""
    with psycopg.connect(url) as connection:
        parts = connection.execute(_PARTITIONS, {"tables": list(tables)}).fetchall()
        named = [*tables, *(name for [name] in parts)]

        def of(query: LiteralString, types: str = "") -> list[tuple[str, str]]:
            return connection.execute(query, {"tables": named, "types": list(types)}).fetchall()

        references, indexes, keys = of(_CONSTRAINTS, "f"), of(_INDEXES), of(_CONSTRAINTS, "pux")
        for off, _ in (*references, *indexes, *keys):
            connection.execute(off.encode())
    return [it for _, it in (*keys, *indexes)], [it for _, it in references]


def _make_again(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET maintenance_work_mem = '1GB'")
        connection.execute("SET max_parallel_maintenance_workers = 0")
        connection.execute(statement.encode())


def _tidy(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM (ANALYZE, INDEX_CLEANUP OFF)")
        connection.execute("CHECKPOINT")


def _multiply_sales(connection: psycopg.Connection[Any], factor: int) -> None:
    rows = connection.execute("SELECT key, value FROM tandem_read.sales_summary").fetchall()
    changed = []
    for key, value in rows:
        row = SalesSummaryRow.FromString(value)
        for field, number in row.sold.ListFields():
            setattr(row.sold, field.name, factor * number)
        changed.append((row.SerializeToString(deterministic=True), key))
    connection.execute(
        "UPDATE tandem_read.sales_summary SET order_count = order_count * %(factor)s,"
        " unit_count = unit_count * %(factor)s, revenue = revenue * %(factor)s,"
        " shipping_fees = shipping_fees * %(factor)s",
        {"factor": factor},
    )
    with connection.cursor() as cursor:
        cursor.executemany("UPDATE tandem_read.sales_summary SET value = %s WHERE key = %s", changed)


def _take_from_cards(connection: psycopg.Connection[Any], copies: int) -> None:
    rows = connection.execute(
        "SELECT c.key, c.value, CAST(sum(s.unit_count) AS bigint) FROM tandem_read.product_card AS c"
        " JOIN tandem_read.sales_summary AS s ON s.product_id = c.key GROUP BY c.key"
    ).fetchall()
    changed = []
    for key, value, sold_by_all in rows:
        card = ProductCard.FromString(value)
        # The sales are multiplied already: of that, what the copies sold.
        card.available -= sold_by_all // (1 + copies) * copies
        changed.append((card.available, card.SerializeToString(deterministic=True), key))
    with connection.cursor() as cursor:
        cursor.executemany("UPDATE tandem_read.product_card SET available = %s, value = %s WHERE key = %s", changed)
