"""Goes on with commands that are done in steps, where nobody else does: their server ended, or their caller left."""

import asyncio
import contextlib

from sqlalchemy import Engine

from tandem.commands.domain import Domain
from tandem.commands.receipts import Stalled, find_stalled
from tandem.commands.settings import StepSettings
from tandem.runtime.call import LocalCall, Method, Stage
from tandem.runtime.telemetry import log

# Those of one look; the next one finds the others.
_AT_ONCE = 10
# Of a call. One that is not done by then is found again.
_SECONDS = 120.0


class Resumption:
    """A Component. Several servers may run it at the same time: a step is done once, whoever does it.

    It sends a command again with its request_id, as its caller would.
    """

    def __init__(self, engine: Engine, executor: Stage, domain: Domain, settings: StepSettings) -> None:
        self._engine = engine
        self._executor = executor
        self._kinds = {it.DESCRIPTOR.full_name: it for it in domain.kinds}
        self._settings = settings
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._settings.resume_after_seconds)
            try:
                await self.resume()
            except Exception as error:  # whatever it is, commands must be finished when it has passed
                log.warning("commands that have steps left were not found", error=repr(error)[:500])

    async def resume(self) -> int:
        """Goes on with those that nobody goes on with, to their ends; returns how many came there."""
        stalled = await asyncio.to_thread(self._find)
        outcomes = await asyncio.gather(*map(self._finish, stalled), return_exceptions=True)
        for it, outcome in zip(stalled, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                log.warning("a command has steps left", command=it.request_type, error=repr(outcome)[:500])
            else:
                log.info("finished a command in steps", command=it.request_type)
        return sum(not isinstance(it, BaseException) for it in outcomes)

    def _find(self) -> list[Stalled]:
        with self._engine.connect() as connection:
            return find_stalled(connection, self._settings.resume_after_seconds, _AT_ONCE)

    async def _finish(self, stalled: Stalled) -> None:
        kind = self._kinds[stalled.request_type]
        request = kind.FromString(stalled.request)
        call = LocalCall(Method(kind.DESCRIPTOR.name.removesuffix("Request"), kind), request, seconds=_SECONDS)
        self._executor.put_all([call])
        await asyncio.wrap_future(call.future)
