"""A real `tandem up` on free ports."""

import os
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

import grpc
import psutil

from tandem.cli.child import HOST
from tandem.cli.local_stack import Ports
from tandem.testing.ports import free_port
from tandem.testing.stack import runs, wait_until
from tests.support.forking import Forked
from tests.support.terminal import Terminal

# What a service of it takes to stop (drain) and PostgreSQL to write, on a busy machine.
_END_SECONDS = 60.0
_START_SECONDS = 120.0
PROGRAM = Path(sys.executable).with_name("tandem")


class Up:
    """`tandem up` on `folder`; what it says is collected.

    unnamed: fields of Ports whose port it chooses itself. on_terminal: of 80 columns and 24 lines.
    forks: it and its services are forked, for tests that are not about how they are started.
    program, tree, environment: to run the code of another environment or tree than this one.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        unnamed: Collection[str] = (),
        forks: bool = False,
        program: Path = PROGRAM,
        tree: Path | None = None,
        environment: Mapping[str, str] | None = None,
        on_terminal: bool = False,
    ) -> None:
        self.folder = folder
        self.ports = Ports(**{name: free_port() for name in vars(Ports())})
        self._out = folder.with_name(f"{folder.name}-{self.ports.command}.out")
        named = {name: port for name, port in vars(self.ports).items() if name not in unnamed}
        words = [f"--{name.replace('_', '-')}-port={port}" for name, port in named.items()]
        # Pages are another program to wait for.
        without = [] if "--pages" in options or program != PROGRAM else ["--no-pages"]
        words = ["up", f"--data-dir={folder}", *words, *without, *options]
        forking = "tests.support.forking_tandem"
        command: list[str | Path] = [*([sys.executable, "-m", forking] if forks else [program]), *words]
        self.process: subprocess.Popen[bytes] | Forked
        self.terminal = Terminal(command, environment=environment) if on_terminal else None
        if self.terminal is not None:
            self.process = self.terminal.process
            return
        if forks:
            self.process = Forked(forking, self._out, environment or os.environ, *words, imports="shop.cli")
            return
        with self._out.open("wb") as out:
            self.process = subprocess.Popen(
                command, cwd=tree, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
            )

    def said(self) -> str:
        if self.terminal is not None:
            return "\n".join(self.terminal.lines())
        return self._out.read_text(encoding="utf-8")

    def wait_until_it_says(self, words: str) -> None:
        def heard() -> bool:
            said = self.said()
            if words in said:
                return True
            assert self.process.poll() is None, f"`tandem up` ended before {words!r}:\n{said}"
            return False

        wait_until(heard, f"`tandem up` says {words!r}", _START_SECONDS)

    def wait_until_up(self) -> "Up":
        self.wait_until_it_says("Tandem is up")
        return self

    def children(self) -> dict[str, psutil.Process]:
        """Its processes and theirs, by command and process id."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        return {f"{' '.join(it.cmdline())} {it.pid}": it for it in found if runs(it)}

    def child(self, words: str) -> psutil.Process:
        """The one child whose command has these words."""
        [found] = [process for command, process in self.children().items() if words in command]
        return found

    def end(self, number: signal.Signals) -> int:
        """Sends the signal and waits until it and all its processes are gone; returns its exit code."""
        left = list(self.children().values())
        self.process.send_signal(number)
        code = self.process.wait(_END_SECONDS)
        wait_until(lambda: not any(map(runs, left)), f"all of {left} are gone", _END_SECONDS)
        return code

    def clean_up(self) -> None:
        if self.process.poll() is None:
            self.end(signal.SIGKILL)
        if self.terminal is not None:
            self.terminal.close()

    def channel(self, port: int) -> grpc.Channel:
        return grpc.insecure_channel(f"{HOST}:{port}")
