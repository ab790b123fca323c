"""The feed as it is looked up in the relay's stream: for a projector that follows that, and not the table."""

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Collection
from datetime import datetime
from typing import Any, TypeVar

from tandem.feed.events import EventContract, FeedEvent
from tandem.feed.head import FeedHead
from tandem.feed.lookup import Lookup
from tandem.feed.reader import EventsMissing, ScannedPart
from tandem.relay.settings import NatsSettings
from tandem.relay.stream_feed import StreamFeed
from tandem.runtime.errors import Unavailable

T = TypeVar("T")

# One that nobody has used for so long is not used again: it hears nothing meanwhile, and the server gives it up.
_IDLE_SECONDS = 30.0


class StreamLookup:
    """A Lookup."""

    def __init__(self, feed: StreamFeed) -> None:
        self._feed = feed

    def head(self) -> FeedHead:
        return self._answered(self._feed.head_now())

    def event(self, position: int, epoch: uuid.UUID) -> FeedEvent:
        events = self._answered(self._feed.events(position - 1, 1, epoch, 0)).events
        if not events:
            raise EventsMissing(position - 1, position + 1, dropped=False)
        return events[0]

    def recorded_at(self, position: int) -> datetime | None:
        with contextlib.suppress(LookupError):
            return self._answered(self._feed.recorded_at(position))
        return None

    def scan(
        self,
        after: int,
        until: int,
        limit: int,
        *,
        epoch: uuid.UUID,
        kinds: Collection[str],
        texts: Collection[str] = (),
    ) -> ScannedPart:
        part = self._answered(self._feed.scan(after, until, limit, epoch, kinds=kinds, texts=texts))
        if part.until == after < until:
            raise Unavailable(f"the stream ends at event {after}, and is being filled", reason="STORE_UNAVAILABLE")
        return part

    def unfinished(self) -> tuple[bool, int]:
        """What the stream has of a person stays as it is: there is nothing that an erasure under way makes differ."""
        return False, self.head().position

    def _answered(self, answer: T | None) -> T:
        if answer is None:
            raise Unavailable(self._feed.problem, reason="STORE_UNAVAILABLE")
        return answer


class StreamLookups:
    """Lookups. Each question that is under way has a connection, which the next one finds."""

    what = "broker"

    def __init__(self, settings: NatsSettings, contract: EventContract[Any], *, name: str) -> None:
        """name: what the NATS server shows."""
        self._settings, self._contract, self._name = settings, contract, name
        self._lock = threading.Lock()
        # And until when they may be used.
        self._free: list[tuple[StreamFeed, float]] = []
        self._is_closed = False

    def read(self, query: Callable[[Lookup], T]) -> T:
        feed = self._take()
        try:
            return query(StreamLookup(feed))
        finally:
            self._give_back(feed)

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            free, self._free = self._free, []
        for feed, _ in free:
            feed.close()

    def _take(self) -> StreamFeed:
        now = time.monotonic()
        with self._lock:
            old = [feed for feed, until in self._free if until <= now]
            self._free = [it for it in self._free if it[1] > now]
            found = self._free.pop()[0] if self._free else None
        for feed in old:
            feed.close()
        return found or StreamFeed(self._settings, self._contract, name=self._name, poll_seconds=1.0)

    def _give_back(self, feed: StreamFeed) -> None:
        with self._lock:
            if not self._is_closed:
                self._free.append((feed, time.monotonic() + _IDLE_SECONDS))
                return
        feed.close()
