"""A projector whose thread does not go on is not alive; one that waits for a database is."""

import time
from typing import Any, cast

import pytest

from tandem.projection.following import Following
from tandem.projection.watched_feed import WatchedFeed
from tandem.runtime.supervised import STILL, what_stands_still


class _Idle:
    """A feed that nobody has asked for so long."""

    idle_seconds = 0.0


@pytest.fixture
def following() -> Following:
    it = Following.__new__(Following)
    it.feed = cast(WatchedFeed, _Idle())
    it._moved_at = time.monotonic()
    STILL.watch(it, "projector of this test")
    return it


def stands_still() -> bool:
    return "projector of this test" in what_stands_still(100)


def test_who_asks_the_feed_is_alive_however_long_ago_it_began(following: Following) -> None:
    following._moved_at -= 1000
    assert not stands_still()


def test_who_begins_anew_is_alive_however_long_it_has_not_asked_the_feed(following: Following) -> None:
    cast(Any, following.feed).idle_seconds = 1000
    assert not stands_still()


def test_who_does_neither_is_not(following: Following) -> None:
    following._moved_at -= 1000
    cast(Any, following.feed).idle_seconds = 1000
    assert stands_still()
