"""Those who follow the feed, and what is in memory for them. All of it belongs to the event loop."""

import asyncio
import threading
import uuid
from collections.abc import Sequence

from prometheus_client import Gauge

from projector.feed_service.entry import Entry
from projector.feed_service.refusals import another_feed, store_away
from projector.feed_service.ring import Ring
from projector.settings import FeedServiceSettings
from tandem.runtime.errors import Overloaded

IN_MEMORY = Gauge("tandem_feed_events_in_memory", "Events of the feed that are kept in memory for those who follow it")

# Who loses a connection is back within seconds, and finds what it missed in memory.
_LINGER_SECONDS = 10.0


class Live:
    """`wanted` is set while somebody follows, and a little longer; `turn` counts how often it was set."""

    def __init__(self, settings: FeedServiceSettings) -> None:
        self.ring = Ring(settings.ring_events, settings.ring_bytes)
        self.wanted = threading.Event()
        self.turn = 0
        self._limit = settings.max_subscribers
        self._wakes: set[asyncio.Event] = set()
        self._problem = ""
        self._ending: asyncio.TimerHandle | None = None

    def join(self, wake: asyncio.Event) -> None:
        """`wake` is set whenever there is more. Raises Overloaded."""
        if len(self._wakes) >= self._limit:
            raise Overloaded(f"more than {self._limit} subscribers", retry_after=1.0)
        self._wakes.add(wake)
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
        if not self.wanted.is_set():
            self.turn += 1
            self.wanted.set()

    def leave(self, wake: asyncio.Event) -> None:
        self._wakes.discard(wake)
        if not self._wakes:
            self._ending = asyncio.get_running_loop().call_later(_LINGER_SECONDS, self.end)

    def end(self) -> None:
        """Nobody follows any more: nothing is read, and nothing kept."""
        self.wanted.clear()
        self.ring.drop()
        self._problem = ""
        IN_MEMORY.set(0)

    def check(self, epoch: uuid.UUID | None = None) -> None:
        """Raises Unavailable while the feed cannot be read, PreconditionFailed when it is not `epoch`'s any more."""
        if self._problem:
            raise store_away(self._problem)
        if epoch is not None and self.ring.epoch is not None and self.ring.epoch != epoch:
            raise another_feed()

    def advance(self, turn: int, epoch: uuid.UUID, after: int, entries: Sequence[Entry]) -> None:
        """More events, or none and the feed is where it was."""
        if turn != self.turn or not self.wanted.is_set():
            return
        self._problem = ""
        news = bool(entries) or self.ring.epoch != epoch
        self.ring.advance(epoch, after, entries)
        IN_MEMORY.set(len(self.ring))
        if news:
            self._wake_all()

    def fail(self, problem: str) -> None:
        """The feed cannot be read: those who follow are better off at another projector."""
        if self.wanted.is_set():
            self._problem = problem
            self.ring.drop()
            self._wake_all()

    def _wake_all(self) -> None:
        for wake in self._wakes:
            wake.set()
