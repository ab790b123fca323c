"""Pools whose connections a server has ended while nobody used them."""

from collections.abc import Callable

import psycopg
from pydantic import SecretStr
from sqlalchemy import Connection

from tandem.runtime.database import create_database_engine, driver_of, read_pooled
from tandem.runtime.settings import DatabaseSettings
from tandem.testing.stack import wait_until


def session(connection: Connection) -> int:
    with driver_of(connection) as driver:
        [(pid,)] = driver.send("SELECT pg_backend_pid()")
    return int(pid)


def test_what_is_read_finds_a_new_connection_where_all_of_the_pool_have_ended(
    fresh_database: Callable[[], str],
) -> None:
    """It is tried twice, and the second of those that have ended is no better than the first."""
    url = fresh_database()
    engine = create_database_engine(DatabaseSettings(url=SecretStr(url)), name="pooled", pool_size=3, autocommit=True)
    try:
        with engine.connect() as one, engine.connect() as other, engine.connect() as third:
            before = {session(one), session(other), session(third)}
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) AS pid", (list(before),))
            there = "SELECT FROM pg_stat_activity WHERE pid = ANY(%s)"
            wait_until(lambda: not admin.execute(there, (list(before),)).fetchall(), "they have ended")
        assert read_pooled(engine, session) not in before
    finally:
        engine.dispose()
