"""`tandem new` and `tandem add`: what they write, and that they refuse before they have written anything.

tests/e2e/test_your_own_domain.py runs what they write.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from shop.cli import app


def tandem(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(it) for it in words])


def done(*words: str | Path) -> dict[str, Any]:
    result = tandem(*words, "--json")
    assert result.exit_code == 0, result.output
    said: dict[str, Any] = json.loads(result.stdout)
    return said


def refused(*words: str | Path) -> list[str]:
    """The problems."""
    result = tandem(*words, "--json")
    assert result.exit_code == 2, result.output
    return [json.loads(it)["error"] for it in result.stderr.splitlines()]


@pytest.fixture
def garden(tmp_path: Path) -> Path:
    done("new", "garden", "--aggregate", "plant", "--folder", tmp_path / "garden")
    return tmp_path / "garden"


def contents(folder: Path) -> dict[Path, str]:
    return {it: it.read_text() for it in folder.rglob("*") if it.is_file()}


def add(folder: Path, *words: str) -> dict[str, Any]:
    return done("add", *words, "--folder", folder)


def test_a_new_domain_says_what_was_written_and_what_to_do_next(tmp_path: Path) -> None:
    said = done("new", "Garden", "--aggregate", "PlantBed", "--folder", tmp_path / "here")
    assert {it.relative_to(tmp_path / "here").as_posix() for it in contents(tmp_path / "here")} == set(said["written"])
    assert {"README.md", "Makefile", ".github/workflows/ci.yml", "garden/plant_beds.py"} <= set(said["written"])
    assert said["next"] == [f"cd {tmp_path / 'here'}", "pip install -e '.[dev]'", "make test", "make up"]
    assert not [path for path, text in contents(tmp_path / "here").items() if "{{" in text]


def test_it_imports_the_engine_and_itself_alone(garden: Path) -> None:
    imported = {it for text in contents(garden).values() for it in re.findall(r"^(?:from|import) (\w+)", text, re.M)}
    ours = {"commerce", "shop", "command_server", "projector", "query_server", "relay"}
    assert {"tandem", "garden"} <= imported
    assert not imported & ours


def test_a_folder_with_something_in_it_stays_as_it_is(garden: Path) -> None:
    before = contents(garden)
    problems = refused("new", "json", "--aggregate", "class", "--folder", garden)
    assert [re.sub(r".* (?=is there already)", "", it) for it in problems] == [
        "there is a Python module json already: the domain 'json' would hide it",
        "the aggregate 'class' is a word of Python",
        "is there already, and is no empty folder",
    ]
    assert contents(garden) == before


def test_each_part_has_its_contract_a_stub_and_a_test(garden: Path) -> None:
    assert add(garden, "command", "PrunePlant") == {
        "folder": str(garden),
        "written": ["tests/test_prune_plant.py"],
        "changed": ["garden/plants.py", "proto/garden/v1/commands.proto"],
        "next": ["make test"],
    }
    event = add(garden, "event", "plant_pruned")
    assert event["changed"] == ["garden/plants.py", "proto/garden/v1/events.proto"]
    assert "    PlantPruned plant_pruned = 3;\n" in (garden / "proto/garden/v1/events.proto").read_text()
    view = add(garden, "view", "PlantCare")
    assert view["written"] == [
        "garden/migrations/read/versions/0002_plant_care.py",
        "garden/projections/plant_care.py",
        "tests/test_plant_care.py",
    ]
    add(garden, "query", "GetPlantCare")
    assert "logged=True" not in (garden / "garden/projections/plant_care.py").read_text()
    add(garden, "query", "WatchPlantCare")
    assert "logged=True" in (garden / "garden/projections/plant_care.py").read_text()
    add(garden, "query", "ListAll", "--view", "PlantCare")
    assert "lists=[list_all]," in (garden / "garden/query_server.py").read_text()
    add(garden, "command", "BuyPlant", "--creates")
    assert "must_be_new" in (garden / "garden/plants.py").read_text().partition("def buy_plant")[2]
    assert "  rpc BuyPlant(BuyPlantRequest)" in (garden / "proto/garden/v1/commands.proto").read_text()


def test_a_number_that_an_event_once_had_is_not_given_again(garden: Path) -> None:
    events = garden / "proto/garden/v1/events.proto"
    events.write_text(
        events.read_text().replace("message Event {\n", "message Event {\n  // Of 99 events.\n  reserved 7;\n")
    )
    add(garden, "event", "PlantPruned")
    assert "plant_pruned = 8;" in events.read_text()


@pytest.mark.parametrize(
    ("words", "problems"),
    [
        (["command", "1x"], ["the command '1x' is no name"]),
        (["command", "PrunePlant", "--of", "tree"], ["there is no aggregate 'tree' in garden/: there is plant"]),
        (["command", "rule"], ["garden/plants.py has `rule` already"]),
        (
            ["command", "AddPlant"],
            ["AddPlantRequest is a name of", "AddPlantResponse is a name of", "garden/plants.py has"],
        ),
        (["event", "PlantDetails"], ["PlantDetails is a name of proto/garden/v1/queries.proto already"]),
        (["view", "plant_added"], ["PlantAdded is a name of proto/garden/v1/events.proto already"]),
        (["query", "FindPlants"], ["the query 'FindPlants' is to begin with Get, Watch, List"]),
        (["query", "GetTree"], ["there is no view 'tree', say which with --view: there is plant_details"]),
        (["query", "GetPlantDetails"], ["GetPlantDetailsRequest is a name of", "GetPlantDetailsResponse is a name of"]),
    ],
)
def test_what_cannot_be_added_is_said_and_nothing_is_written(
    garden: Path, words: list[str], problems: list[str]
) -> None:
    before = contents(garden)
    found = refused("add", *words, "--folder", garden)
    assert [it[: len(problem)] for it, problem in zip(found, problems, strict=True)] == problems
    assert contents(garden) == before


def test_which_aggregate_is_asked_for_where_there_are_several(garden: Path) -> None:
    plants = garden / "garden/plants.py"
    (garden / "garden/beds.py").write_text(plants.read_text().replace("plant", "bed").replace("PLANTS", "BEDS"))
    [problem] = refused("add", "command", "Dig", "--folder", garden)
    assert problem == "say which aggregate it is about, with --of: there is bed, plant"
    assert "garden/beds.py" in add(garden, "command", "Dig", "--of", "bed")["changed"]


def test_a_file_that_is_there_is_never_written_again(garden: Path) -> None:
    (garden / "tests/test_prune_plant.py").write_text("mine")
    before = contents(garden)
    assert refused("add", "command", "PrunePlant", "--folder", garden) == ["tests/test_prune_plant.py is there already"]
    assert contents(garden) == before


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    [problem] = refused("add", "command", "PrunePlant", "--folder", tmp_path)
    assert "is no folder that `tandem new` has made" in problem
    (tmp_path / "pyproject.toml").write_text("[tool\n")
    [problem] = refused("add", "event", "PlantPruned", "--folder", tmp_path)
    assert "pyproject.toml: " in problem


def test_what_a_person_has_moved_is_named(garden: Path) -> None:
    commands = garden / "proto/garden/v1/commands.proto"
    commands.write_text(commands.read_text().replace("service CommandService", "service Plants"))
    assert refused("add", "command", "PrunePlant", "--folder", garden) == [
        "proto/garden/v1/commands.proto has no service CommandService"
    ]


def test_without_json_it_says_the_same_to_people(garden: Path) -> None:
    result = tandem("add", "command", "PrunePlant", "--folder", garden)
    assert result.stdout.splitlines() == [
        f"wrote   {garden}/tests/test_prune_plant.py",
        f"changed {garden}/garden/plants.py",
        f"changed {garden}/proto/garden/v1/commands.proto",
        "",
        "Next:",
        "  make test",
        "tests/test_prune_plant.py fails until the stubs are written, and says what to write.",
    ]
    result = tandem("add", "query", "GetTree", "--folder", garden)
    assert result.stderr.startswith("tandem: there is no view 'tree'")
