"""What holds for all commands of `tandem`."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from commerce.projection.v1.projection_service_pb2 import CACHE_NODE_STATE_SERVING, CacheNode, ListCacheNodesResponse
from shop.cli import app
from tandem.cli import cache_nodes
from tandem.testing.ports import free_port

runner = CliRunner()

WITHOUT_JSON = {
    "up": "runs until it is stopped, and prints what it does",
    "migrate": "prints the log of the services' own migrations, which is JSON, and no data",
    "restore": "prints how far it is, and no data",
}


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


COMMANDS = dict(commands(typer.main.get_command(app)))


def options(command: Any) -> list[str]:
    return [name for parameter in command.params for name in parameter.opts]


def test_every_command_has_json_unless_it_says_why_not() -> None:
    without = {name for name, command in COMMANDS.items() if "--json" not in options(command)}
    assert without == set(WITHOUT_JSON)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_each_of_its_parameters_has_a_help_text(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    for parameter in command.params:
        assert getattr(parameter, "help", None), parameter.name
    result = runner.invoke(app, [*name.split(), "--help"], env={"COLUMNS": "80"})
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_the_help_names_the_exit_codes() -> None:
    assert "Exit codes: 0 done, all well; 1 " in runner.invoke(app, ["--help"]).stdout


@pytest.mark.parametrize(
    "words",
    [
        ["parked", "redrive", "order_details"],
        ["parked", "redrive"],
        ["status", "3"],
        ["status", "--nonsense"],
        ["why"],
        ["health", "127.0.0.1:1", "--timeout", "soon"],
        ["rebuild", "--rate", "-1"],
        ["nonsense"],
        ["--cert", "file", "status"],
    ],
)
def test_wrong_usage_is_code_2_and_json_where_json_is_asked_for(words: list[str]) -> None:
    plain = runner.invoke(app, words)
    assert plain.exit_code == 2
    assert "Error" in plain.stderr
    result = runner.invoke(app, [*words, "--json"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert json.loads(result.stderr)["error"]


@pytest.mark.parametrize(
    "words",
    [
        ["parked", "list"],
        ["parked", "show", "order_details", "key"],
        ["parked", "redrive", "order_details", "--all"],
        ["parked", "drop", "order_details", "key", "--reason", "why", "--yes"],
        ["operations"],
        ["history", "order", "key"],
        ["why", "1"],
        ["rebuild", "--all"],
        ["generations", "list"],
        ["generations", "switch", "order_details"],
        ["generations", "back", "order_details"],
        ["generations", "drop", "order_details"],
    ],
    ids=" ".join,
)
def test_a_projector_that_is_away_is_code_1_and_json_where_json_is_asked_for(words: list[str]) -> None:
    there = f"--projector-address=127.0.0.1:{free_port()}"
    result = runner.invoke(app, [*words, there, "--json"])
    assert result.exit_code == 1
    assert "UNAVAILABLE" in json.loads(result.stderr)["error"]
    plain = runner.invoke(app, [*words, there])
    assert plain.exit_code == 1
    assert plain.stderr.startswith("tandem: ")
    assert "UNAVAILABLE" in plain.stderr


def test_health_of_a_server_that_is_away_is_json_too() -> None:
    result = runner.invoke(app, ["health", f"127.0.0.1:{free_port()}", "--json"])
    assert result.exit_code == 1
    assert "UNAVAILABLE" in json.loads(result.stderr)["error"]


def test_what_is_behind_two_dashes_asks_for_no_json() -> None:
    result = runner.invoke(app, ["parked", "list", f"--projector-address=127.0.0.1:{free_port()}", "--", "--json"])
    assert result.exit_code == 1
    assert result.stderr.startswith("tandem: ")


def test_a_program_is_not_asked_to_confirm() -> None:
    result = runner.invoke(app, ["parked", "drop", "order_details", "key", "--reason", "why", "--json"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--yes" in json.loads(result.stderr)["error"]


LONG = "a-node-of-the-cache-with-a-name-that-is-long." * 3 + "example:11211"


@contextmanager
def asking(*_: object, **__: object) -> Iterator[Any]:
    node = CacheNode(node=LONG, state=CACHE_NODE_STATE_SERVING, problem="why " * 50 + "at last")
    yield lambda _name: ListCacheNodesResponse(nodes=[node])


@pytest.mark.parametrize("columns", [None, "80"])
def test_tables_are_cut_only_where_somebody_says_how_wide_it_is(
    monkeypatch: pytest.MonkeyPatch, columns: str | None
) -> None:
    monkeypatch.setattr(cache_nodes, "asking", asking)
    monkeypatch.delenv("COLUMNS", raising=False)
    said = runner.invoke(app, ["cache"], env={"COLUMNS": columns} if columns else {}).stdout
    [_, *lines] = said.splitlines()
    if columns is None:
        [line] = lines
        assert line.startswith(LONG)
        assert line.rstrip().endswith("at last")
    else:
        assert max(map(len, lines)) <= 80


def test_every_command_takes_its_console_from_where_the_width_is_known() -> None:
    """But for the one of a table that is redrawn: it has the terminal's width."""
    folder = Path(cache_nodes.__file__).parent
    made = {it.name: re.findall(r"\bConsole\((.*)\)", it.read_text()) for it in folder.glob("*.py")}
    assert {name: found for name, found in made.items() if found} == {
        "output.py": ["stderr=stderr"],
        "live.py": ["width=width"],
    }
