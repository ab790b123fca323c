"""What followers that catch up with the feed leave of the processor for others."""

import asyncio
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable

import pytest
from pydantic import SecretStr
from sqlalchemy import Connection, Engine

from commerce.feed.v1.feed_service_pb2 import SubscribeResponse
from shop.events import EVENTS
from tandem.feed.archive import Archive
from tandem.feed.live import EntryReader
from tandem.feed.service import History
from tandem.feed.token import Token
from tandem.runtime.settings import DatabaseSettings

THREADS = 2
WORK_SECONDS = 0.002
AT = Token(uuid.uuid4(), 1)


class WatchedHistory(History):
    """Notes for how long a thread rests after each read."""

    def __init__(self) -> None:
        database = DatabaseSettings(url=SecretStr("postgresql://tandem@127.0.0.1:1/nowhere"))
        reader = EntryReader(EVENTS, SubscribeResponse.DESCRIPTOR, erased_kind="customer_erased")
        super().__init__(database, EVENTS, Archive(None), reader, THREADS)
        self.rests: list[float] = []
        self.may_read = threading.Event()
        self.may_read.set()

    def _free_thread_after(self, seconds: float) -> None:
        self.rests.append(seconds)
        super()._free_thread_after(seconds)


@pytest.fixture
async def history(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WatchedHistory]:
    def work(_engine: Engine, _query: Callable[[Connection], object]) -> None:
        made.may_read.wait(10)
        began = time.thread_time()
        while time.thread_time() - began < WORK_SECONDS:
            pass

    monkeypatch.setattr("tandem.feed.service._ask", work)
    made = WatchedHistory()
    yield made
    await made.stop()


async def test_while_others_wait_a_thread_rests_for_longer_than_it_has_read(history: WatchedHistory) -> None:
    # A thread that has read before the others have asked rests for nobody.
    history.may_read.clear()
    calls = [asyncio.create_task(history.compare(AT)) for _ in range(12)]
    await asyncio.sleep(0)
    history.may_read.set()
    await asyncio.gather(*calls)
    assert len(history.rests) == 12
    # All threads together take half of a processor.
    assert min(history.rests[:10]) >= (2 * THREADS - 1) * WORK_SECONDS
    assert history.rests[-1] == 0


async def test_as_many_followers_as_there_are_threads_catch_up_without_a_rest(history: WatchedHistory) -> None:
    for _ in range(5):
        await asyncio.gather(*[history.compare(AT) for _ in range(THREADS)])
    assert history.rests == 10 * [0.0]


async def test_a_follower_that_goes_while_it_waits_or_reads_keeps_no_thread(history: WatchedHistory) -> None:
    gone = [asyncio.ensure_future(history.compare(AT)) for _ in range(6)]
    await asyncio.sleep(0)
    for it in gone:
        it.cancel()
    await asyncio.gather(*gone, return_exceptions=True)
    async with asyncio.timeout(10):
        await asyncio.gather(*[history.compare(AT) for _ in range(2 * THREADS)])
