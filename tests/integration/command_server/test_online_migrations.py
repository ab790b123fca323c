"""A write database with a long feed is migrated while orders are placed, and goes on from where a migration failed."""

import os
import threading
import uuid
from collections.abc import Callable
from datetime import UTC

import psycopg
import pytest
from google.protobuf.message import DecodeError
from pydantic import SecretStr

from command_server.app import MIGRATIONS
from commerce.event.v1.event_pb2 import Event, OrderPlaced
from tandem.feed.table import WRITE
from tandem.runtime.migrations import migrate
from tandem.runtime.settings import DatabaseSettings
from tandem.testing.stack import wait_until
from tests.support.builders import identity
from tests.support.events import at
from tests.support.migrating import migrate_as_one_line

EVENTS = 200_000
# Of each so many events one places an order.
EACH = 10
# How many positions a step of migration 0005 looks at.
STEP = 2_000
CUSTOMER = identity("customer", 1)


def placed(number: int) -> bytes:
    return Event(order_placed=OrderPlaced(order_id=order_id(number), placed_at=at(number))).SerializeToString()


def order_id(number: int) -> str:
    return str(uuid.UUID(int=number))


@pytest.fixture
def before(fresh_database: Callable[[], str]) -> str:
    """A long feed and its orders, as the version before `placed_at` left them."""
    url = fresh_database()
    migrate(DatabaseSettings(url=SecretStr(url)), MIGRATIONS, WRITE, "0004")
    with psycopg.connect(url) as connection:
        connection.execute("SET search_path = tandem_write")
        connection.execute("INSERT INTO customer VALUES (%s, 1, '', '', '', '')", [CUSTOMER])
        connection.execute(
            "INSERT INTO event (position, kind, payload)"
            " SELECT n, 'stock_adjusted', '' FROM generate_series(1, %s::bigint) AS n WHERE n %% %s::int <> 0",
            [EVENTS, EACH],
        )
        cursor = connection.cursor()
        with cursor.copy("COPY event (position, kind, payload) FROM STDIN") as copy:
            for number in range(EACH, EVENTS + 1, EACH):
                copy.write_row((number, "order_placed", placed(number)))
        with cursor.copy("COPY customer_order (id, version, customer_id, status, currency, total) FROM STDIN") as copy:
            for number in range(EACH, EVENTS + 1, EACH):
                copy.write_row((order_id(number), 1, CUSTOMER, 1, "EUR", 100))
        connection.execute("UPDATE feed_head SET position = %s", [EVENTS])
    return url


