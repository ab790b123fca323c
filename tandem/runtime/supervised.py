"""What runs all the time, a thread or a task of the event loop, and is not ended by an error that nobody expected.

    runs ──▶ down       it raised: counted, logged
      ▲       │
      └───────┘         begun anew after a pause; it counts as down until it has run for a second

While one of them is down the process says in its health that it is not serving: nobody knows what it leaves undone.
What neither fails nor goes on is no more alive: `what_stands_still`.
"""

import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from prometheus_client import Counter

from tandem.runtime.sampled import SampledGauge
from tandem.runtime.telemetry import log

RESTARTS = Counter(
    "tandem_thread_restarts_total", "Threads and tasks that failed unexpectedly and were begun anew", ["thread"]
)


class Moving(Protocol):
    """What has something to do all the time, or says that it has nothing."""

    @property
    def still_seconds(self) -> float:
        """For how long it has not gone on, although there is something to do. For any thread."""
        ...


STILL: SampledGauge[Moving] = SampledGauge(
    "tandem_still_seconds",
    "For how long threads have not gone on although there is something to do; liveness goes by it",
    ["thread"],
    lambda it, _: it.still_seconds,
    max,
)

_PAUSE_SECONDS = 0.25
_WELL_AFTER_SECONDS = 1.0

_down_until: dict[str, float] = {}
"""By name, of those that have failed: infinity during the pause."""


def what_is_down() -> list[str]:
    """The names of the threads and tasks of this process that do not run, or not for long again."""
    now = time.monotonic()
    return sorted(name for name, until in list(_down_until.items()) if now < until)


def what_stands_still(seconds: float) -> list[str]:
    """The names of what in this process has stood still for longer: nothing but a new process helps then."""
    return sorted(name for (name,), still in STILL.values().items() if still > seconds)


class SupervisedThread:
    """A thread that runs `run` until that returns."""

    def __init__(self, name: str, run: Callable[[], None]) -> None:
        """run: may be called again after it raised; returns soon once its owner has stopped it."""
        self._name = name
        self._run = run
        self._joined = threading.Event()
        self._thread = threading.Thread(target=self._supervise, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self, seconds: float | None = None) -> bool:
        """Waits for its end, for which `run` must have been stopped; at once where it was never started.

        False when it has not ended after so many seconds.
        """
        self._joined.set()
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _supervise(self) -> None:
        while True:
            try:
                self._run()
            except BaseException as error:  # whatever it is, the thread has others to serve
                _failed(self._name, error)
                self._joined.wait(_PAUSE_SECONDS)
                _begun_anew(self._name)
            else:
                _down_until.pop(self._name, None)
                return


async def supervise(name: str, run: Callable[[], Awaitable[None]]) -> None:
    """Runs `run` until it returns, for a task of the event loop. To cancel the task ends it."""
    try:
        while True:
            try:
                return await run()
            except Exception as error:
                _failed(name, error)
                await asyncio.sleep(_PAUSE_SECONDS)
                _begun_anew(name)
    finally:
        _down_until.pop(name, None)


def _failed(name: str, error: BaseException) -> None:
    _down_until[name] = math.inf
    RESTARTS.labels(name).inc()
    log.error("a thread failed and is begun anew", thread=name, exc_info=error)


def _begun_anew(name: str) -> None:
    _down_until[name] = time.monotonic() + _WELL_AFTER_SECONDS
