"""G4, G6: a commit of a command that waits, for a disk or for a standby, holds up no announcement of views.

PostgreSQL lets one transaction at a time commit that notifies, whatever database of the server it is of.
"""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from tandem.cli.embedded import Memcached, Postgres
from tandem.testing.ports import free_port
from tandem.testing.stack import until, up_to
from tests.faults.test_history import place
from tests.support.shop import open_shop
from tests.support.stack import Databases, Stack

# Longer than any announcement takes.
PATIENCE = "5s"
_NOTIFY = "SELECT pg_notify('nobody', '')"


@pytest.fixture
def server(servers_folder: Path) -> Iterator[Postgres]:
    """Of both sides, since both are on one server where Tandem is small."""
    server = Postgres(servers_folder / "waits", free_port())
    server.start()
    yield server
    server.stop()


async def test_views_are_announced_while_a_commit_of_a_command_waits_for_a_standby(
    server: Postgres, memcached_nodes: Callable[[int], list[Memcached]], tmp_path: Path
) -> None:
    stack = Stack(Databases(server), tmp_path, nodes=memcached_nodes(up_to(1))).start()
    try:
        async with stack.async_stubs() as stubs:
            await open_shop(stubs.commands)
            with psycopg.connect(stack.write_url, autocommit=True) as admin:
                wait_for_standby(admin, "'nobody'")
                placed = asyncio.create_task(place(stubs, 1))
                try:
                    await until(lambda: waits(admin), "the order's commit waits")
                    with psycopg.connect(stack.read_url, autocommit=True) as other:
                        other.execute(f"SET synchronous_commit = off; SET lock_timeout = '{PATIENCE}'")
                        other.execute(_NOTIFY)
                    assert not placed.done(), "it waits still"
                finally:
                    wait_for_standby(admin, "DEFAULT")
            await placed
    finally:
        stack.stop()


def wait_for_standby(admin: psycopg.Connection[object], name: str) -> None:
    admin.execute(f"ALTER SYSTEM SET synchronous_standby_names = {name}")
    admin.execute("SELECT pg_reload_conf()")


async def waits(admin: psycopg.Connection[object]) -> bool:
    found = admin.execute(
        "SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND application_name = 'tandem-command'"
    ).fetchall()
    return bool(found)
