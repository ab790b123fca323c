"""Services as processes that start without importing anything: forks of one that has imported all of it.

What `python -m` takes a second of processor time for, a fork has in some milliseconds: the suite starts hundreds of
services. From its first line on, a fork runs as the command does. It ends as that does, but for what Python does last:
to take all modules apart, which would copy the memory that it shares. This file is also the program that forks; it may
have no thread, and nothing of gRPC in use.
"""

import atexit
import ctypes
import gc
import json
import os
import runpy
import select
import signal
import socketserver
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import IO, Any, NoReturn, cast

from tandem.cli.child import StackError
from tandem.cli.exec_child import end_with_parent
from tandem.cli.services import Service
from tandem.testing.stack import PATIENCE

_CLONE_NEWNET = 0x4000_0000


class ForkedService(Service):
    """A service that is forked; its process is to be used as that of any Service."""

    ask_seconds = PATIENCE

    def launch(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        process = Forked(self.name, self.log, self._environment)
        self._process = cast("subprocess.Popen[bytes]", process)

    def run(self, action: str) -> None:
        with tempfile.NamedTemporaryFile("r", prefix="tandem-test-") as output:
            code = Forked(self.name, Path(output.name), self._environment, action).wait()
            if code != 0:
                raise StackError(f"{self.name} {action} failed:\n{output.read()}")


def run_forked(
    command: list[str], *, stdout: int | None = None, check: bool = False
) -> "subprocess.CompletedProcess[bytes]":
    """What subprocess.run does with `python -m {module} {words}`, by a fork. check: is not done."""
    assert not check
    _, option, module, *words = command
    assert option == "-m"
    with (
        tempfile.NamedTemporaryFile("r+b", prefix="tandem-test-") as said,
        tempfile.NamedTemporaryFile("r+b", prefix="tandem-test-") as errors,
    ):
        code = Forked(module, Path(said.name), os.environ, *words, errors=Path(errors.name)).wait()
        output = said.read()
        if stdout is None:
            os.write(1, output)
        os.write(2, errors.read())
        return subprocess.CompletedProcess(command, code, output if stdout == subprocess.PIPE else None)


class _Forker:
    """The program that forks; it ends, and all that it has forked, when this process does."""

    def __init__(self, requests: IO[bytes], answers: IO[bytes], wait: Callable[[], object]) -> None:
        """wait: returns when it has ended."""
        self._lock = threading.Lock()
        self._requests = requests
        self._answers = answers
        self._wait = wait
        atexit.register(self._end)

    @classmethod
    def started(cls) -> "_Forker":
        program = subprocess.Popen(
            [sys.executable, "-m", __name__],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert program.stdin is not None
        assert program.stdout is not None
        return cls(program.stdin, program.stdout, program.wait)

    def ask(self, **request: Any) -> Any:
        with self._lock:
            self._requests.write(json.dumps(request).encode() + b"\n")
            self._requests.flush()
            return json.loads(self._answers.readline())

    def _end(self) -> None:
        self._requests.close()
        self._wait()
        self._answers.close()


_forkers: list[_Forker] = []


def _forker() -> _Forker:
    """The one of this process, started when it is first needed."""
    if not _forkers:
        _forkers.append(_Forker.started())
    return _forkers[0]


def fork_a_forker() -> bool:
    """Has a fork of this process, which has imported all of it, be the one that forks. False in what it forks.

    It may have no thread yet.
    """
    requests, answers = os.pipe(), os.pipe()
    pid = os.fork()
    if pid:
        os.close(requests[0])
        os.close(answers[1])
        forker = _Forker(os.fdopen(requests[1], "wb"), os.fdopen(answers[0], "rb"), lambda: os.waitpid(pid, 0))
        _forkers.append(forker)
        return True
    os.close(requests[1])
    os.close(answers[0])
    _serve_forks(os.fdopen(requests[0], "rb"), os.fdopen(answers[1], "w"))
    return False


class Forked:
    """What `python -m {module} {words}` does, used as subprocess.Popen is.

    Its output goes to `log`, and what it says of errors to `errors`, or to `log` too. imports: a module that is to be
    there before, besides those of the services. namespace: the name of a network namespace that it is to be in.
    """

    def __init__(
        self,
        module: str,
        log: Path,
        environment: Mapping[str, str],
        *words: str,
        errors: Path | None = None,
        imports: str = "",
        namespace: str = "",
    ) -> None:
        self._forker = _forker()
        self._name = module
        self._code: int | None = None
        log.touch()
        if imports:
            self._forker.ask(imports=imports)
        self.pid: int = self._forker.ask(
            module=module,
            words=words,
            log=str(log),
            errors=str(errors or log),
            environment=dict(environment),
            namespace=namespace,
        )

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

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _import(modules: Iterable[str]) -> None:
    """What forks are to have imported."""
    for module in modules:
        import_module(module)
    assert len(os.listdir("/proc/self/task")) == 1, "a fork has none of the threads that there are"
    # A fork's garbage collector writes into what it looks at, and what is written is copied: half of a fork's start.
    gc.collect()
    gc.freeze()


def _serve_forks(requests: IO[bytes], answers: IO[str]) -> None:
    """Answers requests, a JSON object in a line each, until they end, and ends then. Returns in a fork that has run."""
    for line in requests:
        request = json.loads(line)
        answer = None
        if "poll" in request:
            ended, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if ended else None
        elif "imports" in request:
            if request["imports"] not in sys.modules:
                _import([request["imports"]])
        else:
            parent = os.getpid()
            answer = os.fork()
            if answer == 0:
                _run(parent, **request)
                return
        print(json.dumps(answer), file=answers, flush=True)
    sys.exit()


def _run(
    parent: int,
    *,
    module: str,
    words: list[str],
    log: str,
    errors: str,
    environment: dict[str, str],
    namespace: str,
) -> None:
    """What `python -m {module} {words}` does."""
    if namespace:
        enter_network(namespace)
    if not end_with_parent(signal.SIGKILL, parent):
        return
    os.setsid()
    output, error = (os.open(it, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) for it in (log, errors))
    for descriptor, target in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (error, 2)):
        os.dup2(descriptor, target)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *words]
    # What serves the metrics looks so often whether it is to end; with Python's half second each stop waits for that.
    socketserver.BaseServer.serve_forever.__defaults__ = (0.02,)
    code = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = _code(ended)
    except BaseException:
        traceback.print_exc()
    _end(code)


def _code(ended: SystemExit) -> int:
    """The exit code that Python makes of it; what is no number is printed."""
    if isinstance(ended.code, int):
        return ended.code & 0xFF
    if ended.code is not None:
        print(ended.code, file=sys.stderr)
    return 0 if ended.code is None else 1


def _end(code: int) -> NoReturn:
    """Ends as Python does, but for taking all modules apart, which would copy the memory that a fork shares."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def enter_network(namespace: str) -> None:
    """Puts the calling thread into a network namespace, and with it what it starts."""
    with Path("/run/netns", namespace).open() as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")


if __name__ == "__main__":
    # The last is what looking up a host's name imports.
    _import([*(f"{it}.app" for it in ("command_server", "projector", "query_server", "relay")), "encodings.idna"])
    _serve_forks(sys.stdin.buffer, sys.stdout)
