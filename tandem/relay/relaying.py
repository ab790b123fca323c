"""The relay: reads on in the feed from where a broker has it, and publishes what follows. It has no state of its own.

    STANDBY ──the broker stays behind for a while──▶ ACTIVE
       ▲ ◀──────another relay has published────────── │
       │                                              │
       └── AWAY, REFUSED ◀──────────── any error ─────┘
            tried again after a pause, from STANDBY on

STANDBY: the broker has all, or another relay brings it on. ACTIVE: this one publishes. AWAY: the broker or the feed
does not answer. REFUSED: a person is needed; the problem says for what.

Two that are active at once do no harm: the broker takes each position once, and who comes second stands by.
"""

import asyncio
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from enum import Enum
from functools import partial
from typing import ParamSpec, TypeVar

from prometheus_client import Counter, Gauge

from tandem.feed.events import FeedEvent
from tandem.feed.head import FeedHead
from tandem.feed.reader import BrokenOff, OtherEpoch
from tandem.feed.source import FeedSource
from tandem.relay.cloud_events import CloudEvent, CloudEvents, NotPublishable
from tandem.relay.settings import RelaySettings
from tandem.relay.sink import Origin, Place, PlaceTaken, Sink, SinkAway, SinkRefused
from tandem.runtime.sampled import SampledGauge
from tandem.runtime.supervised import supervise
from tandem.runtime.telemetry import log

POSITION = Gauge("tandem_relay_position", "The last position of the feed that the broker was seen to have")
PUBLISHED = Counter("tandem_relay_published_events_total", "Events that this relay published")
PUBLISHED_AGAIN = Counter(
    "tandem_relay_published_again_events_total", "Events that the broker had lost and that were published once more"
)
RETRIES = Counter(
    "tandem_relay_retries_total", "Times that the relay began anew from the broker's place, by reason", ["reason"]
)
MISSING = Gauge("tandem_relay_missing_events", "Events that somebody has deleted from the broker")

P = ParamSpec("P")
T = TypeVar("T")


class State(Enum):
    """See above."""

    STANDBY = "STANDBY"
    ACTIVE = "ACTIVE"
    AWAY = "AWAY"
    REFUSED = "REFUSED"


class _FeedAway(Exception):
    """The write database does not answer."""


class _OtherPlace(Exception):
    """The broker is not where this relay brought it to: it lost events, or another relay publishes."""


