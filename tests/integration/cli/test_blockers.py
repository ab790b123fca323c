"""An operator finds who holds others up, and ends it, without a service that runs."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from shop.cli import app
from tandem.testing.stack import wait_until

LOCK = "SELECT pg_advisory_lock(%s)"


@pytest.fixture
def database(fresh_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> str:
    url = fresh_database()
    for name in ("COMMAND_DATABASE", "PROJECTOR_FEED_DATABASE", "PROJECTOR_READ_DATABASE"):
        monkeypatch.setenv(f"TANDEM_{name}__URL", url)
    return url


@pytest.fixture
def connect(database: str) -> Iterator[Callable[[str], "psycopg.Connection[Any]"]]:
    with ExitStack() as exits:
        yield lambda name: exits.enter_context(psycopg.connect(database, application_name=name))


Connect = Callable[[str], "psycopg.Connection[Any]"]


def blockers(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = CliRunner().invoke(app, ["blockers", *words]).exit_code
    said = capfd.readouterr()
    return code, said.out, said.err


def sessions(side: str = "write") -> list[dict[str, Any]]:
    result = CliRunner().invoke(app, ["blockers", "--of", side, "--json"])
    assert result.exit_code == 0
    found: list[dict[str, Any]] = json.loads(result.stdout)[side]["sessions"]
    return found


def pid(connection: "psycopg.Connection[Any]") -> int:
    return connection.info.backend_pid


def until_it_waits(connect: Connect, waiter: "psycopg.Connection[Any]") -> None:
    """By the database's own word: to ask `tandem blockers` starts a process."""
    with connect("a look") as look:
        # Each look shows what is then: within a transaction all show the same.
        look.autocommit = True
        waits = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s"
        wait_until(lambda: look.execute(waits, (pid(waiter),)).fetchone() == (True,), "it waits for the lock")


@pytest.mark.usefixtures("forked_actions")
@pytest.mark.parametrize("side", ["write", "read"])
def test_who_holds_a_lock_is_shown_with_how_many_wait_and_may_be_ended(
    side: str, connect: Connect, capfd: pytest.CaptureFixture[str]
) -> None:
    holder, waiter = connect("someone's [report]"), connect("tandem-commands")
    holder.execute(LOCK, (1,))
    waits = threading.Thread(target=waiter.execute, args=(LOCK, (1,)))
    waits.start()
    try:
        until_it_waits(connect, waiter)
        [found] = [it for it in sessions(side) if it["holds_up"]]
        assert found["pid"] == pid(holder)
        assert found["holds_up"] == 1
        assert found["program"] == "someone's [report]"
        assert found["state"] == "idle in transaction"
        shown = CliRunner().invoke(app, ["blockers"]).stdout
        assert f"{pid(holder)} postgres someone's [report]" in shown
        assert "holds 1 sessions up" in shown
    finally:
        code, said, _ = blockers(capfd, "--of", side, "--end", str(pid(holder)))
    waits.join(20)
    assert code == 0
    assert f"{pid(holder)} (someone's [report], postgres) is ended" in said
    assert not waits.is_alive()
    with pytest.raises(psycopg.OperationalError):
        holder.execute("SELECT 1")


@pytest.mark.usefixtures("forked_actions")
def test_who_holds_a_snapshot_is_shown_and_who_holds_nothing_is_not_ended(
    connect: Connect, capfd: pytest.CaptureFixture[str]
) -> None:
    idle, dump, ours = connect("a console"), connect("pg_dump"), connect("tandem-projector")
    for it in (dump, ours):
        it.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        it.execute("SELECT 1")
    assert [it["pid"] for it in sessions()] == [pid(dump)]
    for it in (idle, ours):
        code, _, error = blockers(capfd, "--of", "write", "--end", str(pid(it)))
        assert code == 1
        assert f"command_server: {pid(it)} holds nobody up in this database: `tandem blockers` shows who does" in error
        it.execute("SELECT 1")


@pytest.mark.usefixtures("forked_actions")
def test_a_session_of_ours_is_shown_while_others_wait_for_it_and_not_ended(
    connect: Connect, capfd: pytest.CaptureFixture[str]
) -> None:
    holder, waiter = connect("tandem-projector"), connect("a console")
    holder.execute(LOCK, (2,))
    waits = threading.Thread(target=waiter.execute, args=(LOCK, (2,)))
    waits.start()
    try:
        until_it_waits(connect, waiter)
        [found] = [it for it in sessions() if it["holds_up"]]
        assert found["pid"] == pid(holder)
        code, _, error = blockers(capfd, "--of", "write", "--end", str(pid(holder)))
    finally:
        holder.rollback()
        holder.execute("SELECT pg_advisory_unlock_all()")
    waits.join(20)
    assert code == 1
    assert "is a session of Tandem's own (tandem-projector)" in error


def test_a_database_that_does_not_answer_is_said_and_the_other_is_shown(
    database: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert database
    monkeypatch.setenv("TANDEM_COMMAND_DATABASE__URL", "postgresql://postgres@127.0.0.1:1/none")
    result = CliRunner().invoke(app, ["blockers", "--json"])
    assert result.exit_code == 1
    assert list(json.loads(result.stdout)) == ["read"]
    assert "command_server: blockers failed: " in capfd.readouterr().err


def test_to_end_one_the_database_is_named(database: str) -> None:
    assert database
    result = CliRunner().invoke(app, ["blockers", "--end", "12"])
    assert result.exit_code == 2
    assert "--end wants --of" in result.stderr


@pytest.mark.usefixtures("forked_actions")
def test_an_epoch_is_begun_by_a_word_of_tandem(database: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert database
    assert CliRunner().invoke(app, ["migrate"]).exit_code == 0
    capfd.readouterr()
    assert CliRunner().invoke(app, ["feed", "begin-epoch", "--json"]).exit_code == 0
    assert json.loads(capfd.readouterr().out)["epoch"]
