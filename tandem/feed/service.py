"""FeedService: one follower's way from where it begins to the feed's end, and on."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator

from prometheus_client import Counter

from commerce.feed.v1.feed_service_pb2 import GetHeadRequest, GetHeadResponse, SubscribeRequest
from projector.feed_service.batch import Batch, Selection, cut, message
from projector.feed_service.history import History
from projector.feed_service.live import Live
from projector.feed_service.refusals import ahead, another_feed
from projector.feed_service.validation import MAX_BATCH_EVENTS, Place, check
from tandem.feed.head import FeedHead
from tandem.feed.token import Token, encode_token
from tandem.runtime.calls import Call, StreamCall, stopping_error

SENT = Counter("tandem_feed_sent_events_total", "Events that followers were sent, by where they came from", ["source"])

# Rows that are looked through at once for the few that are wanted.
_SCAN = MAX_BATCH_EVENTS


class FeedServicer:
    def __init__(self, history: History, live: Live) -> None:
        self._history = history
        self._live = live

    async def GetHead(self, _request: GetHeadRequest, _call: Call) -> GetHeadResponse:
        head = await self._history.head()
        return GetHeadResponse(cursor=encode_token(head.epoch, head.position), position=head.position)

    async def Subscribe(self, request: SubscribeRequest, call: StreamCall) -> AsyncGenerator[bytes, None]:
        wish = check(request)
        wake = asyncio.Event()
        call.when_stopping(wake.set)
        self._live.join(wake)
        try:
            await self._until_live(wake, call)
            head = await self._history.head()
            follower = _Follower(self._history, self._live, head.epoch, _first(wish.start, head), wish.selection)
            due = 0.0
            while True:
                wake.clear()
                if call.stopping:
                    yield follower.farewell()
                    raise stopping_error()
                batch, news = await follower.next()
                if batch.items or news or time.monotonic() >= due:
                    yield message(head.epoch, batch, caught_up=news)
                    due = time.monotonic() + wish.heartbeat_seconds
                if follower.at_head:
                    await _either(wake, due)
        finally:
            self._live.leave(wake)

    async def _until_live(self, wake: asyncio.Event, call: StreamCall) -> None:
        """Waits until the tail is followed: who then reads up to the head finds all that comes after it in memory."""
        while self._live.ring.epoch is None:
            self._live.check()
            if call.stopping:
                raise stopping_error()
            await wake.wait()
            wake.clear()


class _Follower:
    """Where a follower is. position: all that it wants up to there, it was given. at_head: that was all there was."""

    def __init__(self, history: History, live: Live, epoch: uuid.UUID, position: int, selection: Selection) -> None:
        self._history = history
        self._live = live
        self._epoch = epoch
        self._selection = selection
        self._rows = selection.max_events
        self._caught_up = False
        self.position = position
        self.at_head = False

    async def next(self) -> tuple[Batch, bool]:
        """What follows, perhaps nothing, and whether the follower has caught up with it."""
        self._live.check(self._epoch)
        ring = self._live.ring
        if ring.covers(self.position):
            rows = ring.after(self.position, _SCAN)
            batch = cut(rows, self._selection, after=self.position, head=ring.last, read=lambda entry: entry)
            SENT.labels("memory").inc(len(batch.items))
        else:
            self._caught_up = False
            batch = await self._history.read(self._epoch, self.position, self._selection, self._rows)
            SENT.labels("database").inc(len(batch.items))
            # Where few are wanted more are looked through, but not more than are wanted where most are.
            enough = 2 * len(batch.items) >= self._selection.max_events
            self._rows = self._selection.max_events if enough else min(2 * self._rows, _SCAN)
        self.position = batch.position
        self.at_head = batch.position >= batch.head
        news = self.at_head and not self._caught_up
        self._caught_up |= self.at_head
        return batch, news

    def farewell(self) -> bytes:
        return message(self._epoch, Batch([], self.position, max(self.position, self._live.ring.last)), caught_up=False)


def _first(start: Token | Place, head: FeedHead) -> int:
    """The position after which to begin. Raises PreconditionFailed and OutOfRange."""
    match start:
        case Place.BEGINNING:
            return 0
        case Place.NOW:
            return head.position
        case Token():
            if start.epoch != head.epoch:
                raise another_feed()
            if start.position > head.position:
                raise ahead(head.position)
            return start.position


async def _either(wake: asyncio.Event, due: float) -> None:
    """Until there is more, or it is time for a heartbeat."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(max(0.0, due - time.monotonic())):
            await wake.wait()
