"""Watches on a view that does what a test says, for tests without a database."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from query_server.database import Changes, State, States
from query_server.freshness import Freshness
from query_server.views import Need, Views
from query_server.watch import Watched, Watches

from commerce.query.v1.views_pb2 import OrderDetails
from query_server.settings import FreshnessSettings, WatchSettings
from tandem.feed.token import Token
from tandem.read_store.announcement import Announcement
from tandem.runtime.errors import Unavailable
from tests.support.builders import identity

VIEW = "order_details"
ORDER = uuid.UUID(identity("order", 1))
OTHER = uuid.UUID(identity("order", 2))
ANYTHING = Need(None, 10)
NEVER = 10_000.0
PATIENCE = 20.0


class FakeView:
    """The view in a database that does what a test says."""

    def __init__(self) -> None:
        self.epoch = uuid.uuid4()
        self.position = 0
        self.rows: dict[uuid.UUID, State] = {}
        self.log: list[tuple[int, uuid.UUID]] = []
        self.away = False
        self.reads: list[int] = []

    @property
    def token(self) -> Token:
        return Token(self.epoch, self.position)

    def put(self, key: uuid.UUID = ORDER) -> int:
        """The next version of an order; returns the version."""
        self.position += 1
        version = version_of(self.rows[key].value) + 1 if key in self.rows else 1
        self.rows[key] = State(OrderDetails(version=version).SerializeToString(), self.position)
        self.log.append((self.position, key))
        return version

    def purge(self) -> None:
        self.log.clear()

    def changes(self, view: str, after: int | None, most: int) -> Changes:
        self._check()
        if after is None:
            return Changes(set(), self.token, complete=True)
        keys = [key for position, key in self.log if position > after][:most]
        reaches_back = after == self.position or any(position <= after for position, _ in self.log)
        return Changes(set(keys), self.token, complete=reaches_back and len(keys) < most)

    def states(self, view: str, keys: Sequence[uuid.UUID]) -> States:
        self._check()
        self.reads.append(len(keys))
        return States({key: self.rows[key] for key in keys if key in self.rows}, self.token)

    def _check(self) -> None:
        if self.away:
            raise Unavailable("the read database is away", reason="STORE_UNAVAILABLE")


def version_of(value: bytes) -> int:
    return OrderDetails.FromString(value).version


class FakeCall:
    stopping = False

    def __init__(self) -> None:
        self.wake: Callable[[], None] = lambda: None

    def when_stopping(self, wake: Callable[[], None]) -> None:
        self.wake = wake

    def seconds_left(self) -> float:
        return float("inf")

    def stop(self) -> None:
        self.stopping = True
        self.wake()


class Room:
    """Watches on a fake view, announced when the test says so."""

    def __init__(self, *, blind_after: float = 60.0, max_batch: int = 256, **watch: int) -> None:
        self.view = FakeView()
        settings = FreshnessSettings(blind_after=blind_after)
        no_listener: Any = None
        self.freshness = Freshness(settings, no_listener, lambda: {VIEW: self.view.token}, clock=self.clock)
        nothing: Any = None
        self.watches = Watches(
            VIEW,
            "order",
            version_of,
            freshness=self.freshness,
            views=Views(self.freshness, nothing, nothing),
            source=self.view,
            settings=WatchSettings(**watch),
            max_batch=max_batch,
        )

    def clock(self) -> float:
        return asyncio.get_running_loop().time()

    def announce(self) -> None:
        self.freshness.hear(Announcement(self.view.epoch, {VIEW: self.view.position}, {}), self.clock())

    def put(self, key: uuid.UUID = ORDER) -> int:
        version = self.view.put(key)
        self.announce()
        return version

    @asynccontextmanager
    async def watch(
        self,
        key: uuid.UUID = ORDER,
        *,
        need: Need = ANYTHING,
        resume_from: Token | None = None,
        heartbeat: float = NEVER,
        call: FakeCall | None = None,
    ) -> AsyncIterator["Watcher"]:
        fake: Any = call or FakeCall()
        messages = self.watches.watch(key, need, resume_from, heartbeat, fake)
        try:
            yield Watcher(messages)
        finally:
            await messages.aclose()


class Watcher:
    def __init__(self, messages: Any) -> None:
        self._messages = messages

    async def next(self) -> Watched:
        async with asyncio.timeout(PATIENCE):
            message: Watched = await anext(self._messages)
        return message

    async def version(self) -> int:
        """The version that the next message shows; 0 for a heartbeat."""
        value = (await self.next()).value
        return 0 if value is None else version_of(value)
