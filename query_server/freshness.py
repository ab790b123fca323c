"""How far the views are: follows the announcements, wakes those who wait for a position, knows when it is blind.

An announcement says a view's position and the cache epochs that belong to it; the two are used together and never
mixed with those of another. Without an announcement of a view for `blind_after` seconds, or while the connection that
listens is down, the view is blind: its cache is not read, and those who wait ask the database.
"""

import asyncio
import heapq
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import count

import psycopg
from prometheus_client import Counter, Gauge, Histogram

from query_server.settings import FreshnessSettings
from shop.views import VIEWS
from tandem.feed.token import Token
from tandem.read_store.announcement import Announcement, MalformedAnnouncement
from tandem.read_store.cache import CacheEpochs
from tandem.runtime.errors import Overloaded, Unavailable
from tandem.runtime.listener import Listener
from tandem.runtime.settings import SettingsError
from tandem.runtime.telemetry import log

POSITION = Gauge("tandem_announced_position", "The position of each view that was announced last", ["view"])
BLIND = Gauge(
    "tandem_freshness_blind", "1 while a view's announcements are missing and its cache is not read", ["view"]
)
WAITS = Histogram(
    "tandem_freshness_wait_seconds",
    "Time that calls with a token waited for its position; those that needed no wait are not counted",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
)
WAITERS = Gauge("tandem_freshness_waiters", "Calls that wait for a position")
IGNORED = Counter("tandem_announcements_ignored_total", "Announcements that were malformed or older than one before")

# How long a blind view's waiters wait between looks at the database; one look serves them all.
_POLL_SECONDS = 0.05
# The listening thread looks up this often, to stop or to notice that it is blind.
_LISTEN_SECONDS = 0.2
_RECONNECT_SECONDS = 0.5


@dataclass(frozen=True)
class Announced:
    """A view's last announcement."""

    token: Token
    cache_epochs: CacheEpochs
    """Empty where there is no cache."""
    heard_at: float


@dataclass(order=True)
class _Waiter:
    position: int
    number: int
    token: Token = field(compare=False)
    woken: asyncio.Future[bool] = field(compare=False)
    """True: the view has reached the token, or never will. False: something changed, look again."""


