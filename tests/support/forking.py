"""Services as processes that start without importing anything: forks of one that has imported all of it.

What `python -m` takes a second of processor time for, a fork has in some milliseconds: the suite starts hundreds of
services. From its first line on, a fork runs as the command does, and it ends as that does. This file is also the
program that forks; it may have no thread, and nothing of gRPC in use.
"""

import atexit
import gc
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from tandem.cli.child import StackError
from tandem.cli.exec_child import end_with_parent
from tandem.cli.services import Service


class ForkedService(Service):
    """A service that is forked; its process is to be used as that of any Service."""

    def launch(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        process = Forked(self.name, self.log, self._environment)
        self._process = cast("subprocess.Popen[bytes]", process)

    def run(self, action: str) -> None:
        with tempfile.NamedTemporaryFile("r", prefix="tandem-test-") as output:
            code = Forked(self.name, Path(output.name), self._environment, action).wait()
            if code != 0:
                raise StackError(f"{self.name} {action} failed:\n{output.read()}")


class _Forker:
    """The program that forks; it ends, and all that it has forked, when this process does."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._program = subprocess.Popen(
            [sys.executable, "-m", __name__],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        atexit.register(self._program.communicate)

    def ask(self, **request: Any) -> Any:
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        with self._lock:
            self._program.stdin.write(json.dumps(request).encode() + b"\n")
            self._program.stdin.flush()
            return json.loads(self._program.stdout.readline())


_forkers: list[_Forker] = []


def _forker() -> _Forker:
    """The one of this process, started when it is first needed."""
    if not _forkers:
        _forkers.append(_Forker())
    return _forkers[0]


class Forked:
    """What `python -m {module} {action}` does, used as subprocess.Popen is; its output goes to `log`."""

    def __init__(self, module: str, log: Path, environment: Mapping[str, str], action: str = "serve") -> None:
        self._forker = _forker()
        self._name = module
        self._code: int | None = None
        log.touch()
        self.pid: int = self._forker.ask(module=module, action=action, log=str(log), environment=dict(environment))

    def poll(self) -> int | None:
        if self._code is None:
            self._code = self._forker.ask(poll=self.pid)
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        while (code := self.poll()) is None:
            descriptor = os.pidfd_open(self.pid)
            try:
                waiting = select.poll()
                waiting.register(descriptor, select.POLLIN)
                if not waiting.poll(None if timeout is None else timeout * 1000):
                    raise subprocess.TimeoutExpired(self._name, timeout or 0)
            finally:
                os.close(descriptor)
        return code

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def _serve_forks(modules: tuple[str, ...]) -> None:
    """Answers requests, a JSON object in a line of standard input each, until that ends. A fork returns too, to run."""
    for module in modules:
        import_module(f"{module}.app")
    assert len(os.listdir("/proc/self/task")) == 1, "a fork has none of the threads that there are"
    # A fork's garbage collector writes into what it looks at, and what is written is copied: half of a fork's start.
    gc.collect()
    gc.freeze()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if "poll" in request:
            ended, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if ended else None
        else:
            parent = os.getpid()
            answer = os.fork()
            if answer == 0:
                _run(parent, **request)
                return
        print(json.dumps(answer), flush=True)


def _run(parent: int, *, module: str, action: str, log: str, environment: dict[str, str]) -> None:
    """What `python -m {module} {action}` does, with the output in `log`."""
    if not end_with_parent(signal.SIGKILL, parent):
        return
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for descriptor, target in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
        os.dup2(descriptor, target)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, action]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _serve_forks(("command_server", "projector", "query_server", "relay"))