class Shopping(threading.Thread):
    """Places orders and changes older ones, as a command server of the version before does, until it is refused."""

    def __init__(self, url: str) -> None:
        super().__init__(name="shopping")
        self._url = url
        self.orders = 0
        self.refusal: Exception | None = None

    def run(self) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute("SET search_path = tandem_write")
            wait_until(lambda: progress(connection), "the migration works while others do")
            while self.refusal is None:
                try:
                    self.order(connection)
                    self.orders += 1
                except psycopg.errors.IntegrityError as error:
                    self.refusal = error

    def order(self, connection: psycopg.Connection) -> None:
        with connection.transaction():
            older = order_id(EACH * (1 + self.orders % (EVENTS // EACH)))
            connection.execute("UPDATE customer_order SET version = version + 1 WHERE id = %s", [older])
            number = EVENTS + self.orders + 1
            connection.execute(
                "INSERT INTO customer_order (id, version, customer_id, status, currency, total)"
                " VALUES (%s, 1, %s, 1, 'EUR', 100)",
                [order_id(number), CUSTOMER],
            )
            connection.execute(
                "WITH head AS (UPDATE feed_head SET position = position + 1 RETURNING position)"
                " INSERT INTO event (position, kind, payload) SELECT position, 'order_placed', %s FROM head",
                [placed(number)],
            )


def progress(connection: psycopg.Connection) -> int:
    if connection.execute("SELECT to_regclass('backfill')").fetchall() == [(None,)]:
        return 0
    [[after]] = connection.execute("SELECT max(after) FILTER (WHERE after <> '') FROM backfill WHERE name LIKE '0005%'")
    return int(after or 0)


def test_a_migration_of_a_long_feed_holds_nobody_up_for_longer_than_a_step(before: str) -> None:
    shopping = Shopping(before)
    shopping.start()
    migrate(DatabaseSettings(url=SecretStr(before)), MIGRATIONS, WRITE, "0005")
    shopping.join()
    assert isinstance(shopping.refusal, psycopg.errors.CheckViolation | psycopg.errors.NotNullViolation)
    assert shopping.orders > 20
    with psycopg.connect(before) as connection:
        rows = connection.execute("SELECT id, placed_at FROM tandem_write.customer_order").fetchall()
        together = connection.execute("SELECT count(*) FROM tandem_write.customer_order GROUP BY xmin").fetchall()
    # What one transaction wrote is what it held locks of.
    assert max(together) <= (STEP,)
    assert len(rows) == EVENTS // EACH + shopping.orders
    assert all(moment.timestamp() == at(row_id.int).ToNanoseconds() / 1e9 for row_id, moment in rows)


def test_a_migration_that_failed_goes_on_from_its_last_step(before: str) -> None:
    settings = DatabaseSettings(url=SecretStr(before))
    half = EVENTS // 2
    change = "UPDATE event SET payload = %s WHERE position = %s"
    written = "SELECT id, xmin FROM customer_order WHERE placed_at <= %s ORDER BY id"
    with psycopg.connect(before, autocommit=True) as connection:
        connection.execute("SET search_path = tandem_write")
        connection.execute(change, [b"\xff", half])
        with pytest.raises(DecodeError):
            migrate(settings, MIGRATIONS, WRITE)
        assert progress(connection) == half - STEP
        stopped = connection.execute(written, [at(half - STEP).ToDatetime(tzinfo=UTC)]).fetchall()
        assert len(stopped) == (half - STEP) // EACH
        connection.execute(change, [placed(half), half])
        migrate(settings, MIGRATIONS, WRITE)
        assert progress(connection) == EVENTS
        again = connection.execute(written, [at(half - STEP).ToDatetime(tzinfo=UTC)]).fetchall()
    assert again == stopped, "what was done is not done again"


def test_receipts_are_found_after_they_are_parted_and_servers_of_the_version_before_go_on(
    fresh_database: Callable[[], str],
) -> None:
    url = fresh_database()
    settings = DatabaseSettings(url=SecretStr(url))
    migrate_as_one_line(settings, MIGRATIONS, WRITE, "0015")
    role, kept, late = f"test_before_{os.getpid()}", str(uuid.UUID(int=1)), str(uuid.UUID(int=2))
    store = (
        "INSERT INTO tandem_write.receipt (request_id, fingerprint, subject_id, position, version)"
        " VALUES (%s, '', gen_random_uuid(), 1, 1)"
    )
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute(f"CREATE ROLE {role}")
        owner.execute(f"GRANT USAGE ON SCHEMA tandem_write TO {role}")
        owner.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON tandem_write.receipt TO {role}")
        owner.execute(store, [kept])
        with psycopg.connect(url, autocommit=True) as before:
            before.execute(f"SET ROLE {role}")
            before.execute("SELECT FROM tandem_write.receipt WHERE request_id = %s", [kept], prepare=True)
            migrate(settings, MIGRATIONS, WRITE)
            found = before.execute("SELECT FROM tandem_write.receipt WHERE request_id = %s", [kept], prepare=True)
            assert len(found.fetchall()) == 1
            before.execute(store, [late])
            with pytest.raises(psycopg.errors.UniqueViolation):
                before.execute(store, [kept])
            # What a server of this version needs, without a new GRANT.
            before.execute("UPDATE tandem_write.receipt_period SET ended_at = now() WHERE period = 0")
            before.execute("TRUNCATE tandem_write.receipt_0")
        owner.execute(f"DROP OWNED BY {role}")
        owner.execute(f"DROP ROLE {role}")
