"""The house's rules for code: nothing happens at import, one place reads the environment, files stay short."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("tandem", "shop", "command_server", "query_server", "projector")
GENERATED = "_pb2.py"
SOURCES = sorted(
    path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if not path.name.endswith(GENERATED)
)
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in SOURCES
    if {"migrations", "alembic"}.isdisjoint(path.parts)  # alembic runs these; nobody imports them
)

# Imports all modules, those of the services first, and says what any of them did besides.
IMPORT_ALL = """
import gc, json, sys, threading

gc.disable()  # nothing that is imported is garbage
done = []
FORBIDDEN = {"socket.connect", "socket.bind", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.fork"}
sys.addaudithook(lambda event, _: done.append(event) if event in FORBIDDEN else None)


def import_all(names):
    for name in names:
        before = len(done)
        __import__(name)
        done[before:] = [f"{name}: {what}" for what in done[before:]]


SERVICES = ("command_server", "projector", "query_server")
import_all(f"{service}.__main__" for service in (*SERVICES, "relay"))
if "sqlalchemy" in sys.modules:
    done.append("the garbage collector runs while a service is imported (tandem.runtime.start)")
import_all(f"{service}.program" for service in SERVICES)
# What migrates, draws on terminals, verifies tokens, traces, or speaks to a broker: each is a tenth of a start.
for name in ("alembic", "rich", "pygments", "attr", "jwt", "opentelemetry", "nats", "confluent_kafka", "boto3"):
    if name in sys.modules:
        done.append(f"services import {name} to serve, whatever they are set to do")
import_all(json.load(sys.stdin))
others = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
print(json.dumps(done + [f"started the thread {name}" for name in others]))
"""


def test_importing_does_nothing_but_import() -> None:
    # Settings that are refused, should a module load them.
    environment = {**os.environ, "TANDEM_CONFIG": "/nowhere", "TANDEM_COMMAND_SERVER__PORT": "none"}
    result = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL],
        input=json.dumps(MODULES),
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == []
    assert result.stderr == ""


def reads_environment(text: str) -> bool:
    names = {"environ", "environb", "getenv", "getenvb"}
    if not any(it in text for it in names):
        return False
    return any(
        (isinstance(node, ast.Attribute) and node.attr in names)
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and names & {it.name for it in node.names})
        for node in ast.walk(ast.parse(text))
    )


def test_only_the_settings_and_what_starts_processes_read_the_environment() -> None:
    tandem = ROOT / "tandem"
    allowed = [tandem / "runtime" / "settings.py", tandem / "cli", tandem / "testing" / "stack.py"]
    found = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if reads_environment(path.read_text()) and not any(path.is_relative_to(it) for it in allowed)
    ]
    assert found == []


def test_one_table_alone_says_what_a_sqlstate_means() -> None:
    looks = re.compile(r"(?<!runtime)\.sqlstate\b|psycopg\.errors\.[A-Z]|from psycopg\.errors import")
    allowed = ROOT / "tandem" / "runtime" / "sqlstate.py"
    assert [str(it.relative_to(ROOT)) for it in SOURCES if it != allowed and looks.search(it.read_text())] == []


@pytest.mark.parametrize(
    "path",
    [path for path in SOURCES if path.name == "__init__.py"],
    ids=lambda path: str(path.relative_to(ROOT).parent),
)
def test_a_packages_init_holds_its_docstring_and_nothing_else(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "says what belongs there"
    assert len(tree.body) == 1


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if "migrations" not in path.parts and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def test_no_module_is_a_drawer_for_odds_and_ends() -> None:
    drawers = {"utils", "util", "common", "helpers", "helper", "misc", "manager", "managers"}
    assert [str(path) for path in SOURCES if drawers & {*path.relative_to(ROOT).with_suffix("").parts}] == []


def test_files_stay_under_800_lines() -> None:
    folders = (*PACKAGES, "tests", "tools", "benchmarks", "nemesis")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py") if not path.name.endswith(GENERATED)]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in paths}
    assert {name: length for name, length in lengths.items() if length > 800} == {}
