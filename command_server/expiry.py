"""Ends subscriptions whose time has come: what time does is an event too, for every view and follower to see once."""

import asyncio
import contextlib
from collections.abc import Collection, Sequence
from datetime import timedelta

from prometheus_client import Counter
from sqlalchemy import Engine

from command_server.settings import SubscriptionSettings
from command_server.subscriptions import Due, find_due
from commerce.internal.v1.stored_pb2 import EndSubscriptionRequest
from tandem.commands.clock import Clock, ClocksDiffer, agreed_time, utc_now
from tandem.runtime.call import LocalCall, Method, Stage
from tandem.runtime.errors import Overloaded, TandemError
from tandem.runtime.supervised import supervise
from tandem.runtime.telemetry import log, note_success

ENDED = Counter("tandem_subscriptions_ended_total", "Subscriptions that this server ended because their time had come")
NOT_ENDED = Counter(
    "tandem_subscription_end_failures_total", "Ends that failed, of subscriptions whose time has come; tried again"
)

ACTOR = "expiry"
"""Who ended them, as the envelopes of the events say."""
_METHOD = Method("EndSubscription", EndSubscriptionRequest)
_DEADLINE_SECONDS = 30.0
# What a subscription says that is not as it was found: it was renewed or cancelled, or another server has ended it.
_OVERTAKEN = frozenset({"VERSION_MISMATCH", "SUBSCRIPTION_ENDED"})


class Expiry:
    """A Component. Several servers may run it at the same time: an end is for one version of a subscription.

    Its commands have no request_id that could be known: a caller who used it first would keep the end from being done.
    """

    def __init__(
        self, engine: Engine, executor: Stage, settings: SubscriptionSettings, *, clock: Clock = utc_now
    ) -> None:
        """clock: this server's."""
        self._engine = engine
        self._executor = executor
        self._settings = settings
        self._clock = clock
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        note_success("expiry")
        self._task = asyncio.create_task(supervise("expiry", self._run))

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            try:
                tried: set[Due] = set()
                while await self.end_due(tried):
                    pass
                note_success("expiry")
            except ClocksDiffer as error:
                log.error("subscriptions are not ended", error=str(error))
            except Exception as error:  # whatever it is, subscriptions must go on ending when it has passed
                log.warning("subscriptions were not ended, will be tried again", error=repr(error)[:500])
            await asyncio.sleep(self._settings.check_every_seconds)

    async def end_due(self, tried: set[Due]) -> bool:
        """Ends one batch of subscriptions; whether there may be more that can be ended now. Raises Overloaded.

        tried: those that this round found and did not end, which are added to. They are not looked at again in it, so
        they hold none up that come after them.
        """
        due = await asyncio.to_thread(self._find, tried)
        outcomes = await asyncio.gather(*(self._end(it) for it in due), return_exceptions=True)
        ended = outcomes.count(True)
        if ended:
            ENDED.inc(ended)
            log.info("ended subscriptions", count=ended)
        tried |= {it for it, outcome in zip(due, outcomes, strict=True) if outcome is not True}
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return len(due) == self._settings.batch

    def _find(self, tried: Collection[Due] = ()) -> Sequence[Due]:
        grace = timedelta(days=self._settings.grace_days)
        with self._engine.connect() as connection:
            found = find_due(connection, agreed_time(connection, self._clock), grace, self._settings.batch + len(tried))
        return [it for it in found if it not in tried][: self._settings.batch]

    async def _end(self, due: Due) -> bool:
        """Whether this call ended it. Raises Overloaded; any other failure concerns this one alone."""
        request = EndSubscriptionRequest(subscription_id=due.subscription_id, expected_version=due.version)
        metadata = (("tandem-actor", ACTOR), ("tandem-causation-id", f"{due.subscription_id}/{due.version}"))
        call = LocalCall(_METHOD, request, seconds=_DEADLINE_SECONDS, metadata=metadata)
        self._executor.put_all([call])
        try:
            await asyncio.wrap_future(call.future)
        except Overloaded:
            raise
        except Exception as error:
            if isinstance(error, TandemError) and error.reason in _OVERTAKEN:
                log.debug("a subscription is not to be ended", subscription=due.subscription_id, reason=error.reason)
            else:
                NOT_ENDED.inc()
                log.error("a subscription cannot be ended", subscription=due.subscription_id, error=repr(error)[:500])
            return False
        return True
