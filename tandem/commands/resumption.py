"""Goes on with commands that are done in steps, where nobody else does: their server ended, or their caller left."""

import asyncio
import time
import uuid
from collections.abc import Sequence
from typing import NamedTuple

from prometheus_client import Counter
from sqlalchemy import Engine

from tandem.commands.domain import Domain
from tandem.commands.receipts import Stalled, find_stalled
from tandem.commands.settings import StepSettings
from tandem.runtime.call import LocalCall, Method, Stage
from tandem.runtime.supervised import supervise
from tandem.runtime.telemetry import log, note_success

FAILURES = Counter(
    "tandem_command_resumption_failures_total", "Commands in steps that could not be gone on with; tried again"
)

# Commands; the next look finds the others. One that does no step, because its rows are locked, gives up its place.
_AT_ONCE = 10
# Of a call. One that is not done by then is found again.
_SECONDS = 120.0


class _UnderWay(NamedTuple):
    """began_at: on the clock of time.monotonic()."""

    task: asyncio.Task[None]
    began_at: float


class Resumption:
    """A Component. Several servers may run it at the same time: a step is done once, whoever does it.

    It sends a command again with its request_id, as its caller would.
    """

    def __init__(self, engine: Engine, executor: Stage, domain: Domain, settings: StepSettings) -> None:
        self._engine = engine
        self._executor = executor
        self._kinds = {it.DESCRIPTOR.full_name: it for it in domain.kinds}
        self._resume_after = settings.resume_after_seconds
        # A command is found when it has stood still for so long, by looks that are so far apart.
        self._half_seconds = self._resume_after / 2
        self._under_way: dict[uuid.UUID, _UnderWay] = {}
        self._failed: set[uuid.UUID] = set()
        """Those that are not tried again in this round, so they hold up none that come after them."""
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        note_success("resumption")
        self._task = asyncio.create_task(supervise("resumption", self._run))

    async def stop(self) -> None:
        tasks = [*([self._task] if self._task is not None else ()), *(it.task for it in self._under_way.values())]
        for it in tasks:
            it.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._half_seconds)
            try:
                await self._look()
                note_success("resumption")
            except Exception as error:  # whatever it is, commands must be finished when it has passed
                log.warning("commands that have steps left were not found", error=repr(error)[:500])

    async def _look(self) -> None:
        """Begins to go on with those that nobody goes on with, and waits for none of them."""
        most = _AT_ONCE + len(self._under_way)
        stalled = await asyncio.to_thread(self._find, most, list(self._failed))
        if len(stalled) < most:
            # The round is over: the next one tries all again.
            self._failed.clear()
        for it in stalled:
            if it.request_id in self._under_way:
                self._give_up(it)
        known = {*self._under_way, *self._failed}
        others = [it for it in stalled if it.request_id not in known]
        for it in others[: _AT_ONCE - len(self._under_way)]:
            self._under_way[it.request_id] = _UnderWay(asyncio.create_task(self._go_on(it)), time.monotonic())

    def _give_up(self, stalled: Stalled) -> None:
        """Ends the call of one that has had the time to do a step, and has done none."""
        if time.monotonic() - self._under_way[stalled.request_id].began_at > self._resume_after:
            self._under_way.pop(stalled.request_id).task.cancel()
            self._note_failed(stalled, "it does no step")

    def _find(self, most: int, but: Sequence[uuid.UUID]) -> list[Stalled]:
        with self._engine.connect() as connection:
            return find_stalled(connection, self._half_seconds, most, but)

    async def _go_on(self, stalled: Stalled) -> None:
        """To its end. A failure concerns this command alone."""
        try:
            kind = self._kinds[stalled.request_type]
            request = kind.FromString(stalled.request)
            call = LocalCall(Method(kind.DESCRIPTOR.name.removesuffix("Request"), kind), request, seconds=_SECONDS)
            self._executor.put_all([call])
            await asyncio.wrap_future(call.future)
            log.info("finished a command in steps", command=stalled.request_type)
        except Exception as error:
            self._note_failed(stalled, repr(error)[:500])
        finally:
            self._under_way.pop(stalled.request_id, None)

    def _note_failed(self, stalled: Stalled, error: str) -> None:
        self._failed.add(stalled.request_id)
        FAILURES.inc()
        log.error(
            "a command has steps left",
            command=stalled.request_type,
            request_id=str(stalled.request_id),
            error=error,
        )