class Freshness:
    """`start` and `stop` make it a Component. `announced` may be called from any thread, the rest from the loop's."""

    def __init__(
        self,
        settings: FreshnessSettings,
        listener: Listener,
        read_positions: Callable[[], dict[str, Token]],
        *,
        with_cache: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """read_positions: the views' positions in the database; raises Unavailable. It is called in a thread.

        with_cache: False to take no notice of the nodes that are announced.
        """
        self._settings = settings
        self._listener = listener
        self._read_positions = read_positions
        self._with_cache = with_cache
        self._clock = clock
        self._announced: dict[str, Announced] = {}
        self._waiting: dict[str, list[_Waiter]] = {view: [] for view in VIEWS}
        self._waiters = 0
        self._numbers = count()
        self._poll: asyncio.Task[None] | None = None
        self._listeners: list[Callable[[str], None]] = []
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._follow, args=(loop,), name="freshness", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        self._stopping.set()
        if self._poll is not None:
            self._poll.cancel()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def announced(self, view: str) -> Announced | None:
        """The view's last announcement, or None while it is blind. It may be trusted together or not at all."""
        last = self._announced.get(view)
        if last is None or self._clock() - last.heard_at >= self._settings.blind_after:
            return None
        return last

    def tell(self, listener: Callable[[str], None]) -> None:
        """`listener` is called on the event loop with the view whenever an announcement says another position of it."""
        self._listeners.append(listener)

    async def reach(self, view: str, token: Token, seconds: float) -> None:
        """Returns when `view` includes `token`, or when only the database can tell; the answer is to be checked.

        Raises Unavailable with reason PROJECTION_LAG after `seconds`, Overloaded when too many wait.
        """
        if self._is_decided(view, token):
            return
        started = self._clock()
        try:
            async with asyncio.timeout(seconds):
                while not self._is_decided(view, token) and not await self._wait(view, token):
                    pass
        except TimeoutError:
            last = self.announced(view)
            if last is not None and not self._is_decided(view, token):
                raise projection_lag(view, last.token, token) from None
        finally:
            WAITS.observe(self._clock() - started)

    def hear(self, announcement: Announcement, heard_at: float) -> None:
        """Takes an announcement in. Within a feed's epoch an older one is a deposed projector's and is ignored."""
        for view, position in announcement.positions.items():
            if view not in VIEWS:
                # A newer projector has views that this program does not know.
                continue
            token = Token(announcement.feed_epoch, position)
            last = self._announced.get(view)
            same_feed = last is not None and last.token.epoch == token.epoch
            if last is not None and same_feed and position < last.token.position:
                IGNORED.inc()
                continue
            was_blind = self.announced(view) is None
            epochs = announcement.cache_epochs.get(view, {}) if self._with_cache else {}
            self._announced[view] = Announced(token, epochs, heard_at)
            _position(view).set(position)
            if was_blind or not same_feed:
                # Some may wait with a token of another feed: that is decided now, but not by positions.
                self._wake_all(view)
            else:
                self._wake(view, position)
            if was_blind or last is None or token != last.token:
                for listener in self._listeners:
                    listener(view)

    def doubt(self, view: str) -> None:
        """The database is behind what was announced: the view is made anew, or lost commits in a failover.

        Those who wait ask the database, until an announcement says that the view is back where it was.
        """
        if view in self._announced:
            self._announced[view] = replace(self._announced[view], heard_at=float("-inf"))

    def lose(self) -> None:
        """The connection that listens is down: nothing is trusted until the next announcement."""
        # Positions are kept, so that the first announcement heard again cannot take a view back.
        self._announced = {view: replace(it, heard_at=float("-inf")) for view, it in self._announced.items()}

    def _is_decided(self, view: str, token: Token) -> bool:
        last = self.announced(view)
        return last is not None and (last.token.epoch != token.epoch or last.token.includes(token))

    async def _wait(self, view: str, token: Token) -> bool:
        if self._waiters >= self._settings.max_waiters:
            raise Overloaded(f"{self._waiters} calls wait for a position already")
        waiter = _Waiter(token.position, next(self._numbers), token, asyncio.get_running_loop().create_future())
        heapq.heappush(self._waiting[view], waiter)
        self._waiters += 1
        WAITERS.set(self._waiters)
        if self._poll is None or self._poll.done():
            self._poll = asyncio.create_task(self._poll_while_blind())
        try:
            return await waiter.woken
        finally:
            self._waiters -= 1
            WAITERS.set(self._waiters)
            if waiter.woken.cancelled():
                self._forget_the_gone(view)

    def _forget_the_gone(self, view: str) -> None:
        """Waiters that gave up stay in the heap until they are half of it: taking one out costs a walk through it."""
        waiting = self._waiting[view]
        if len(waiting) > 2 * self._waiters + 16:
            waiting[:] = [it for it in waiting if not it.woken.done()]
            heapq.heapify(waiting)

    def _wake(self, view: str, position: int) -> None:
        waiting = self._waiting[view]
        while waiting and waiting[0].position <= position:
            _answer(heapq.heappop(waiting), True)

    def _wake_all(self, view: str) -> None:
        waiting, self._waiting[view] = self._waiting[view], []
        for waiter in waiting:
            _answer(waiter, False)

    async def _poll_while_blind(self) -> None:
        """Looks at the database for the waiters of blind views, for as long as anybody waits."""
        while self._waiters:
            blind = [view for view, waiting in self._waiting.items() if waiting and self.announced(view) is None]
            if blind:
                try:
                    positions = await asyncio.to_thread(self._read_positions)
                except Unavailable:
                    # It is logged where it is raised; those who wait find out when they read.
                    positions = {}
                for view in blind:
                    if view in positions:
                        self._settle(view, positions[view])
            await asyncio.sleep(_POLL_SECONDS)

    def _settle(self, view: str, actual: Token) -> None:
        for waiter in self._waiting[view]:
            if actual.epoch != waiter.token.epoch or actual.includes(waiter.token):
                _answer(waiter, True)
        self._waiting[view] = [it for it in self._waiting[view] if not it.woken.done()]
        heapq.heapify(self._waiting[view])

    def _follow(self, loop: asyncio.AbstractEventLoop) -> None:
        """The listening thread."""
        connected = True
        while not self._stopping.is_set():
            try:
                payloads = self._listener.wait(_LISTEN_SECONDS)
                connected = True
            except (psycopg.Error, SettingsError) as error:
                if connected:
                    log.warning("announcements cannot be heard", error=str(error)[:500])
                connected = False
                loop.call_soon_threadsafe(self.lose)
                self._stopping.wait(_RECONNECT_SECONDS)
                payloads = []
            if payloads:
                loop.call_soon_threadsafe(self._hear_all, payloads, self._clock())
            for view in VIEWS:
                _blind(view).set(self.announced(view) is None)
        self._listener.close()

    def _hear_all(self, payloads: Sequence[str], heard_at: float) -> None:
        for payload in payloads:
            try:
                announcement = Announcement.decode(payload)
            except MalformedAnnouncement as error:
                IGNORED.inc()
                log.warning("not an announcement", payload=str(error))
            else:
                self.hear(announcement, heard_at)


# With every announcement, and looked up by its label each time takes longer than to set it.
_position = cache(POSITION.labels)
_blind = cache(BLIND.labels)


def _answer(waiter: _Waiter, reached: bool) -> None:
    if not waiter.woken.done():
        waiter.woken.set_result(reached)


def projection_lag(view: str, seen: Token, wanted: Token) -> Unavailable:
    """The view has not reached the token in time; both are of one feed."""
    behind = wanted.position - seen.position
    return Unavailable(
        f"the view {view} is {behind} events behind the token; it is safe to ask again",
        reason="PROJECTION_LAG",
        metadata={
            "view": view,
            "position": str(seen.position),
            "wanted": str(wanted.position),
            "behind": str(behind),
        },
    )
