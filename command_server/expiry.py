"""Ends subscriptions whose time has come: what time does is an event too, for every view and follower to see once."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client import Counter
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from command_server.executor import Executor
from command_server.servicers import command_of
from command_server.settings import SubscriptionSettings
from command_server.storage.subscriptions import Due, find_due
from commerce.internal.v1.stored_pb2 import EndSubscriptionPeriodRequest
from tandem.runtime.errors import TandemError, Unavailable
from tandem.runtime.telemetry import log

ENDED = Counter("tandem_subscriptions_ended_total", "Subscriptions that this server ended because their time had come")

_DEADLINE_SECONDS = 30.0
# The namespace of the request ids: the same subscription and period give the same id on every command server.
_NAMESPACE = uuid.UUID("0a6a7d52-8f0e-5a55-9b0c-3c6f3b1d9a41")


class Expiry:
    """A Component. Several servers may run it at the same time: each end is a command with one request_id."""

    def __init__(self, engine: Engine, executor: Executor, settings: SubscriptionSettings) -> None:
        self._engine = engine
        self._executor = executor
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
            try:
                # Until none is due any more; what is found and cannot be ended must not keep us at it.
                while await self.end_due():
                    pass
            except (DBAPIError, Unavailable) as error:
                log.warning("subscriptions are not looked at, will be tried again", error=repr(error)[:500])
            await asyncio.sleep(self._settings.check_every_seconds)

    async def end_due(self) -> bool:
        """Ends one batch of subscriptions; whether there were as many as fit and all of them were ended."""
        due = await asyncio.to_thread(self._find)
        outcomes = await asyncio.gather(*(self._end(it) for it in due))
        ended = sum(outcomes)
        if ended:
            ENDED.inc(ended)
            log.info("ended subscriptions", count=ended)
        return ended == self._settings.batch

    def _find(self) -> Sequence[Due]:
        grace = timedelta(days=self._settings.grace_days)
        with self._engine.connect() as connection:
            return find_due(connection, datetime.now(UTC), grace, self._settings.batch)

    async def _end(self, due: Due) -> bool:
        period_end = Timestamp()
        period_end.FromDatetime(due.period_end)
        request = EndSubscriptionPeriodRequest(
            request_id=str(uuid.uuid5(_NAMESPACE, f"{due.subscription_id}/{due.period_end.isoformat()}")),
            subscription_id=str(due.subscription_id),
            period_end=period_end,
        )
        try:
            receipt = await self._executor.submit(
                command_of(request, datetime.now(UTC)), time.monotonic() + _DEADLINE_SECONDS
            )
        except Unavailable:
            raise
        except TandemError as refusal:
            # Renewed, resumed or ended by another command in between.
            log.debug("a subscription is not to be ended", subscription=str(due.subscription_id), reason=refusal.reason)
            return False
        return not receipt.replayed
