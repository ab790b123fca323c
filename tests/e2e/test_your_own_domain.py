"""Domains that are not the shop, on the engine as the wheel has it and on nothing of the tree.

examples/library, and what docs/your-own-domain.md leads to, followed word by word from an empty folder.
"""

import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.guide import Tree, steps_of
from tests.support.installed import ROOT, Environment, build_wheel

LIBRARY = ROOT / "examples/library"
PAGE = (ROOT / "docs/your-own-domain.md").read_text()
# With what the page makes, and its stack: an operator makes the new view anew, and callers see the same.
REBUILT = """
from typer.testing import CliRunner

from garden.__main__ import DOMAIN
from garden.v1 import commands_pb2 as commands
from garden.v1 import queries_pb2 as queries
from tandem.cli.main import application


def test_the_view_is_rebuilt(stack, session) -> None:
    plant = session.commands.AddPlant(commands.AddPlantRequest(name="Rose")).plant_id
    session.commands.PrunePlant(commands.PrunePlantRequest(plant_id=plant, centimetres=30))
    asked = queries.GetPlantCareRequest(plant_id=plant)
    before = session.queries.GetPlantCare(asked).plant_care
    words = ["rebuild", "plant_care", "--switch", f"--projector-address={stack.projector.address}", "--json"]
    done = CliRunner().invoke(application(DOMAIN), words)
    assert done.exit_code == 0, done.output
    assert '"kept"' in done.stdout
    assert session.queries.GetPlantCare(asked).plant_care == before
"""


@dataclass
class Home(Tree):
    """A domain's folder, for a person who works in it with the environment."""

    installed: Environment | None = None

    def environment(self) -> dict[str, str]:
        assert self.installed is not None
        return self.installed.variables


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    # Not under pytest's own folder: root's PostgreSQL is not root, and has to reach it.
    with tempfile.TemporaryDirectory(prefix="tandem-test-") as made:
        yield Path(made)


@pytest.fixture(scope="module")
def installed(folder: Path) -> Environment:
    return Environment(folder / "venv", build_wheel(folder / "wheel"), "testing", ["pytest", "grpcio-tools"])


def test_the_librarys_own_tests_pass_on_the_wheel(folder: Path, installed: Environment) -> None:
    home = Home(folder / "library", installed=installed)
    shutil.copytree(LIBRARY, home.folder, ignore=shutil.ignore_patterns("__pycache__", "lending_pb2*", ".data"))
    contract, _ = home.run("python", "-m", "tandem.contract")
    assert Path(contract).is_relative_to(folder), "of the wheel"
    said, code = home.run("make", "test")
    assert code == 0, said
    assert re.search(r"\d+ passed", said)


def test_the_page_leads_from_an_empty_folder_to_a_second_command_that_is_served_watched_and_rebuilt(
    folder: Path, installed: Environment
) -> None:
    home = Home(folder / "new", installed=installed)
    home.folder.mkdir()
    begin, *steps, test = steps_of(PAGE)
    home.do(begin)
    home.folder /= "garden"
    # The new domain's own tests pass below, beside those that fail: to start its services once more takes 7 s.
    steps.remove(next(it for it in steps if it.name == test.name))
    added = [it for it in steps if it.kind == "sh"]
    for step in added:
        home.do(step)
    [shown] = re.findall(r"^```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    said, code = home.run("make", "test")
    assert code != 0
    assert [it for it in shown.splitlines() if it not in said] == []
    assert f"{len(added)} failed, 5 passed" in said
    for step in steps:
        if step not in added:
            home.do(step)
    (home.folder / "tests/test_rebuilt.py").write_text(REBUILT)
    assert re.search(r"\d+ passed", home.do(test))


def test_the_library_takes_nothing_of_the_shop_and_no_second_of_the_engine() -> None:
    texts = {it: it.read_text() for kind in ("*.py", "*.proto") for it in LIBRARY.rglob(kind)}
    taken = r"^\s*(?:from|import) \"?(?:commerce|shop|command_server|projector|query_server)\b"
    assert [it for it, text in texts.items() if re.search(taken, text, re.MULTILINE)] == []
    engine = {line.strip() for it in (ROOT / "tandem").rglob("*.py") for line in it.read_text().splitlines()}
    for it, text in texts.items():
        lines = [line.strip() for line in text.splitlines() if it.suffix == ".py"]
        # Six lines in a row that the engine has as well are a copy; imports and the frame of a migration are shorter.
        own = [line in engine and len(line) > 12 and not line.startswith(("from ", "import ")) for line in lines]
        assert not any(all(own[at : at + 6]) for at in range(len(own) - 5)), f"{it} has lines of the engine"
