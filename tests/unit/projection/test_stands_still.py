"""A projector whose thread does not go on is not alive; one that waits for a database is."""

from typing import cast

import pytest

from tandem.feed.source import FeedSource
from tandem.projection import watched_feed
from tandem.projection.watched_feed import WatchedFeed
from tandem.runtime.supervised import what_stands_still


class _Source:
    """The write database. While it is asked, a thousand seconds pass."""

    problem = ""

    def __init__(self, clock: "_Clock") -> None:
        self._clock = clock
        self.still: list[str] = []

    def head(self) -> None:
        self._clock.now += 1000
        self.still = what_stands_still(100)

    def close(self) -> None:
        pass


class _Clock:
    now = 1_000_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    it = _Clock()
    monkeypatch.setattr(watched_feed, "time", it)
    return it


def test_who_asks_nothing_stands_still_and_who_waits_for_an_answer_does_not(clock: _Clock) -> None:
    source = _Source(clock)
    feed = WatchedFeed(cast(FeedSource, source), poll_seconds=1)
    clock.now += 1000
    assert what_stands_still(100) == [], "it was not begun"
    feed.begin()
    feed.head()
    assert source.still == [], "the write database is away, and a new process would be no better"
    clock.now += 1000
    assert what_stands_still(100) == ["projector"]
    feed.begin()
    assert what_stands_still(100) == [], "it has begun anew, as it does while the read database is away"
    clock.now += 1000
    feed.close()
    assert what_stands_still(100) == [], "it has ended"
