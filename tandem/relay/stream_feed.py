"""The feed as a relay's streams have it: for who follows it where the write database is not, as in another region.

It is a tandem.feed.source.Feed, in which the broker is what the table is elsewhere:

    epoch            of the latest of the relay's streams
    position, mark   a message's sequence and its header; what a message there is compared with when one goes on
    ended epochs     what the stream's metadata says, which the relay wrote when it made it

A stream that is behind where a reader is has lost its end, or is not filled yet: it is waited for, since the relay
publishes what is missing, with the same positions and marks. It is another history where the stream was filled up to
where the feed was when it was made, and the position is beyond that.

Personal data is in it as the relay's setting has it: sealed, it is as that of a person who was erased.
"""

import asyncio
import contextlib
import json
import threading
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Collection, Coroutine
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

import nats.errors
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, Header, StreamInfo
from nats.js.errors import NotFoundError

from tandem.feed.events import EventContract, FeedEvent
from tandem.feed.head import FeedHead
from tandem.feed.reader import MAX_BYTES, EventsMissing, FeedPart, HistoryChanged, OtherEpoch, ScannedPart
from tandem.feed.token import epoch_order
from tandem.relay.cloud_events import CloudEvents
from tandem.relay.jetstream import ENDED, EPOCH, FIRST, HEAD, PREFIX, NatsConnection, asked, said, stream_of
from tandem.relay.settings import NatsSettings
from tandem.relay.sink import SinkAway, SinkRefused
from tandem.runtime.telemetry import log

T = TypeVar("T")

_RETRY_SECONDS = 1.0
# Of one request to a consumer. Until the next one is there, which takes a round trip of the line, nothing is sent: what
# is committed then is that much later. Meanwhile a server that is there says so, and one that is gone does not.
_EXPIRES_SECONDS = 30.0
_HEARTBEAT_SECONDS = 1.0
_SILENT_SECONDS = 3.0
# For what has come while nobody asked, and was not looked at yet.
_LOOK_SECONDS = 0.05
_MOST_EVENTS = 1000
# A consumer that nobody asks for so long is gone.
_INACTIVE_SECONDS = 60.0
# Statuses: a heartbeat; and what ends a request of which nothing is wrong (no messages, its time is over, a leader that
# hands over, more than so many bytes).
_STILL_THERE = "100"
_ENDED_WELL = ("404", "408", "409")
# How old what is known of the head may be.
_HEAD_SECONDS = 5.0
# Of places where somebody reads on at the same time: a view that is made anew beside those that are served.
_MOST_CURSORS = 4


@dataclass
class _Cursor:
    """A consumer of the stream, which sends what is asked for.

    newest: the position behind which it sends on. pending: events that the stream had behind that. got: what is not
    read yet. awaited: what is asked for and did not come yet; asked_until: when the server is to have said something.
    gone: it sends nothing any more. connection: the number of the one by which it sends; what was on its
    way when that broke is lost, and what another one brings does not follow.
    """

    stream: str
    consumer: str
    inbox: str
    newest: int
    pending: int
    connection: int
    subscription: Any = None
    got: deque[Msg] = field(default_factory=deque)
    awaited: int = 0
    asked_until: float = 0.0
    gone: bool = False

    def note(self, message: Msg) -> None:
        """What the server sent."""
        headers = message.headers or {}
        self.asked_until = time.monotonic() + _SILENT_SECONDS
        status = headers.get(Header.STATUS)
        if status is None:
            self.awaited -= 1
            # One that begins behind the stream's end may be given what is before.
            if message.metadata.sequence.stream > self.newest:
                self.newest = message.metadata.sequence.stream
                self.got.append(message)
                self.pending = message.metadata.num_pending
        elif status != _STILL_THERE:
            self.awaited = 0
            self.gone |= status not in _ENDED_WELL or "Deleted" in headers.get(Header.DESCRIPTION, "")


@dataclass
class _KnownHead:
    """The head, as it was. until: when that is too old. later: what it is now, as it was asked then."""

    head: FeedHead
    until: float
    later: "asyncio.Future[FeedHead | SinkAway | SinkRefused]"


