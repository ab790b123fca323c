"""What is announced is believed for a while, never taken back, and wakes those who wait."""

import asyncio
import uuid
from collections.abc import Iterable
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from query_server.freshness import Freshness
from query_server.settings import FreshnessSettings
from tandem.feed.token import Token
from tandem.read_store.announcement import Announcement
from tandem.runtime.errors import Overloaded, Unavailable
from tandem.runtime.listener import Listener
from tandem.runtime.settings import DatabaseSettings

FEED, LATER_FEED = uuid.UUID(int=1), uuid.UUID(int=2)
VIEW, OTHER_VIEW = "order_details", "product_card"
LONG = 20.0


class Scene:
    """A Freshness without its thread: the test is the projector, the clock and the database."""

    def __init__(self, **settings: float) -> None:
        self.now = 100.0
        self.in_database: dict[str, Token] = {}
        self.looks = count()
        # It connects when its thread starts, which it never does here.
        listener = Listener(DatabaseSettings(url=SecretStr("postgresql://nowhere")), "channel", "test")
        self.freshness = Freshness(FreshnessSettings(**settings), listener, self.look, clock=lambda: self.now)

    def look(self) -> dict[str, Token]:
        next(self.looks)
        return self.in_database

    def announce(self, position: int, *, epoch: str | None = "e1", feed: uuid.UUID = FEED, view: str = VIEW) -> None:
        self.freshness.hear(Announcement(feed, {view: position}, {view: {"node:1": epoch}}), self.now)

    def position(self, view: str = VIEW) -> int | None:
        announced = self.freshness.announced(view)
        return announced.token.position if announced is not None else None

    def reach(self, position: int, seconds: float = LONG, *, feed: uuid.UUID = FEED) -> asyncio.Task[None]:
        return asyncio.create_task(self.freshness.reach(VIEW, Token(feed, position), seconds))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def finish(tasks: Iterable[asyncio.Task[None]]) -> None:
    async with asyncio.timeout(LONG / 2):
        await asyncio.gather(*tasks)


def test_a_view_is_blind_until_it_is_announced() -> None:
    scene = Scene()
    assert scene.position() is None

    scene.announce(7)
    assert scene.position() == 7
    assert scene.position(OTHER_VIEW) is None


def test_a_view_is_blind_without_an_announcement_for_three_seconds_and_sees_again_with_the_next() -> None:
    scene = Scene()
    scene.announce(7)
    scene.now += 2.9
    assert scene.position() == 7

    scene.now += 0.1
    assert scene.position() is None

    scene.announce(7)
    assert scene.position() == 7


def test_a_lost_connection_blinds_every_view_until_the_next_announcement() -> None:
    scene = Scene()
    scene.announce(7)
    scene.freshness.lose()
    assert scene.position() is None

    scene.announce(7)
    assert scene.position() == 7


def test_a_view_that_is_behind_what_was_announced_is_blind_until_it_is_there_again() -> None:
    scene = Scene()
    scene.announce(7)
    scene.freshness.doubt(VIEW)
    assert scene.position() is None

    scene.announce(6)
    assert scene.position() is None

    scene.announce(7)
    assert scene.position() == 7


@pytest.mark.parametrize("lost", [False, True])
def test_an_older_announcement_of_the_same_feed_is_ignored_with_its_cache_epochs(lost: bool) -> None:
    scene = Scene()
    scene.announce(7, epoch="new")
    if lost:
        scene.freshness.lose()
    scene.announce(6, epoch="old")
    scene.announce(7, epoch="new")

    announced = scene.freshness.announced(VIEW)
    assert announced is not None
    assert announced.token.position == 7
    assert announced.cache_epochs == {"node:1": "new"}


def test_a_view_that_only_older_announcements_name_goes_blind() -> None:
    scene = Scene()
    scene.announce(7)
    scene.now += 2
    scene.announce(6)
    scene.now += 2

    assert scene.position() is None


def test_the_fence_is_believed_at_the_same_position() -> None:
    scene = Scene()
    scene.announce(7)
    scene.announce(7, epoch=None)

    announced = scene.freshness.announced(VIEW)
    assert announced is not None
    assert announced.cache_epochs == {"node:1": None}


def test_a_new_feed_replaces_everything_whatever_its_position() -> None:
    scene = Scene()
    scene.announce(1000)
    scene.announce(3, feed=LATER_FEED)

    assert scene.position() == 3


def test_a_view_of_a_newer_program_is_ignored() -> None:
    scene = Scene()
    scene.announce(7, view="unheard_of")

    assert scene.position("unheard_of") is None


