"""The thread that follows the feed's end, once for all who follow it here."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from projector.feed import Feed
from projector.feed_service.entry import entry_of
from projector.feed_service.live import Live
from shop.events import EVENTS
from tandem.feed.head import read_head
from tandem.feed.reader import read_events
from tandem.runtime.telemetry import log

_BATCH = 500
# How often it is asked whether the feed is still the one that it was; and after a failure, whether it is back.
_LOOK_SECONDS = 1.0


class Tail:
    """A Component. It reads while somebody follows; else it has no connection and costs nothing."""

    def __init__(self, feed: Feed, live: Live) -> None:
        self._feed = feed
        self._live = live
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="feed-tail", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        self._stop.set()
        self._live.wanted.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        self._live.end()

    def _run(self) -> None:
        while self._live.wanted.wait() and not self._stop.is_set():
            try:
                self._follow(self._live.turn)
            except Exception:
                log.exception("following the feed failed, starting over")
                self._on_loop(self._live.fail, "the feed could not be followed")
                self._stop.wait(_LOOK_SECONDS)
            if not self._live.wanted.is_set():
                # A connection that listens and is not read would fill PostgreSQL's queue of notifications.
                self._feed.close()
        self._feed.close()

    def _follow(self, turn: int) -> None:
        """Until nobody follows any more, or the feed is away or another."""
        head = self._feed.read(read_head)
        if head is None:
            return self._away()
        position, epoch = head.position, head.epoch
        self._on_loop(self._live.advance, turn, epoch, position, ())
        look_at = time.monotonic() + _LOOK_SECONDS
        while self._live.wanted.is_set() and self._live.turn == turn and not self._stop.is_set():
            after = position
            events = self._feed.read(partial(read_events, contract=EVENTS, after=after, limit=_BATCH, epoch=epoch))
            if events is None:
                return self._away()
            if events:
                self._on_loop(self._live.advance, turn, epoch, after, [entry_of(it) for it in events])
                position = events[-1].position
                continue
            if time.monotonic() >= look_at:
                head = self._feed.read(read_head)
                if head is None:
                    return self._away()
                if head.epoch != epoch:
                    return None
                look_at = time.monotonic() + _LOOK_SECONDS
            self._feed.wait(self._stop)
        return None

    def _away(self) -> None:
        self._on_loop(self._live.fail, self._feed.problem)
        self._stop.wait(_LOOK_SECONDS)

    def _on_loop(self, call: Callable[..., None], *arguments: Any) -> None:
        """Waits for it: what is read must not pile up before a loop that is busy."""
        assert self._loop is not None
        done: Future[None] = Future()

        def run() -> None:
            try:
                call(*arguments)
                done.set_result(None)
            except Exception as error:
                done.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        done.result()
