import fcntl
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shop.cli import SHOP, app
from tandem.cli.local_stack import DEFAULT_PORTS, LocalStack, Ports, choose_ports
from tandem.testing.ports import free_port

runner = CliRunner()


def options(**changes: int) -> list[str]:
    """Free ports for `tandem up`, but for those that a test sets."""
    ports = {name: free_port() for name in vars(Ports())} | changes
    return [word for name, port in ports.items() for word in (f"--{name.replace('_', '-')}-port", str(port))]


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("name", ["command", "postgres", "projector_metrics"])
def test_a_port_in_use_is_refused_with_its_number_and_option_before_anything_starts(
    name: str, taken_port: int, tmp_path: Path
) -> None:
    result = runner.invoke(app, ["up", "--data-dir", str(tmp_path / "data"), *options(**{name: taken_port})])
    assert result.exit_code == 1
    option = f"--{name.replace('_', '-')}-port"
    assert result.stderr == f"tandem: port {taken_port} of 127.0.0.1 is in use: choose another with {option}\n"
    assert not (tmp_path / "data" / "postgres").exists()


def test_a_default_port_that_an_outgoing_connection_has_is_passed_over() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as connection:
        taken = connection.getsockname()[1]
        # One that no outgoing connection gets. The first of these is wanted by another, so it is passed over.
        defaults = Ports(command=taken, query=taken - 30_000, projector=free_port())
        chosen = choose_ports({}, ["command", "projector"], defaults)
    assert taken - 30_000 < chosen.command < taken
    assert (chosen.query, chosen.projector) == (defaults.query, defaults.projector)


def test_a_port_that_a_person_names_stays_and_a_default_like_it_goes_elsewhere() -> None:
    defaults = Ports(command=free_port(), query=free_port())
    chosen = choose_ports({"query": defaults.command}, ["command", "query"], defaults)
    assert chosen.query == defaults.command
    assert chosen.command not in {defaults.command, defaults.query}


def test_a_stack_says_which_ports_it_uses_instead_of_its_defaults(tmp_path: Path) -> None:
    usual = DEFAULT_PORTS.command
    named = {name: free_port() for name in vars(DEFAULT_PORTS) if name != "command"}
    with ExitStack() as exits:
        # Where it cannot be bound, another has it already.
        with suppress(OSError):
            exits.enter_context(socket.create_server(("127.0.0.1", usual)))
        stack = LocalStack(tmp_path, named, SHOP.modules)
        stack.refuse_ports_in_use()
        port = stack.command_server.port
        assert stack.moved_ports() == [f"port {usual} of 127.0.0.1 is in use: --command-port is {port} this time"]


def test_one_port_for_two_servers_is_refused(tmp_path: Path) -> None:
    port = free_port()
    result = runner.invoke(app, ["up", "--data-dir", str(tmp_path), *options(query=port, projector=port)])
    assert result.exit_code == 1
    assert f"port {port} is wanted by both --query-port and --projector-port" in result.stderr


def test_a_port_of_what_will_not_run_may_be_in_use(taken_port: int, tmp_path: Path) -> None:
    words = options(mesh=taken_port, second_query=taken_port, query_metrics=taken_port)
    result = runner.invoke(app, ["up", "--data-dir", str(tmp_path / "data"), *words])
    assert "--query-metrics-port" in result.stderr, "the mesh's ports, which are wanted twice, are not looked at"


def test_a_data_folder_that_another_uses_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4711\n")
        lock.flush()
        result = runner.invoke(app, ["up", "--data-dir", str(tmp_path), *options()])
    assert result.exit_code == 1
    assert "another `tandem up` (process 4711) runs on" in result.stderr
    assert "--data-dir" in result.stderr


def test_a_data_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = runner.invoke(app, ["up", "--data-dir", str(tmp_path / "file"), *options()])
    assert result.exit_code == 1
    assert "cannot be used" in result.stderr


def test_status_says_which_services_cannot_be_reached_and_fails() -> None:
    port = free_port()
    words = [f"--{name}-address=127.0.0.1:{port}" for name in ("command", "query", "projector")]
    result = runner.invoke(app, ["status", *words])
    assert result.exit_code == 1
    for name in ("command_server", "query_server", "projector"):
        assert f"{name} cannot be reached at 127.0.0.1:{port}" in result.stderr
    assert "unreachable" in result.stdout


def test_status_as_json_fails_too_when_nobody_answers() -> None:
    port = free_port()
    words = [f"--{name}-address=127.0.0.1:{port}" for name in ("command", "query", "projector")]
    result = runner.invoke(app, ["status", "--json", *words])
    assert result.exit_code == 1
    assert '"well": false' in result.stdout


def test_migrate_without_settings_names_the_key_and_fails(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("TANDEM_COMMAND_DATABASE__URL", "TANDEM_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    result = runner.invoke(app, ["migrate"])
    assert result.exit_code == 2
    assert "TANDEM_COMMAND_DATABASE" in capfd.readouterr().err
