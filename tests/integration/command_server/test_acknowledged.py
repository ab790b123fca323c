"""A command server finds out that what it acknowledged is gone, and says so where all who follow the feed see it."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text

from tandem.commands.acknowledged import Acknowledged
from tandem.commands.executor import Executor
from tandem.commands.maintenance import begin_epoch
from tandem.testing.stack import wait_until
from tests.integration.command_server.conftest import Commands, WriteDatabase, submit
from tests.support.builders import register_customer


def run(database: WriteDatabase, *statements: str) -> Any:
    with database.engine.begin() as connection:
        for statement in statements:
            found = connection.execute(text(statement))
        return found.scalar() if found.returns_rows else None


def break_connections(database: WriteDatabase) -> None:
    others = "datname = current_database() AND pid <> pg_backend_pid()"
    run(database, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")
    gone = f"SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE {others} AND application_name = 'tandem-command')"
    wait_until(lambda: run(database, gone), "the executor has no connection")


def lost_position(database: WriteDatabase) -> int | None:
    found: int | None = run(database, "SELECT lost_position FROM tandem_write.feed_head")
    return found


async def fail_over(database: WriteDatabase, executor: Executor, instead: int) -> None:
    """The last two of four commits are gone, and `instead` others have come in their place, of another server."""
    for number in range(1, 5):
        await submit(executor, register_customer(number))
    run(
        database,
        "DELETE FROM tandem_write.event WHERE position > 2",
        "DELETE FROM tandem_write.receipt WHERE position > 2",
        "DELETE FROM tandem_write.customer",
        "UPDATE tandem_write.feed_head SET position = 2",
    )
    commands = Commands(database.settings)
    other = await commands.executor()
    for number in range(instead):
        await submit(other, register_customer(10 + number))
    await commands.stop()
    break_connections(database)


@pytest.mark.parametrize("instead", [0, 1, 2, 5])
async def test_what_was_acknowledged_and_is_gone_is_found_out_with_the_next_connection(
    database: WriteDatabase, commands_on: Commands, instead: int
) -> None:
    executor = await commands_on.executor()
    await fail_over(database, executor, instead)
    assert lost_position(database) is None, "the other server cannot know"
    await submit(executor, register_customer(20))
    assert lost_position(database) == 4
    with database.engine.begin() as connection:
        begin_epoch(connection)
    break_connections(database)
    await submit(executor, register_customer(21))
    assert lost_position(database) is None, "an operator has decided"


async def test_it_is_found_out_without_a_command_too(database: WriteDatabase, commands_on: Commands) -> None:
    """The readiness check looks on a connection of its own."""
    acknowledged = Acknowledged(kept_seconds=600)
    executor = await commands_on.executor(acknowledged=acknowledged)
    with database.engine.connect() as connection:
        acknowledged.look_for(connection)
    await fail_over(database, executor, 5)
    with database.engine.begin() as connection:
        acknowledged.look_for(connection)
    assert lost_position(database) == 4


def purge(database: WriteDatabase) -> None:
    run(database, "DELETE FROM tandem_write.receipt")


def new_epoch(database: WriteDatabase) -> None:
    with database.engine.begin() as connection:
        begin_epoch(connection)
    run(database, "DELETE FROM tandem_write.event", "UPDATE tandem_write.feed_head SET position = 0")


@pytest.mark.parametrize("change", [lambda _: None, purge, new_epoch], ids=["nothing", "purge", "new_epoch"])
async def test_what_is_there_or_was_purged_or_is_of_an_epoch_before_is_not_lost(
    database: WriteDatabase, commands_on: Commands, change: Callable[[WriteDatabase], None]
) -> None:
    executor = await commands_on.executor(acknowledged=Acknowledged(kept_seconds=0 if change is purge else 600))
    await submit(executor, register_customer(1))
    change(database)
    break_connections(database)
    await submit(executor, register_customer(2))
    assert lost_position(database) is None