@given(
    st.lists(
        st.tuples(st.just("announce"), st.integers(0, 9))
        | st.tuples(st.just("pass"), st.floats(0, 4))
        | st.just(("lose", 0))
    )
)
def test_whatever_comes_in_a_view_is_never_taken_back_and_its_epochs_stay_with_their_position(
    events: list[tuple[str, float]],
) -> None:
    scene = Scene()
    highest, heard_at = -1, float("-inf")
    for what, value in events:
        if what == "pass":
            scene.now += value
        elif what == "lose":
            scene.freshness.lose()
            heard_at = float("-inf")
        else:
            scene.announce(int(value), epoch=f"of {int(value)}")
            if value >= highest:
                highest, heard_at = int(value), scene.now
        announced = scene.freshness.announced(VIEW)
        if scene.now - heard_at >= 3:
            assert announced is None
        else:
            assert announced is not None
            assert announced.token == Token(FEED, highest)
            assert announced.cache_epochs == {"node:1": f"of {highest}"}


async def test_a_position_that_is_reached_is_not_waited_for() -> None:
    scene = Scene()
    scene.announce(7)

    await scene.freshness.reach(VIEW, Token(FEED, 7), 0)


async def test_those_who_wait_are_woken_in_turn() -> None:
    scene = Scene()
    scene.announce(7)
    nine, eight = scene.reach(9), scene.reach(8)
    await settle()

    scene.announce(8)
    await finish([eight])
    assert not nine.done()
    scene.announce(9)
    await finish([nine])


async def test_another_view_wakes_nobody() -> None:
    scene = Scene()
    scene.announce(7)
    waiting = scene.reach(8)
    await settle()
    scene.announce(9, view=OTHER_VIEW)
    await settle()

    assert not waiting.done()
    scene.announce(8)
    await finish([waiting])


@pytest.mark.parametrize("seconds", [0, 0.01])
async def test_a_wait_that_is_over_says_how_far_the_view_is(seconds: float) -> None:
    scene = Scene()
    scene.announce(7)

    with pytest.raises(Unavailable) as raised:
        await scene.reach(9, seconds)
    assert raised.value.reason == "PROJECTION_LAG"
    assert raised.value.metadata == {"view": VIEW, "position": "7", "wanted": "9", "behind": "2"}


async def test_a_token_of_another_feed_is_not_waited_for() -> None:
    scene = Scene()
    scene.announce(7)

    await finish([scene.reach(9, feed=LATER_FEED)])


async def test_a_new_feed_ends_the_waits_for_the_old_one() -> None:
    scene = Scene()
    scene.announce(7)
    waiting = scene.reach(9)
    await settle()
    scene.announce(1, feed=LATER_FEED)

    await finish([waiting])


async def test_past_the_limit_nobody_waits_and_those_who_have_gone_do_not_count() -> None:
    scene = Scene(max_waiters=2)
    scene.announce(7)
    first, second = scene.reach(8), scene.reach(8)
    await settle()
    with pytest.raises(Overloaded):
        await scene.reach(8)

    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    third = scene.reach(8)
    await settle()
    scene.announce(8)
    await finish([second, third])


async def test_while_blind_one_look_at_the_database_wakes_all_whose_position_is_there() -> None:
    scene = Scene()
    scene.in_database = {VIEW: Token(FEED, 8)}
    reached = [scene.reach(8) for _ in range(5)]
    later = scene.reach(9)

    await finish(reached)
    assert next(scene.looks) == 1
    assert not later.done()
    scene.in_database = {VIEW: Token(FEED, 9)}
    await finish([later])


async def test_while_blind_a_token_of_another_feed_is_found_out_from_the_database() -> None:
    scene = Scene()
    scene.in_database = {VIEW: Token(LATER_FEED, 1)}

    await finish([scene.reach(8)])


async def test_while_blind_the_end_of_the_wait_leaves_the_word_to_the_database() -> None:
    scene = Scene()

    await finish([scene.reach(8, 0)])


async def test_a_wait_that_began_blind_is_ended_by_an_announcement() -> None:
    scene = Scene()
    waiting = scene.reach(8)
    await settle()
    scene.announce(7)
    await settle()
    assert not waiting.done()

    scene.announce(8)
    await finish([waiting])


async def test_waits_that_are_given_up_leave_nothing_behind() -> None:
    scene = Scene()
    scene.announce(7)
    for _ in range(10):
        tasks = [scene.reach(10**9) for _ in range(20)]
        await settle()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    assert len(scene.freshness._waiting[VIEW]) <= 20
