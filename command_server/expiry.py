"""Ends subscriptions whose time has come: what time does is an event too, for every view and follower to see once."""

import asyncio
import contextlib
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from prometheus_client import Counter
from sqlalchemy import Engine

from command_server.settings import SubscriptionSettings
from command_server.subscriptions import Due, find_due
from commerce.internal.v1.stored_pb2 import EndSubscriptionRequest
from tandem.runtime.call import LocalCall, Method, Stage
from tandem.runtime.errors import Overloaded, TandemError, Unavailable
from tandem.runtime.telemetry import log

ENDED = Counter("tandem_subscriptions_ended_total", "Subscriptions that this server ended because their time had come")

ACTOR = "expiry"
"""Who ended them, as the envelopes of the events say."""
_METHOD = Method("EndSubscription", EndSubscriptionRequest)
_DEADLINE_SECONDS = 30.0
# The namespace of the request ids: the same version of a subscription gives the same id on every command server.
_NAMESPACE = uuid.UUID("0a6a7d52-8f0e-5a55-9b0c-3c6f3b1d9a41")


class Expiry:
    """A Component. Several servers may run it at the same time: each end is a command with one request_id."""

    def __init__(self, engine: Engine, executor: Stage, settings: SubscriptionSettings) -> None:
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
                while await self.end_due():
                    pass
            except Exception as error:  # whatever it is, subscriptions must go on ending when it has passed
                log.warning("subscriptions were not ended, will be tried again", error=repr(error)[:500])
            await asyncio.sleep(self._settings.check_every_seconds)

    async def end_due(self) -> bool:
        """Ends one batch of subscriptions; whether there may be more that can be ended now.

        Where none of a batch is ended there is no use in looking again at once: another server is ahead of this one, or
        they cannot be ended.
        """
        due = await asyncio.to_thread(self._find)
        ended = sum(await asyncio.gather(*(self._end(it) for it in due)))
        if ended:
            ENDED.inc(ended)
            log.info("ended subscriptions", count=ended)
        return len(due) == self._settings.batch and ended > 0

    def _find(self) -> Sequence[Due]:
        grace = timedelta(days=self._settings.grace_days)
        with self._engine.connect() as connection:
            return find_due(connection, datetime.now(UTC), grace, self._settings.batch)

    async def _end(self, due: Due) -> bool:
        """Whether this call ended it. Raises Unavailable and Overloaded; any other failure concerns this one alone."""
        found = f"{due.subscription_id}/{due.version}"
        request = EndSubscriptionRequest(
            request_id=str(uuid.uuid5(_NAMESPACE, found)),
            subscription_id=due.subscription_id,
            expected_version=due.version,
        )
        metadata = (("tandem-actor", ACTOR), ("tandem-causation-id", found))
        call = LocalCall(_METHOD, request, seconds=_DEADLINE_SECONDS, metadata=metadata)
        self._executor.put_all([call])
        try:
            response = await asyncio.wrap_future(call.future)
        except (Unavailable, Overloaded):
            raise
        except TandemError as refusal:
            # Renewed, cancelled, or ended by another server since it was found.
            log.debug("a subscription is not to be ended", subscription=due.subscription_id, reason=refusal.reason)
            return False
        except Exception as error:
            log.error("a subscription cannot be ended", subscription=due.subscription_id, error=repr(error)[:500])
            return False
        return not response.receipt.replayed