class Relay:
    """A Component. state, problem, position: for whoever asks, on the event loop."""

    def __init__(self, source: FeedSource, events: CloudEvents, sink: Sink, settings: RelaySettings, name: str) -> None:
        """source: for this relay alone. name: as the sink has it in Place."""
        self._source = source
        self._events = events
        self._sink = sink
        self._settings = settings
        self._name = name
        self._thread = ThreadPoolExecutor(1, "relay-feed")
        self._stop = threading.Event()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._behind_since: float | None = None
        self.state = State.STANDBY
        self.problem = ""
        self.position = 0
        LAG.watch(self)
        for state in State:
            STATE.watch(self, state.value)

    async def start(self) -> None:
        self._task = asyncio.create_task(supervise("relay", self._run))

    async def stop(self) -> None:
        """Waits for what is in flight."""
        self._stop.set()
        self._stopping.set()
        if self._task is not None:
            await self._task
        try:
            await self._sink.close()
        finally:
            await self._on_thread(self._source.close)
            await asyncio.to_thread(self._thread.shutdown)

    async def is_ready(self) -> bool:
        return self.state in {State.ACTIVE, State.STANDBY}

    @property
    def lag_seconds(self) -> float:
        """For how long the next event has waited; while it is not known whether there is one, since when that is so."""
        return 0.0 if self._behind_since is None else max(0.0, time.time() - self._behind_since)

    async def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                await self._follow()
            except (_OtherPlace, OtherEpoch) as error:
                self._note(State.STANDBY, "", "place")
                log.warning("the relay begins anew", reason=str(error))
            except PlaceTaken as error:
                self._note(State.STANDBY, "", "taken")
                log.info("the relay asks where to go on", reason=str(error))
            except (SinkAway, _FeedAway) as error:
                await self._pause(State.AWAY, str(error), "away")
            except (SinkRefused, BrokenOff, NotPublishable) as error:
                await self._pause(State.REFUSED, str(error), "refused")

    async def _pause(self, state: State, problem: str, reason: str) -> None:
        if self.problem != problem:
            log.warning("the relay cannot go on", state=state.value, problem=problem)
        self._note(state, problem, reason)
        if self._behind_since is None:
            self._behind_since = time.time()
        await self._wait(self._settings.retry_seconds)

    def _note(self, state: State, problem: str, reason: str) -> None:
        RETRIES.labels(reason).inc()
        self.state, self.problem = state, problem

    def _go_on(self, state: State) -> None:
        if self.problem:
            log.info("the relay goes on", state=state.value)
        self.state, self.problem = state, ""

    def _become_active(self, epoch: uuid.UUID, after: int) -> None:
        if self.state is not State.ACTIVE:
            log.info("the relay publishes", epoch=str(epoch), after=after)
        self._go_on(State.ACTIVE)

    async def _follow(self) -> None:
        """Until something is in the way, or it is to stop."""
        head = await self._head()
        ended = await self._on_thread(self._source.ended_epochs)
        if ended is None:
            raise _FeedAway(self._source.problem)
        feed = Origin(head.epoch, head.position, ended)
        place = await self._place(feed)
        # Where nobody else publishes, there is nobody to wait for.
        if place.relay not in {"", self._name}:
            place = await self._stand_by(feed, place)
        await self._publish_on(feed, place)

    async def _stand_by(self, feed: Origin, place: Place) -> Place:
        """Until the broker is behind the feed and nobody brings it on: returns where it is then."""
        since = time.monotonic()
        while not self._stopping.is_set():
            head = await self._head()
            if head.epoch != feed.epoch:
                raise OtherEpoch(f"the feed is {head.epoch} now, it was {feed.epoch}")
            self._go_on(State.STANDBY)
            if head.position <= place.position:
                self._behind_since = None
                since = time.monotonic()
            elif self._behind_since is None:
                self._behind_since = time.time()
            if time.monotonic() - since >= self._settings.takeover_seconds:
                break
            await self._wait(min(self._settings.takeover_seconds / 4, self._settings.check_seconds))
            before, place = place, await self._place(replace(feed, head=head.position))
            if place.position != before.position:
                self._behind_since = None
                since = time.monotonic()
        return place

    async def _publish_on(self, feed: Origin, place: Place) -> None:
        """What follows a place, until it is to stop."""
        epoch = feed.epoch
        at, mark = place.position, place.mark
        part = await self._read(epoch, at, mark)
        check_at = time.monotonic() + self._settings.check_seconds
        while not self._stopping.is_set():
            if part:
                self._behind_since = part[0].recorded_at
                last = part[-1]
                # What follows is read while this is published.
                following = asyncio.ensure_future(self._read(epoch, last.position, last.mark))
                try:
                    await self._sink.publish(epoch, part)
                except BaseException:
                    await asyncio.wait({following})
                    following.cancelled() or following.exception()
                    raise
                self._become_active(epoch, at)
                at, mark = last.position, last.mark
                PUBLISHED.inc(len(part))
                self._show(at)
                part = await following
            else:
                self._become_active(epoch, at)
                self._behind_since = None
                await self._on_thread(self._source.wait, self._stop)
                part = await self._read(epoch, at, mark)
            if time.monotonic() >= check_at:
                await self._check(replace(feed, head=max(feed.head, at)), at)
                check_at = time.monotonic() + self._settings.check_seconds

    async def _check(self, feed: Origin, at: int) -> None:
        """Whether the broker still has what was published. Raises _OtherPlace."""
        place = await self._place(feed)
        if place.position < at:
            PUBLISHED_AGAIN.inc(at - place.position)
            raise _OtherPlace(f"the broker lost events {place.position + 1} to {at}, which are published again")
        if place.position > at:
            raise _OtherPlace(f"{place.relay or 'somebody'} has published events {at + 1} to {place.position}")

    async def _head(self) -> FeedHead:
        head = await self._on_thread(self._source.marked_head)
        if head is None:
            raise _FeedAway(self._source.problem)
        return head

    async def _place(self, feed: Origin) -> Place:
        place = await self._sink.place(feed)
        MISSING.set(place.missing)
        self._show(place.position)
        return place

    async def _read(self, epoch: uuid.UUID, after: int, mark: int) -> Sequence[CloudEvent]:
        """What follows a position, perhaps nothing. Raises _FeedAway, BrokenOff and NotPublishable."""
        part = await self._on_thread(self._source.events, after, self._settings.batch_size, epoch, mark)
        if part is None:
            raise _FeedAway(self._source.problem)
        return await self._on_thread(self._made_of, part.events)

    def _made_of(self, stored: Sequence[FeedEvent]) -> list[CloudEvent]:
        """As many as there are before one that cannot be published. Raises NotPublishable where that is the first."""
        made: list[CloudEvent] = []
        for it in stored:
            try:
                made.append(self._events.of(it))
            except NotPublishable:
                if made:
                    break
                raise
        return made

    async def _on_thread(self, function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        call = partial(function, *arguments, **options)
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return

    def _show(self, position: int) -> None:
        self.position = position
        POSITION.set(position)


def _is_in(relay: Relay, state: str) -> float:
    return float(relay.state.value == state)


LAG: SampledGauge[Relay] = SampledGauge(
    "tandem_relay_lag_seconds",
    "For how long the next event has waited for the broker; while either store is away, since when that is not known",
    [],
    lambda it: it.lag_seconds,
    max,
)
STATE: SampledGauge[Relay] = SampledGauge(
    "tandem_relay_state", "1 for the state that the relay is in", ["state"], _is_in, max
)
