"""A page that tells step by step how to change the tree, and a copy of the tree in which its steps are done.

A step is a fenced block: `diff` is applied, `python` after "`path`, new:" is a file, `sh` is run. Other blocks are only
shown.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_BLOCK = re.compile(
    r"(?:^`(?P<path>[\w./]+)`, new:\n\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)

_COMPILED = "__pycache__"
_NPM_CACHE = ".npm"
_MYPY = ".mypy_cache"
_CACHES = (".pytest_cache", ".ruff_cache", ".hypothesis", _MYPY, _NPM_CACHE)


@dataclass(frozen=True)
class Step:
    """name: the file that it makes or changes, or the command."""

    kind: str
    name: str
    text: str
    line: int


def steps_of(page: str) -> list[Step]:
    """In the page's order, each command a step of its own. Raises AssertionError for a file without a path."""
    steps = []
    for block in _BLOCK.finditer(page):
        kind, text = block["kind"], block["text"]
        line = page[: block.start("text")].count("\n")
        match kind:
            case "diff":
                [name] = re.findall(r"^\+\+\+ b/(.+)$", text, re.MULTILINE)
                steps.append(Step(kind, name, text, line))
            case "python":
                assert block["path"], f"line {line}: what is the file's name?"
                steps.append(Step(kind, block["path"], text, line))
            case "sh":
                steps += [Step(kind, command, command, line) for command in text.splitlines()]
    return steps


@dataclass
class Tree:
    """A copy of the tree at `folder`, with this interpreter's packages as its virtual environment.

    changed: what each step changed, by its name: the files' contents before, None for those that were not there.
    """

    folder: Path
    changed: dict[str, dict[Path, bytes | None]] = field(default_factory=dict)

    @classmethod
    def copy(cls, root: Path, folder: Path) -> "Tree":
        listed = subprocess.run(
            ["git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        folders = set()
        for name in filter(None, listed.stdout.split("\0")):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target)
            folders.add(target.parent.relative_to(folder))
        # What Python has compiled of them.
        for known in (it / _COMPILED for it in folders):
            if (root / known).exists():
                shutil.copytree(root / known, folder / known)
        environment = folder / ".venv"
        environment.mkdir()
        for part in Path(sys.prefix).iterdir():
            (environment / part.name).symlink_to(part)
        (environment / ".installed").unlink(missing_ok=True)
        # Newer than all it depends on: nothing is installed.
        (environment / ".installed").touch()
        return cls(folder)

    def take_what_mypy_knows(self, root: Path) -> None:
        """Of the files as they are there: without it, mypy takes half a minute to read them all again.

        Nothing while mypy runs there: a copy of its databases would not be whole.
        """
        known = root / _MYPY
        if known.exists() and not any(known.rglob("*-wal")):
            shutil.copytree(known, self.folder / _MYPY)

    def do(self, step: Step) -> str:
        """Does a step and returns what it printed. AssertionError with that, and the step's line, when it fails."""
        before = self._contents()
        match step.kind:
            case "python":
                path = self.folder / step.name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(step.text)
                said, code = "", 0
            case "diff":
                said, code = self.run("git", "apply", "--whitespace=nowarn", "-", text=step.text)
            case _:
                said, code = self.run("sh", "-c", step.text)
        assert code == 0, f"line {step.line}, {step.name}: exit code {code}\n{said}"
        after = self._contents()
        touched = {path for path in {*before, *after} if before.get(path) != after.get(path)}
        self.changed[step.name] = {path: before.get(path) for path in touched}
        return said

    @contextmanager
    def without(self, name: str) -> Iterator[None]:
        """As if the step had not been done, and all others had.

        What other steps changed in the same files is gone too.
        """
        before = self.changed[name]
        now = {path: path.read_bytes() if path.exists() else None for path in before}
        _write(before)
        yield
        _write(now)

    def run(self, *command: str | Path, text: str = "") -> tuple[str, int]:
        """What a command printed in the tree, and its exit code."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment(), input=text, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600, check=False,
        )  # fmt: skip
        return done.stdout, done.returncode

    def environment(self) -> dict[str, str]:
        """Ours, for a person who works in the tree."""
        # What is compiled is kept, and copied: most of the time that the checks take would go into compiling.
        others = ("PYTEST_", "TANDEM_", "MAKE", "PYTHONDONTWRITEBYTECODE")
        ours = {key: value for key, value in os.environ.items() if not key.startswith(others)}
        path = f"{Path(sys.executable).parent}:{ours['PATH']}"
        code = f"{self.folder}:{self.folder / 'gen'}"
        # Without test processes of their own: the tests around them have the cores.
        # Nor are pages for browsers built, where npm could: no step is about them, and they are no step's change.
        npm = {"npm_config_offline": "true", "npm_config_cache": str(self.folder / _NPM_CACHE)}
        return {**ours, **npm, "PATH": path, "PYTHONPATH": code, "WORKERS": "0"}

    def _contents(self) -> dict[Path, bytes]:
        """Of all files but caches."""
        hidden = (".venv", _COMPILED, *_CACHES)
        return {
            path: path.read_bytes()
            for path in self.folder.rglob("*")
            if path.is_file() and not any(part in hidden for part in path.relative_to(self.folder).parts)
        }


def _write(contents: Mapping[Path, bytes | None]) -> None:
    for path, content in contents.items():
        if content is None:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(content)


# Has imported what the tests of a tree import that is not in the tree, and runs them in a fork: half of their time goes
# into these imports.
_CHECKING = """
import gc, json, os, sys
import alembic.command, grpc.aio, grpc_health.v1.health, grpc_reflection.v1alpha.reflection, grpc_status.rpc_status
import grpc_tools.protoc, jwt, prometheus_client, psutil, psycopg, pydantic_settings, pygrpc_native
import pymemcache.client.base, pytest, rich.live, sqlalchemy.dialects.postgresql, structlog, tenacity, typer
import uuid_utils, uvloop, zstandard

# pytest looks for garbage, and everything above is none.
gc.disable()
gc.freeze()
for line in sys.stdin:
    folder, output, words = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        sys.path[:0] = [folder, folder + "/gen"]
        for stream in (1, 2):
            os.dup2(os.open(output, os.O_WRONLY | os.O_APPEND), stream)
        code = pytest.main(words)
        sys.stdout.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@contextmanager
def checking(tree: Tree) -> Iterator[Callable[..., tuple[str, int]]]:
    """What `pytest` with these words prints in a tree as it is then, and its exit code: for many runs."""
    with (
        tempfile.NamedTemporaryFile("r", prefix="tandem-test-") as output,
        subprocess.Popen(
            [sys.executable, "-c", _CHECKING], cwd=tree.folder, env=tree.environment(), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) as program,
    ):  # fmt: skip
        to, back = program.stdin, program.stdout
        assert to is not None
        assert back is not None

        def run(*words: str) -> tuple[str, int]:
            to.write(json.dumps([str(tree.folder), output.name, words]) + "\n")
            to.flush()
            code = int(back.readline())
            return output.read(), code

        yield run
