"""Somebody holds a snapshot, as a dump does for hours: what is looked up all the time takes no longer for it.

Counted in blocks that PostgreSQL looks at, which is what takes the time and is the same on every machine: with plans
that were made while the tables were small, and again when PostgreSQL has taken statistics of their versions.
"""

import uuid
from collections.abc import Iterator, Sequence
from typing import LiteralString

import psycopg
import pytest
from pydantic import SecretStr

from projector.app import VIEWS
from query_server.search.statements import SESSION
from tandem.commands.executor import FREE_HEAD, create_executor_engine
from tandem.commands.receipts import StoredEvent, append, find_receipts
from tandem.commands.settings import ExecutorSettings
from tandem.feed.head import read_head
from tandem.projection.changes import ViewChanges
from tandem.projection.statements import Move, announce, move_views
from tandem.queries.store import ONE_PLAN, Store
from tandem.read_store.announcement import Announcement
from tandem.runtime.database import create_database_engine, driver_under
from tandem.runtime.settings import DatabaseSettings
from tandem.runtime.snapshots import SnapshotWatch
from tandem.testing.stack import wait_until
from tests.support.stack import Databases

MANY = 3_000
# A commit looks at some ten of them, and a look-up at three or four: leaves of an index, and the row.
FEW = 25
FLUSH: LiteralString = "SELECT pg_stat_force_next_flush()"


class Held:
    """Both sides in one database, of which somebody holds a snapshot."""

    def __init__(self, url: str) -> None:
        self.settings = DatabaseSettings(url=SecretStr(url))
        self._watching = psycopg.connect(url, autocommit=True)
        self._holder = psycopg.connect(url)
        self._holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        self._holder.execute("SELECT FROM tandem_write.feed_head")

    def blocks(self, table: str) -> int:
        """Blocks of a table and its indexes that were looked at until now."""
        [[count]] = self._watching.execute(
            "SELECT heap_blks_hit + heap_blks_read + idx_blks_hit + idx_blks_read"
            " FROM pg_statio_user_tables WHERE relname = %s",
            [table],
        )
        return int(count)

    def take_statistics(self, table: LiteralString) -> None:
        """As autovacuum does once a minute, which the tests' server does not run."""
        self._watching.execute(f"VACUUM ANALYZE {table}")
        self._watching.execute(FLUSH)

    def let_go(self) -> None:
        self._holder.close()

    def close(self) -> None:
        self._holder.close()
        self._watching.close()


@pytest.fixture
def held(databases: Databases) -> Iterator[Held]:
    url = databases.create("write", "read")
    held = Held(url)
    yield held
    held.close()
    databases.drop(url)


def test_commands_take_no_longer(held: Held) -> None:
    engine = create_executor_engine(held.settings, ExecutorSettings(threads=1))
    with engine.connect() as connection:
        driver = driver_under(connection)

        def command() -> None:
            find_receipts(connection, [str(uuid.uuid4())])()
            append(connection, [StoredEvent("order_paid", b"", None)], [])()

        def read() -> None:
            assert read_head(connection).position == count

        def look_whether_it_is_free() -> None:
            assert driver.execute(FREE_HEAD).rowcount == 1

        held.take_statistics("tandem_write.feed_head")
        for _ in range(MANY):
            command()
        count = MANY
        for _ in range(2):
            driver.execute(FLUSH)
            before = held.blocks("feed_head")
            for _ in range(100):
                command()
            count += 100
            driver.execute(FLUSH)
            assert (held.blocks("feed_head") - before) / 100 < FEW
            for look in (read, look_whether_it_is_free):
                before = held.blocks("feed_head")
                for _ in range(100):
                    look()
                driver.execute(FLUSH)
                assert (held.blocks("feed_head") - before) / 100 < FEW
            held.take_statistics("tandem_write.feed_head")
    engine.dispose()


def test_batches_and_reads_of_views_take_no_longer(held: Held) -> None:
    projections = list(VIEWS.projections.values())
    epoch, owner = uuid.uuid4(), uuid.uuid4()
    engine = create_database_engine(held.settings, name="test", pool_size=1, by_key=True, autocommit=True)
    with engine.connect() as connection:
        driver = driver_under(connection)

        def move(position: int) -> None:
            changes = ViewChanges()
            move_views(driver, epoch, owner, [Move(it, position, position + 1, changes) for it in projections])

        for it in projections:
            driver.execute(
                "INSERT INTO tandem_read.projection (view, feed_epoch, position, owner) VALUES (%s, %s, 0, %s)",
                [it.view, epoch, owner],
            )
        # As on every other day: what is planned from now on is planned for a small table.
        held.take_statistics("tandem_read.projection")
        for position in range(MANY):
            move(position)
        for position in (MANY, MANY + 1):
            driver.execute(FLUSH)
            before = held.blocks("projection")
            move(position)
            driver.execute(FLUSH)
            assert held.blocks("projection") - before < FEW * len(projections)
            before = held.blocks("projection")
            announce(driver, owner, Announcement(epoch, {it.view: position + 1 for it in projections}, {}))
            driver.execute(FLUSH)
            assert held.blocks("projection") - before < 4 * len(projections)
            for statement in (
                "INSERT INTO tandem_read.search_word (key, position, word, value)"
                " VALUES (gen_random_uuid(), 1, 'pot', '')",
                "UPDATE tandem_read.search_word SET word = 'kettle'",
                "DELETE FROM tandem_read.search_word",
            ):
                before = held.blocks("projection")
                assert driver.execute(statement).rowcount == 1
                driver.execute(FLUSH)
                assert held.blocks("projection") - before < 2 * FEW, "what a search sees is another: a trigger notes it"
            for session in (ONE_PLAN, SESSION, ()):
                assert blocks_of_reads(held, session, position + 1) < FEW * (1 + len(projections))
            held.take_statistics("tandem_read.projection")
    engine.dispose()


def blocks_of_reads(held: Held, session: Sequence[str], position: int) -> float:
    """Blocks that a read by key looks at, together with one of all positions."""
    before = held.blocks("projection")
    store = Store(held.settings, connections=1, session=session)
    for _ in range(100):
        rows, parked, as_of = store.rows("order_details", [uuid.uuid4().hex])
        assert (rows, parked, as_of.position) == ({}, {}, position)
        assert {it.position for it in store.positions().values()} == {position}
    # What a session has done is counted when it ends.
    store.close()
    wait_until(lambda: held.blocks("projection") > before, "the session has ended")
    return (held.blocks("projection") - before) / 100


def test_for_how_long_it_is_held_is_seen_by_any_role(held: Held) -> None:
    watch = SnapshotWatch("write")
    with psycopg.connect(held.settings.url.get_secret_value(), autocommit=True) as connection:
        # One of PostgreSQL's own that may do nothing beside.
        connection.execute("SET ROLE pg_signal_backend")
        assert watch.look(connection) == 0
        wait_until(lambda: watch.look(connection) > 0, "it is the same one")
        held.let_go()
        wait_until(lambda: watch.look(connection) == 0, "nobody holds one any more")
