"""How far the views are behind, in seconds, and in which state: what a projector says while all is well and while not.

A thread looks every two seconds where the views are and since when the event after that has waited. What the gauges say
is reckoned when they are read, so it is true also while a database is away, or silent: the lag grows then, since nobody
knows that there was nothing to take in.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime

from tandem.projection.views import Phase, Progress
from tandem.runtime.errors import Unavailable
from tandem.runtime.sampled import SampledGauge
from tandem.runtime.supervised import SupervisedThread
from tandem.runtime.telemetry import log

LOOK_SECONDS = 2.0
# A look that has not ended for so long is none: what it would say is not known.
_UNKNOWN_AFTER_SECONDS = 3 * LOOK_SECONDS


class LagWatch:
    """A Component. look: since when the event has waited that a view is to take in next, by view, None for a view that
    has all of them; raises Unavailable where a database does not say so.
    """

    def __init__(self, progress: Progress, look: Callable[[], Mapping[str, datetime | None]]) -> None:
        self._look = look
        self._waits_since: Mapping[str, datetime | None] = {}
        self._known_at = time.monotonic()
        self._is_known = True
        self._stopping = threading.Event()
        self._thread = SupervisedThread("lag", self._run)
        for view in progress.states:
            LAG.watch(self, view)
            for phase in Phase:
                STATE.watch(progress, view, phase.name)

    async def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        self._stopping.set()
        await asyncio.to_thread(self._thread.join)

    def seconds(self, view: str) -> float:
        """For any thread."""
        since = self._waits_since.get(view)
        waiting = max(0.0, time.time() - since.timestamp()) if since is not None else 0.0
        unknown = time.monotonic() - self._known_at
        return waiting if self._is_known and unknown < _UNKNOWN_AFTER_SECONDS else max(waiting, unknown)

    def _run(self) -> None:
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                self._waits_since = self._look()
                self._known_at, self._is_known = began, True
            except Unavailable as error:
                self._is_known = False
                log.debug("it is not known how far the views are behind", error=str(error))
            self._stopping.wait(LOOK_SECONDS)


def _is_in(progress: Progress, view: str, phase: str) -> float:
    return float(progress.states[view].phase.name == phase)


LAG: SampledGauge[LagWatch] = SampledGauge(
    "tandem_projection_lag_seconds",
    "For how long the next event of a view has waited; while a database is away, since when that is not known",
    ["view"],
    LagWatch.seconds,
    max,
)
STATE: SampledGauge[Progress] = SampledGauge(
    "tandem_projection_state", "1 for the state that a view is in in this projector", ["view", "state"], _is_in, max
)
