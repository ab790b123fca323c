"""examples/library, a domain that is not the shop, on the engine as the wheel has it and on nothing of the tree."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.installed import ROOT, Environment, build_wheel

LIBRARY = ROOT / "examples/library"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    # Not under pytest's own folder: root's PostgreSQL is not root, and has to reach it.
    with tempfile.TemporaryDirectory(prefix="tandem-test-") as made:
        yield Path(made)


def run(environment: Environment, home: Path, *command: str) -> str:
    done = subprocess.run(
        [environment.bin / "python", *command],
        cwd=home,
        env=environment.variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, f"{done.stdout[-20_000:]}\n{done.stderr[-5_000:]}"
    return done.stdout


def test_the_librarys_own_tests_pass_on_the_wheel(folder: Path) -> None:
    environment = Environment(folder / "venv", build_wheel(folder / "wheel"), "testing", ["pytest", "grpcio-tools"])
    home = folder / "library"
    shutil.copytree(LIBRARY, home, ignore=shutil.ignore_patterns("__pycache__", "lending_pb2*", ".data"))
    contract = run(environment, home, "-m", "tandem.contract").strip()
    assert Path(contract).is_relative_to(folder), "of the wheel"
    protos = [str(it.relative_to(home)) for it in (home / "proto/lending").rglob("*.proto")]
    stubs = ["--python_out=.", "--grpc_python_out=."]
    run(environment, home, "-m", "grpc_tools.protoc", "-I", "proto", "-I", contract, *stubs, *protos)
    assert re.search(r"\d+ passed", run(environment, home, "-m", "pytest", "-q", "tests"))


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
