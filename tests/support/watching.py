"""Watches on a view that does what a test says, for tests without a database."""

import asyncio
import threading
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from commerce.query.v1.query_service_pb2 import DESCRIPTOR
from commerce.query.v1.views_pb2 import OrderDetails
from tandem.feed.token import Token
from tandem.queries.freshness import Freshness, Need, Wanted
from tandem.queries.head import Head
from tandem.queries.settings import FreshnessSettings, WatchSettings
from tandem.queries.store import ChangedKeys, Rows, State
from tandem.queries.watch import Watched, Watches
from tandem.read_store.announcement import Announcement
from tandem.runtime.call import Metadata, StreamCall
from tandem.runtime.errors import Unavailable
from tests.support.builders import identity

VIEW = "order_details"
ORDER = uuid.UUID(identity("order", 1))
OTHER = uuid.UUID(identity("order", 2))
METHOD = DESCRIPTOR.services_by_name["QueryService"].methods_by_name["WatchOrderDetails"]
ANYTHING = Need((), 10)
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
        self.generation = 1
        self.parked: dict[uuid.UUID, int] = {}

    @property
    def token(self) -> Token:
        return Token(self.epoch, self.position, generation=self.generation)

    def put(self, key: uuid.UUID = ORDER) -> int:
        """The next version of an order; returns the version."""
        self.position += 1
        version = version_of(self.rows[key].value) + 1 if key in self.rows else 1
        self.rows[key] = State(OrderDetails(order_id=str(key), version=version).SerializeToString(), self.position)
        self.log.append((self.position, key))
        return version

    def make_anew(self, key: uuid.UUID, total: int) -> None:
        """All events again, of which one makes a row now that was wrong before."""
        self.generation += 1
        self.log.clear()
        before = self.rows[key]
        order = OrderDetails.FromString(before.value)
        order.total.minor_units = total
        self.rows[key] = before._replace(value=order.SerializeToString())

    def purge(self) -> None:
        self.log.clear()

    def changed_keys(self, view: str, after: int | None, most: int) -> ChangedKeys:
        self._check()
        if after is None:
            return ChangedKeys(set(), self.token, complete=True)
        keys = [key for position, key in self.log if position > after][:most]
        reaches_back = after == self.position or any(position <= after for position, _ in self.log)
        return ChangedKeys(set(keys), self.token, complete=reaches_back and len(keys) < most)

    def states(self, view: str, keys: Sequence[uuid.UUID]) -> Rows[uuid.UUID, State]:
        self._check()
        self.reads.append(len(keys))
        return Rows({key: self.rows[key] for key in keys if key in self.rows}, self.parked, self.token)

    def _check(self) -> None:
        if self.away:
            raise Unavailable("the read database is away", reason="STORE_UNAVAILABLE")


def version_of(value: bytes) -> int:
    return OrderDetails.FromString(value).version


def need_of(token: Token, max_wait: float = 10) -> Need:
    return Need((Wanted(token, "consistency.at_least_as_fresh"),), max_wait)


class FakeCall(StreamCall):
    def __init__(self) -> None:
        self.came_at = time.monotonic()

    def metadata(self) -> Metadata:
        return ()

    def _time_remaining(self) -> None:
        return None


class Silence:
    """Stands for a Listener that is never notified: tests announce by themselves."""

    def __init__(self) -> None:
        self._closed = threading.Event()

    def wait(self, seconds: float) -> list[str]:
        self._closed.wait(seconds)
        return []

    def close(self) -> None:
        self._closed.set()


class Room:
    """Watches on a fake view, announced when the test says so."""

    def __init__(self, *, blind_after: float = 60.0, max_batch: int = 256, **watch: int) -> None:
        self.view = FakeView()
        settings = FreshnessSettings(blind_after=blind_after)
        listener: Any = Silence()
        self.freshness = Freshness(settings, listener, self._positions, [VIEW], Head(None))
        store: Any = self.view
        self.watches = Watches(METHOD, store, self.freshness, WatchSettings(**watch), max_batch=max_batch)

    def _positions(self) -> dict[str, Token]:
        return {VIEW: self.view.token}

    async def start(self) -> None:
        await self.freshness.start()
        await self.watches.start()

    async def stop(self) -> None:
        await self.watches.stop()
        await self.freshness.stop()

    def announce(self, problem: str = "") -> None:
        generations = {VIEW: self.view.generation}
        problems = {VIEW: problem} if problem else {}
        announcement = Announcement(
            self.view.epoch, {VIEW: self.view.position}, {}, generations=generations, problems=problems
        )
        self.freshness.apply_announcement(announcement, time.monotonic())

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
        if resume_from is not None:
            need = need.including(replace(resume_from, generation=0), "resume_from")
        messages = self.watches.watch(key, need, resume_from, heartbeat, call or FakeCall())
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
