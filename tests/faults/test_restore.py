"""The write database is restored from a backup, as docs/runbook.md says: one command sets everything right."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from commerce.command.v1 import command_service_pb2 as commands
from commerce.query.v1 import query_service_pb2 as queries
from tandem.cli.embedded import Postgres
from tandem.testing.ports import free_port
from tandem.testing.stack import until, wait_until
from tests.faults.test_history import made_of_the_feed_alone, outcome, place
from tests.support.builders import identity, register_customer
from tests.support.replicas import FAST, base_backup, new_folder, run_program
from tests.support.shop import open_shop, until_answered
from tests.support.stack import AsyncStubs, Databases, Stack

QUICK = {"FOLLOW__RETRY_SECONDS": "0.2", "FOLLOW__HEARTBEAT_SECONDS": "0.2"}
ERASED_LATER, REGISTERED_LATER = 2, 77


class Shop:
    """The three services on a PostgreSQL of their own for the write side, with an archive of its log."""

    def __init__(self, databases: Databases, folder: Path, logs: Path) -> None:
        self.folder = folder
        self.ledger = logs / "ledger"
        self.archive = new_folder(folder / "archive")
        self.settings = FAST | {"archive_mode": "on", "archive_command": f"cp %p {self.archive}/%f"}
        self.postgres = Postgres(folder / "data", free_port(), settings=self.settings)
        self.postgres.start()
        settings = {"PROJECTOR": QUICK, "COMMAND": {"LEDGER__FILE": str(self.ledger)}}
        self.stack = Stack(databases, logs, feed_server=Databases(self.postgres), settings=settings)

    def close(self) -> None:
        self.stack.stop()
        self.postgres.stop()

    def tandem_restore(self) -> str:
        return tandem_restore(self.stack, self.ledger)

    @contextmanager
    def command_server_stopped(self) -> Iterator[None]:
        self.stack.command_server.stop()
        yield
        self.stack.command_server.start()


def tandem_restore(stack: Stack, ledger: Path) -> str:
    """What a person types, with the services' settings in the environment."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TANDEM_")} | {
        "TANDEM_COMMAND_DATABASE__URL": stack.write_url,
        "TANDEM_PROJECTOR_FEED_DATABASE__URL": stack.write_url,
        "TANDEM_PROJECTOR_READ_DATABASE__URL": stack.read_url,
    }
    command = [sys.executable, "-c", "from shop.cli import app; app()", "restore", str(ledger)]
    done = subprocess.run(
        [*command, "--projector-address", stack.projector.address],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
async def shop(databases: Databases, servers_folder: Path, tmp_path: Path) -> AsyncIterator[Shop]:
    made = Shop(databases, servers_folder, tmp_path)
    try:
        made.stack.start()
        yield made
    finally:
        made.close()


async def test_a_restore_of_a_dump_and_one_to_a_point_in_time_lose_what_came_later_and_no_erasure(
    shop: Shop,
) -> None:
    """It takes some 20 s: both ways, one after the other, with the same services."""
    async with shop.stack.async_stubs() as stubs:
        await open_shop(stubs.commands)
        kept = [await place(stubs, number) for number in range(1, 4)]

        # pg_dump, and more comes: an epoch that the backup does not know, too.
        dump = str(new_folder(shop.folder / "dumps") / "dump")
        run_program("pg_dump", "-Fc", "-d", shop.stack.write_url, "-f", dump)
        shop.stack.command_server.run("begin-epoch")
        lost = await come_later(stubs)
        with shop.command_server_stopped():
            database = shop.stack.write_url.rsplit("/", 1)[1]
            with psycopg.connect(shop.postgres.url("postgres"), autocommit=True) as connection:
                connection.execute(f"DROP DATABASE {database} WITH (FORCE)")
                connection.execute(f"CREATE DATABASE {database}")
            run_program("pg_restore", "-d", shop.stack.write_url, "--exit-on-error", dump)
            said = await asyncio.to_thread(shop.tandem_restore)
        assert "of 2 erasures that were written down, 1 were not in the backup" in said
        assert said.rstrip().endswith("events")
        await all_is_as_in_the_backup(stubs, kept, lost)

        # A base backup and the log behind it, up to a point that has a name.
        base_backup(shop.postgres, shop.folder / "base")
        also_kept = [await place(stubs, 30)]
        with psycopg.connect(shop.postgres.url("postgres"), autocommit=True) as connection:
            connection.execute("SELECT pg_create_restore_point('before')")
        lost = await come_later(stubs, 3, 78)
        with psycopg.connect(shop.postgres.url("postgres"), autocommit=True) as connection:
            connection.execute("SELECT pg_switch_wal()")
        with shop.command_server_stopped():
            shop.postgres.stop()
            restored = {
                "restore_command": f"cp {shop.archive}/%f %p",
                "recovery_target_name": "before",
                "recovery_target_action": "promote",
            }
            (shop.folder / "base" / "recovery.signal").touch()
            shop.postgres = Postgres(shop.folder / "base", shop.postgres.port, settings=shop.settings | restored)
            shop.postgres.start()
            said = await asyncio.to_thread(shop.tandem_restore)
        assert "of 4 erasures that were written down, 1 were not in the backup" in said
        await all_is_as_in_the_backup(stubs, [*kept, *also_kept], lost, erased=3)
    await made_of_the_feed_alone(shop.stack)


async def come_later(
    stubs: AsyncStubs, erased: int = ERASED_LATER, registered: int = REGISTERED_LATER
) -> list[tuple[str, str]]:
    """Orders; a customer is erased, and one comes and is erased. Returns the orders with their tokens."""
    lost = [await place(stubs, number) for number in range(registered, registered + 3)]
    await until_answered(stubs.commands.RegisterCustomer, register_customer(registered))
    for number in (erased, registered):
        await until_answered(stubs.commands.EraseCustomer, erasure(number))
    return lost


def erasure(number: int) -> commands.EraseCustomerRequest:
    return commands.EraseCustomerRequest(
        customer_id=identity("customer", number), request_id=identity("erasure", number)
    )


async def all_is_as_in_the_backup(
    stubs: AsyncStubs, kept: list[tuple[str, str]], lost: list[tuple[str, str]], erased: int = ERASED_LATER
) -> None:
    """But for who was erased since."""
    order, token = await place(stubs, 40 + erased)
    assert await outcome(stubs, order, token) == "found"
    assert {await outcome(stubs, it, token) for it, _ in kept} == {"found"}
    assert {await outcome(stubs, it, token) for it, _ in lost} == {"NOT_FOUND"}
    assert {await outcome(stubs, *it) for it in (*kept, *lost)} == {"TOKEN_EPOCH_MISMATCH"}
    request = queries.GetCustomerRequest(customer_id=identity("customer", erased))
    customer = (await stubs.queries.GetCustomer(request)).customer
    assert customer.HasField("erased_at")
    assert not customer.name


@pytest.fixture
async def lite(databases: Databases, tmp_path: Path) -> AsyncIterator[Stack]:
    stack = Stack(
        databases,
        tmp_path,
        lite=True,
        settings={"PROJECTOR": QUICK, "COMMAND": {"LEDGER__FILE": str(tmp_path / "ledger")}},
    )
    yield stack.start()
    stack.stop()


async def test_one_database_for_both_sides_is_restored_with_all_services_stopped_and_its_views_can_be_made_anew(
    lite: Stack, servers_folder: Path, databases: Databases, tmp_path: Path
) -> None:
    async with lite.async_stubs() as stubs:
        await open_shop(stubs.commands)
        kept = [await place(stubs, number) for number in range(1, 4)]
        assert {await outcome(stubs, *it) for it in kept} == {"found"}
        dump = str(new_folder(servers_folder / "dumps") / "dump")
        run_program("pg_dump", "-Fc", "-d", lite.write_url, "-f", dump)
        lost = [await place(stubs, number) for number in range(11, 14)]
        for service in lite.services:
            service.stop()
        databases.drop(lite.write_url)
        databases.copy("template1", lite.write_url.rsplit("/", 1)[1])
        run_program("pg_restore", "-d", lite.write_url, "--exit-on-error", dump)
        lite.projector.start()
        said = await asyncio.to_thread(tandem_restore, lite, tmp_path / "ledger")
        assert said.rstrip().endswith("events")
        lite.command_server.start()
        lite.query_server.start()
        order, token = await place(stubs, 21)
        assert await outcome(stubs, order, token) == "found"
        assert {await outcome(stubs, it, token) for it, _ in kept} == {"found"}
        assert {await outcome(stubs, it, token) for it, _ in lost} == {"NOT_FOUND"}

        # As when projectors ran during the restore.
        lite.projector.stop()
        columns = "view, feed_epoch, position, generation"
        with psycopg.connect(lite.read_url, autocommit=True) as connection:
            connection.execute("ALTER TABLE tandem_read.projection DROP CONSTRAINT projection_pkey")
            connection.execute(
                f"INSERT INTO tandem_read.projection ({columns}) SELECT {columns} FROM tandem_read.projection"
            )
            lite.projector.launch()
            wait_until(lambda: "nothing is projected" in lite.projector.log_tail(), "the projector says so")
            assert "tandem_read.projection has two rows of " in lite.projector.log_tail()
            lite.projector.stop()
            connection.execute("DROP SCHEMA tandem_read, tandem_read_other, tandem_read_passage CASCADE")
        lite.projector.run("migrate")
        lite.projector.start()
        order, token = await place(stubs, 22)

        async def is_found() -> bool:
            return await outcome(stubs, order, token) == "found"

        # The query server says until then that no projector has begun the view.
        await until(is_found, "the views are made anew")
        assert {await outcome(stubs, it, token) for it, _ in kept} == {"found"}
