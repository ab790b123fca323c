"""Child processes that do not outlive this one."""

import os
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

HOST = "127.0.0.1"
DIRECT = (("grpc.enable_http_proxy", 0),)
"""Options of a channel to HOST: `http_proxy` is for other machines."""
# A crashed database recovers first.
_START_SECONDS = 60.0
_STOP_SECONDS = 20.0


class StackError(Exception):
    """Something of the stack on this machine cannot start or stop; the message says what, and how to mend it."""


class Child(ABC):
    """A program as a child process; what it prints goes to the end of the file `log`.

    Subclasses say what to run, in `launch`, and may say when it can be used, in `serves`.
    """

    # What ends it in good order.
    stop_signal = signal.SIGTERM
    # What the kernel sends it when this process dies. SIGKILL also ends a child that is paused or hangs.
    death_signal = signal.SIGKILL

    def __init__(self, name: str, port: int, log: Path) -> None:
        self.name = name
        self.port = port
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} is not started"
        return self._process.pid

    @abstractmethod
    def launch(self) -> None:
        """Starts the process and does not wait for it. Raises StackError."""

    def serves(self) -> bool:
        """Whether it can be used now: it takes connections, where a subclass knows nothing better."""
        try:
            socket.create_connection((HOST, self.port), 1).close()
        except OSError:
            return False
        return True

    def start(self) -> None:
        """Starts it and waits until it serves. Raises StackError; its process is gone then."""
        self.launch()
        self.wait_until_serving()

    def wait_until_serving(self, seconds: float = _START_SECONDS) -> None:
        """Raises StackError when it ends before that, or takes too long; its process is gone then."""
        deadline = time.monotonic() + seconds
        while not self.serves():
            code = self.exit_code()
            if code is not None:
                problem = f"{self.name} ended with {ending(code)}"
            elif time.monotonic() > deadline:
                problem = f"{self.name} does not answer at {self.address} after {seconds:g} s"
            else:
                time.sleep(0.02)
                continue
            self.stop()
            raise StackError(f"{problem}; {self.last_words()}")

    def exit_code(self) -> int | None:
        """None while it runs, negative when a signal ended it; 0 when it is not started."""
        return self._process.poll() if self._process is not None else 0

    def ask_to_stop(self) -> None:
        """Sends what ends it in good order; `stop` waits for that."""
        if self.exit_code() is None:
            os.kill(self.pid, signal.SIGCONT)
            os.kill(self.pid, self.stop_signal)

    def stop(self) -> int:
        """Ends it in good order, by force when that takes too long; returns the exit code, 0 when it is not started."""
        if self._process is None:
            return 0
        self.ask_to_stop()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
        code = self._process.wait()
        self._process = None
        return code

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of its log; empty when there is none."""
        try:
            return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""

    def last_words(self) -> str:
        """How its log ends, for a sentence that says that it ended."""
        log = self.log_tail()
        return f"its log ends:\n{log}" if log.strip() else f"its log is empty: {self.log}"

    def _spawn(
        self,
        command: list[str],
        *,
        user: str | None = None,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Starts the process: as `user`, in `folder`, with `environment` alone; None leaves these as ours.

        In a session of its own, so that Ctrl-C reaches us alone and we end the children in order. The kernel sends the
        death signal when the *thread* that started the child ends, so that must be a thread that stays.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                as_user(user, command, self.death_signal),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=folder,
                env=environment,
            )


def run_to_end(
    command: list[str],
    problem: str,
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    stdin: str = "",
) -> None:
    """Runs a program and waits for its end. Raises StackError, with `problem` and what it said, when it failed.

    stdin: what it reads.
    """
    result = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        input=stdin,
        start_new_session=True,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise StackError(f"{problem}:\n{(result.stdout + result.stderr).strip()}")


def as_user(user: str | None, command: list[str], death_signal: int = signal.SIGKILL) -> list[str]:
    """What to run for a command to run as `user`, None for ourselves, and to get `death_signal` when we die.

    subprocess can change the user too, but it forks for that, which in a process with gRPC's threads goes wrong.
    """
    wrapper = Path(__file__).with_name("exec_child.py")
    return [sys.executable, "-I", "-S", str(wrapper), str(int(death_signal)), str(os.getpid()), user or "", *command]


def ending(code: int) -> str:
    """An exit code in words."""
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def port_in_use(port: int) -> bool:
    """Whether a server cannot listen on this port of 127.0.0.1."""
    try:
        socket.create_server((HOST, port)).close()
    except OSError:
        return True
    return False
