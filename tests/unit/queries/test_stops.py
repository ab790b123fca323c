"""A stop is noticed whenever it comes, and threads that it does not wait for leave nothing behind."""

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from tandem.queries.damage import DamageReports
from tandem.queries.fills import Fills
from tandem.queries.freshness import Freshness
from tandem.queries.head import Head
from tandem.queries.settings import FreshnessSettings
from tandem.read_store.damage import DamagedRows
from tandem.testing.stack import PATIENCE, until
from tests.support.builders import identity
from tests.support.watching import Silence

ROW = identity("order", 1).replace("-", "")


class Slow(DamagedRows):
    """Somebody takes the rows, and has not done it before he is let."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()
        self.let = threading.Event()

    def take(self) -> list[Any]:
        self.asked.set()
        assert self.let.wait(PATIENCE)
        return super().take()


async def test_a_stop_is_noticed_by_who_takes_damaged_rows_at_that_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Slow()
    monkeypatch.setattr("tandem.queries.damage.DAMAGED_ROWS", rows)
    store: Any = SimpleNamespace(execute=lambda *_: ())
    reports = DamageReports(store)
    await reports.start()
    rows.report("order_details", ROW)
    assert await asyncio.to_thread(rows.asked.wait, PATIENCE)
    stopping = asyncio.create_task(reports.stop())
    # It has said what it wants, and waits.
    await asyncio.sleep(0)
    rows.let.set()
    await stopping
    assert "damage-reports" not in {it.name for it in threading.enumerate()}


class Hung:
    """A cache whose node does not answer before it is let."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.let = threading.Event()
        self.closed_by: list[str] = []

    def lease(self, *_: object) -> dict[str, Any]:
        self.asked.set()
        assert self.let.wait(PATIENCE)
        return {}

    def close(self) -> None:
        self.closed_by.append(threading.current_thread().name)


async def test_a_cache_is_closed_by_the_thread_that_fills_it_also_where_that_outlasts_a_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tandem.queries.fills._STOP_SECONDS", 0.0)
    cache = Hung()
    stand_in: Any = cache
    freshness: Any = SimpleNamespace(announced=lambda _: SimpleNamespace(cache_epochs={}))
    nobody: Any = None
    fills = Fills(nobody, nobody, stand_in, freshness, together=1)
    await fills.start()
    fills.want("order_details", [ROW], nobody)
    assert await asyncio.to_thread(cache.asked.wait, PATIENCE)
    await fills.stop()
    assert cache.closed_by == []
    cache.let.set()

    async def is_closed() -> bool:
        return cache.closed_by == ["cache-fills"]

    await until(is_closed, "the cache is closed")


class Before(threading.Event):
    """A stop that comes between the look of the thread of a name and what that does then."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.asked = threading.Event()
        self._name = name

    def is_set(self) -> bool:
        known = super().is_set()
        if not known and threading.current_thread().name == self._name:
            self.asked.set()
            assert self.wait(PATIENCE)
        return known


async def test_a_stop_is_noticed_by_who_is_about_to_wait_for_somebody_that_waits_for_a_view() -> None:
    listener: Any = Silence()
    freshness = Freshness(FreshnessSettings(), listener, dict, ["order_details"], Head(None))
    freshness._stopping = stop = Before("positions")
    await freshness.start()
    assert await asyncio.to_thread(stop.asked.wait, PATIENCE)
    stopping = asyncio.ensure_future(freshness.stop())
    ended, _ = await asyncio.wait([stopping], timeout=20)
    with freshness._lock:
        freshness._is_waited_for.notify_all()
    await stopping
    assert ended