class StreamFeed:
    """A Feed. It runs an event loop on the thread that calls it, and while that calls."""

    def __init__(self, settings: NatsSettings, contract: EventContract[Any], *, name: str, poll_seconds: float) -> None:
        """name: what the NATS server shows. poll_seconds: as FeedSource has it.

        Raises SettingsError where a file of the settings cannot be used.
        """
        self._settings = settings
        self._events = CloudEvents(contract, "", opened=True)
        self._connection = NatsConnection(settings, name)
        self._poll_seconds = poll_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._retry_at = 0.0
        self._stream: StreamInfo | None = None
        self._cursors: OrderedDict[int, _Cursor] = OrderedDict()
        # Whose subscriptions are still to be ended.
        self._dropped: list[_Cursor] = []
        self._arrived = asyncio.Event()
        # Of the last event that was read: whoever reads on need not be compared with the stream.
        self._last: tuple[uuid.UUID, int, int] | None = None
        self._known_head: _KnownHead | None = None
        # How far each epoch was read.
        self._read_until: dict[uuid.UUID, int] = {}
        self.problem = ""

    # A Feed's.

    def head(self) -> FeedHead | None:
        """As it was when it was asked for the time before, where that is not long ago: whoever follows is not to wait a
        round trip of the line each time, while events come.
        """
        return self._ask(self._head())

    def head_now(self) -> FeedHead | None:
        return self._ask(self._head_now())

    def events(self, after: int, limit: int, epoch: uuid.UUID, mark: int) -> FeedPart | None:
        return self._ask(self._read(after, limit, epoch, mark))

    def scan(
        self,
        after: int,
        until: int,
        limit: int,
        epoch: uuid.UUID,
        *,
        kinds: Collection[str],
        texts: Collection[str] = (),  # noqa: ARG002 - no broker looks into payloads
    ) -> ScannedPart | None:
        part = self.events(after, min(limit, until - after), epoch, 0)
        if part is None:
            return None
        found = part.events[-1].position if part.events else after
        return ScannedPart([it for it in part.events if it.kind in kinds], found)

    def ended_epochs(self) -> frozenset[uuid.UUID] | None:
        stream = self._ask(self._latest())
        if stream is None:
            return None
        return frozenset(map(uuid.UUID, (stream.config.metadata or {}).get(ENDED, "").split()))

    def recorded_at(self, position: int) -> datetime | None:
        """When the event at a position of the latest epoch was stored. Raises LookupError where the stream has none."""
        return self._ask(self._recorded_at(position))

    def wait(self, stop: threading.Event, seconds: float | None = None) -> None:
        longest = self._poll_seconds if seconds is None else min(seconds, self._poll_seconds)
        if self._loop is None:
            stop.wait(longest)
        elif self.problem or not self._cursors:
            # Not without the loop: a connection that broke comes back on it alone.
            self._loop.run_until_complete(asyncio.sleep(longest))
        else:
            self._loop.run_until_complete(self._until_more(longest))

    def close(self) -> None:
        loop, self._loop = self._loop, None
        if loop is None:
            return
        loop.run_until_complete(self._connection.close())
        # What the connection had running ends now.
        if rest := asyncio.all_tasks(loop):
            for it in rest:
                it.cancel()
            loop.run_until_complete(asyncio.wait(rest))
        loop.close()
        self._forget()
        self._dropped.clear()

    # What may fail, on the loop.

    def _ask(self, answer: Coroutine[Any, Any, T]) -> T | None:
        if self.problem and time.monotonic() < self._retry_at:
            answer.close()
            return None
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        try:
            found = self._loop.run_until_complete(answer)
        except OtherEpoch:
            # Of which epoch it is now is to be known at once.
            self._forget_head()
            raise
        except (SinkAway, SinkRefused) as error:
            self._forget()
            self._connection.note_silence()
            problem = f"the broker cannot be read: {error}"
            if problem != self.problem:
                log.warning("the feed is away", error=problem)
            self.problem = problem
            self._retry_at = time.monotonic() + _RETRY_SECONDS
            return None
        if self.problem:
            log.info("the feed is back")
            self.problem = ""
        return found

    def _forget_head(self) -> None:
        known, self._known_head = self._known_head, None
        if known is not None:
            known.later.cancel()

    def _forget(self) -> None:
        self._forget_head()
        self._dropped += self._cursors.values()
        self._cursors.clear()
        self._last = None

    async def _head(self) -> FeedHead:
        known = self._known_head
        if known is None or time.monotonic() > known.until:
            # Also where the answer was lost with a connection, which nobody has waited for.
            self._forget_head()
            known = self._known_head = self._ask_again(await self._head_now())
        elif known.later.done():
            self._known_head, found = None, known.later.result()
            if isinstance(found, Exception):
                raise found
            known = self._known_head = self._ask_again(found)
        return known.head

    def _ask_again(self, head: FeedHead) -> "_KnownHead":
        """On the loop, which runs while somebody waits for events."""
        return _KnownHead(head, time.monotonic() + _HEAD_SECONDS, asyncio.ensure_future(self._head_later()))

    async def _head_later(self) -> FeedHead | SinkAway | SinkRefused:
        try:
            return await self._head_now()
        except (SinkAway, SinkRefused) as error:
            return error

    async def _head_now(self) -> FeedHead:
        stream = await self._latest()
        return FeedHead(_epoch_of(stream), _last_of(stream))

    async def _latest(self) -> StreamInfo:
        """The stream of the latest epoch. Raises SinkAway where there is none yet."""
        js = await self._connection.jetstream()
        found = await asked(js.streams_info())
        ours = [it for it in found if _is_of(it, self._settings.stream)]
        if not ours:
            raise SinkAway(f"no relay has made a stream {self._settings.stream}-… yet")
        self._stream = max(ours, key=lambda it: epoch_order(_epoch_of(it)))
        return self._stream

    async def _recorded_at(self, position: int) -> datetime:
        js = await self._connection.jetstream()
        stream = self._stream or await self._latest()
        try:
            message = await asked(js.get_msg(stream.config.name or "", position))
            return datetime.fromisoformat((message.headers or {})[f"{PREFIX}time"])
        except NotFoundError:
            raise LookupError(f"the stream has no event {position}") from None

    async def _known(self, js: JetStreamContext, epoch: uuid.UUID) -> StreamInfo:
        """The stream of an epoch, as it is now. Raises OtherEpoch where it is not the latest any more."""
        try:
            self._stream = await asked(js.stream_info(stream_of(self._settings.stream, epoch)))
        except NotFoundError:
            latest = _epoch_of(await self._latest())
            raise OtherEpoch(f"the feed is {latest} now, it was {epoch}") from None
        return self._stream

    async def _read(self, after: int, limit: int, epoch: uuid.UUID, mark: int) -> FeedPart:
        js = await self._connection.jetstream()
        if self._stream is None or _epoch_of(self._stream) != epoch:
            latest = _epoch_of(await self._latest())
            if latest != epoch:
                raise OtherEpoch(f"the feed is {latest} now, it was {epoch}")
        cursor = self._cursors.get(after)
        self._look_at_connection(cursor)
        # One that is gone went with a server, and the stream may be another one now.
        goes_on = cursor is not None and bool(cursor.got or not cursor.gone)
        if not limit or not goes_on or self._last != (epoch, after, mark):
            await self._compare(js, epoch, after, mark)
        if not limit:
            assert self._stream is not None
            return FeedPart([], _last_of(self._stream), None)
        if cursor is None or not goes_on:
            cursor = await self._new_cursor(js, epoch, after)
        events = self._events_of(await self._take(js, cursor, limit), after)
        self._last = epoch, *((events[-1].position, events[-1].mark) if events else (after, mark))
        if not events:
            self._cursors.move_to_end(after)
            return FeedPart([], after, None)
        last = events[-1].position
        self._read_until[epoch] = max(self._read_until.get(epoch, 0), last)
        del self._cursors[after]
        await self._keep(last, cursor)
        return FeedPart(events, last + len(cursor.got) + cursor.pending, None)

    def _events_of(self, messages: list[Msg], after: int) -> list[FeedEvent]:
        """Raises EventsMissing where they do not follow a position without a gap, SinkRefused for what is no event."""
        events: list[FeedEvent] = []
        for message in messages:
            sequence = message.metadata.sequence.stream
            try:
                event = self._events.feed_event(message.headers or {}, PREFIX, message.data)
            except ValueError as error:
                raise SinkRefused(f"message {sequence} of the stream is {error}") from error
            if event.position != sequence:
                raise SinkRefused(f"message {sequence} of the stream is event {event.position}: no relay published it")
            if event.position != after + len(events) + 1:
                self._forget()
                state = self._stream.state if self._stream is not None else None
                dropped = not events and state is not None and state.first_seq >= event.position
                raise EventsMissing(after + len(events), event.position, dropped=dropped)
            events.append(event)
        return events

    async def _compare(self, js: JetStreamContext, epoch: uuid.UUID, after: int, mark: int) -> None:
        """Whether the stream has what was read. Raises HistoryChanged, and SinkAway where it will have it."""
        stream = await self._known(js, epoch)
        last, first = _last_of(stream), max(stream.state.first_seq, 1)
        if last < after:
            if last >= int((stream.config.metadata or {}).get(HEAD, "0")) and self._never_read(epoch, after):
                raise HistoryChanged(f"the stream ends at event {last}, and event {after} was read")
            raise SinkAway(f"the stream has events up to {last}, and is read from {after} on: it is being filled")
        if after and mark and after >= first:
            try:
                message = await asked(js.get_msg(stream_of(self._settings.stream, epoch), after))
            except NotFoundError:
                return
            if int((message.headers or {}).get(f"{PREFIX}tandemmark", "0")) not in {0, mark}:
                raise HistoryChanged(f"event {after} of the stream is not the one that was read there")

    def _never_read(self, epoch: uuid.UUID, after: int) -> bool:
        """Whether the position may be of another history: not where it was read in this epoch."""
        return self._read_until.get(epoch, 0) < after

    async def _new_cursor(self, js: JetStreamContext, epoch: uuid.UUID, after: int) -> _Cursor:
        """A consumer that goes on behind a position."""
        client, number = js._nc, self._connection.number
        inbox = client.new_inbox()
        config = ConsumerConfig(
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=after + 1,
            ack_policy=AckPolicy.NONE,
            num_replicas=1,
            mem_storage=True,
            inactive_threshold=_INACTIVE_SECONDS,
        )
        try:
            info = await asked(js.add_consumer(stream_of(self._settings.stream, epoch), config))
        except NotFoundError as error:
            raise SinkAway(f"the stream is gone: {said(error)}") from error
        cursor = _Cursor(info.stream_name, info.name, inbox, after, info.num_pending or 0, number)

        async def take(message: Msg) -> None:
            self._look_at_connection(cursor)
            if not cursor.gone:
                cursor.note(message)
            self._arrived.set()

        cursor.subscription = await client.subscribe(inbox, cb=take)
        await self._keep(after, cursor)
        return cursor

    async def _keep(self, at: int, cursor: _Cursor) -> None:
        self._dropped += [it for it in [self._cursors.pop(at, None)] if it is not None]
        self._cursors[at] = cursor
        while len(self._cursors) > _MOST_CURSORS:
            self._dropped.append(self._cursors.popitem(last=False)[1])
        while self._dropped:
            with contextlib.suppress(nats.errors.Error):
                # Of a connection that is closed, and its subscriptions with it.
                await self._dropped.pop().subscription.unsubscribe()

    def _look_at_connection(self, cursor: _Cursor | None) -> None:
        if cursor is not None:
            cursor.gone |= cursor.connection != self._connection.number

    async def _take(self, js: JetStreamContext, cursor: _Cursor, limit: int) -> list[Msg]:
        """What has come of what is behind the cursor, at most so many; waits for it where the stream has any.

        Raises SinkAway where it does not come.
        """
        deadline = time.monotonic() + self._settings.ack_seconds
        await self._request(js, cursor, limit)
        while not cursor.got and cursor.pending and not cursor.gone:
            if not await self._until_arrival(deadline - time.monotonic()):
                cursor.gone = True
            await self._request(js, cursor, limit)
        if cursor.gone and not cursor.got and cursor.pending:
            raise SinkAway("JetStream does not send what it has")
        return [cursor.got.popleft() for _ in range(min(limit, len(cursor.got)))]

    async def _request(self, js: JetStreamContext, cursor: _Cursor, limit: int) -> None:
        """Asks for more, where nothing is asked for and all that came was read."""
        self._look_at_connection(cursor)
        if cursor.awaited > 0:
            if time.monotonic() > cursor.asked_until and not await self._until_arrival(_LOOK_SECONDS):
                cursor.gone = True
            return
        if cursor.got or cursor.gone:
            return
        cursor.awaited = min(limit, _MOST_EVENTS)
        cursor.asked_until = time.monotonic() + _SILENT_SECONDS
        request = {
            "batch": cursor.awaited,
            "max_bytes": MAX_BYTES,
            "expires": int(_EXPIRES_SECONDS * 1e9),
            "idle_heartbeat": int(_HEARTBEAT_SECONDS * 1e9),
        }
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{cursor.stream}.{cursor.consumer}"
        try:
            await js._nc.publish(subject, json.dumps(request).encode(), cursor.inbox)
        except (OSError, nats.errors.Error) as error:
            raise SinkAway(f"JetStream cannot be asked: {said(error)}") from error

    async def _until_arrival(self, seconds: float) -> bool:
        self._arrived.clear()
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._arrived.wait()
        except TimeoutError:
            return False
        return True

    async def _until_more(self, seconds: float) -> None:
        """Until the cursor that was read last has more, or has to be made anew."""
        deadline = time.monotonic() + seconds
        cursor = next(reversed(self._cursors.values()))
        try:
            js = await self._connection.jetstream()
            while not cursor.got and not cursor.gone and (left := deadline - time.monotonic()) > 0:
                await self._request(js, cursor, _MOST_EVENTS)
                await self._until_arrival(left)
        except (SinkAway, SinkRefused):
            # Whoever reads next says so.
            await asyncio.sleep(max(0.0, deadline - time.monotonic()))


def _is_of(stream: StreamInfo, prefix: str) -> bool:
    """Whether a relay has made it for this prefix."""
    epoch = (stream.config.metadata or {}).get(EPOCH)
    return epoch is not None and stream.config.name == stream_of(prefix, uuid.UUID(epoch))


def _epoch_of(stream: StreamInfo) -> uuid.UUID:
    return uuid.UUID((stream.config.metadata or {})[EPOCH])


def _last_of(stream: StreamInfo) -> int:
    """The position of its last event; of the one before its first, while it has none."""
    return max(stream.state.last_seq, int((stream.config.metadata or {}).get(FIRST, "1")) - 1)
