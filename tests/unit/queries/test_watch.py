"""G8: a watcher sees the current state first, then only newer ones, and ends at the latest, whatever the log says."""

import asyncio
import uuid

import pytest

from commerce.query.v1.views_pb2 import OrderDetails
from tandem.feed.token import Token
from tandem.queries.freshness import Need
from tandem.queries.store import State
from tandem.queries.watch import Watched
from tandem.runtime.errors import NotFound, Overloaded, PreconditionFailed, Unavailable
from tandem.testing.stack import until
from tests.support.builders import identity
from tests.support.watching import ORDER, OTHER, FakeCall, need_of, version_of
from tests.unit.queries.conftest import Start


async def test_the_current_state_comes_first_and_then_every_newer_one(start: Start) -> None:
    room = await start()
    room.put()
    async with room.watch() as watcher:
        assert await watcher.next() == Watched(room.view.rows[ORDER].value, room.view.token)
        for version in range(2, 6):
            room.put()
            room.put(OTHER)
            message = await watcher.next()
            assert (version_of(message.value), message.skipped) == (version, 0)


async def test_an_order_that_is_not_known_is_not_found(start: Start) -> None:
    room = await start()
    room.announce()
    async with room.watch() as watcher:
        with pytest.raises(NotFound, match=f"orders/{ORDER}"):
            await watcher.next()


async def test_a_token_is_waited_for_before_the_first_look(start: Start) -> None:
    room = await start()
    room.announce()
    async with room.watch(need=need_of(Token(room.view.epoch, 1))) as watcher:
        first = asyncio.create_task(watcher.version())
        await asyncio.sleep(0)
        assert not first.done()
        room.put()
        assert await first == 1


async def test_a_view_that_does_not_reach_the_token_is_behind(start: Start) -> None:
    room = await start()
    room.announce()
    for options in ({"need": need_of(Token(room.view.epoch, 5), 0)}, {"resume_from": Token(room.view.epoch, 5)}):
        async with room.watch(**{"need": Need(), **options}) as watcher:
            with pytest.raises(Unavailable) as raised:
                await watcher.next()
            assert raised.value.reason == "PROJECTION_LAG"


async def test_a_watch_that_resumes_is_not_shown_what_it_has_seen(start: Start) -> None:
    room = await start()
    room.put()
    async with room.watch() as watcher:
        seen = (await watcher.next()).as_of
    room.put(OTHER)
    async with room.watch(resume_from=seen) as watcher:
        assert await watcher.next() == Watched(None, room.view.token), "nothing has changed up to now"
        assert room.put() == 2
        assert await watcher.version() == 2
    room.put()
    async with room.watch(resume_from=seen) as watcher:
        assert await watcher.version() == 3


async def test_a_slow_watcher_gets_the_newest_state_and_is_told_what_it_missed(start: Start) -> None:
    room = await start()
    room.put()
    async with room.watch() as slow, room.watch() as quick:
        assert [await slow.version(), await quick.version()] == [1, 1]
        for version in range(2, 10):
            room.put()
            assert await quick.version() == version
        message = await slow.next()
        assert (version_of(message.value), message.skipped) == (9, 7)


async def test_heartbeats_say_up_to_where_nothing_changed(start: Start) -> None:
    room = await start()
    room.put()
    async with room.watch(heartbeat=0.01) as watcher:
        assert await watcher.version() == 1
        room.put(OTHER)
        while (message := await watcher.next()).as_of != room.view.token:
            assert message.value is None
        room.put()
        while (message := await watcher.next()).value is None:
            pass
        assert version_of(message.value) == 2


@pytest.mark.parametrize("lost", ["purged", "too long", "announcements"])
async def test_where_the_log_cannot_say_what_changed_all_that_is_watched_is_read(start: Start, lost: str) -> None:
    room = await start(max_changes=3, max_batch=2, blind_after=0.001 if lost == "announcements" else 60)
    keys = [uuid.UUID(identity("order", number)) for number in range(1, 6)]
    for key in keys:
        room.put(key)
    calls = [room.watch(key) for key in keys]
    watchers = [await call.__aenter__() for call in calls]
    assert [await watcher.version() for watcher in watchers] == [1] * 5
    for key in keys:
        room.view.put(key)
    if lost == "purged":
        room.view.purge()
    if lost != "announcements":
        room.announce()
    assert [await watcher.version() for watcher in watchers] == [2] * 5
    assert max(room.view.reads) <= 2
    for call in calls:
        await call.__aexit__(None, None, None)


async def test_a_database_that_is_away_fails_those_who_begin_and_nobody_else(start: Start) -> None:
    room = await start()
    room.put()
    async with room.watch() as before:
        assert await before.version() == 1
        room.view.away = True
        async with room.watch(OTHER) as watcher:
            with pytest.raises(Unavailable):
                await watcher.next()
        room.put()
        news = asyncio.create_task(before.version())
        async with room.watch(OTHER) as watcher:
            with pytest.raises(Unavailable):
                await watcher.next()
        assert not news.done()
        room.view.away = False
        assert await news == 2


async def test_a_view_that_is_made_anew_shows_nobody_an_older_state(start: Start) -> None:
    room = await start(blind_after=0.001)
    for _ in range(5):
        room.put()
    history, rows = list(room.view.log), dict(room.view.rows)
    async with room.watch(heartbeat=0.01) as watcher:
        first = await watcher.next()
        room.view.position, room.view.log, room.view.rows = 0, [], {}

        async def was_reread() -> bool:
            assert (await watcher.next()) == Watched(None, first.as_of)
            return len(room.view.reads) > 1

        await until(was_reread, "the watches noticed")
        for position, _ in history:
            room.view.position = position
            room.view.rows[ORDER] = State(_order(position), position)
            room.view.log.append((position, ORDER))
            message = await watcher.next()
            assert message.value is None
            assert message.as_of == first.as_of
        assert room.view.rows == rows
        assert room.view.put() == 6
        while (message := await watcher.next()).value is None:
            pass
        assert version_of(message.value) == 6


async def test_another_feed_ends_the_watch(start: Start) -> None:
    room = await start()
    room.put()
    async with room.watch() as watcher:
        assert await watcher.version() == 1
        old = room.view.token
        room.view.epoch = uuid.uuid4()
        room.announce()
        with pytest.raises(PreconditionFailed) as raised:
            await watcher.next()
        assert raised.value.reason == "TOKEN_EPOCH_MISMATCH"
    async with room.watch(resume_from=old) as watcher:
        with pytest.raises(PreconditionFailed) as raised:
            await watcher.next()
        assert raised.value.violations[0].subject == "resume_from"
    async with room.watch() as watcher:
        assert await watcher.version() == 1


async def test_a_row_that_is_gone_ends_the_watch(start: Start) -> None:
    room = await start()
    room.put()
    async with room.watch() as watcher:
        assert await watcher.version() == 1
        room.view.put()
        del room.view.rows[ORDER]
        room.announce()
        with pytest.raises(NotFound):
            await watcher.next()


async def test_a_server_that_stops_sends_a_last_message_with_where_it_was(start: Start) -> None:
    room = await start()
    room.put()
    idle, behind = FakeCall(), FakeCall()
    async with room.watch(call=idle) as one, room.watch(call=behind) as two:
        assert [await one.version(), await two.version()] == [1, 1]
        waiting = asyncio.create_task(one.next())
        await asyncio.sleep(0)
        idle.stop()
        assert await waiting == Watched(None, room.view.token)
        room.put()
        async with room.watch() as other:
            assert await other.version() == 2
        behind.stop()
        assert await two.version() == 2
        for watcher in (one, two):
            with pytest.raises(Unavailable) as raised:
                await watcher.next()
            assert raised.value.reason == "STOPPING"


async def test_past_the_limit_a_watch_is_refused_and_room_is_made_again(start: Start) -> None:
    room = await start(max_watchers=1)
    room.put()
    async with room.watch() as first:
        assert await first.version() == 1
        async with room.watch() as second:
            with pytest.raises(Overloaded):
                await second.next()
    async with room.watch() as third:
        assert await third.version() == 1


async def test_what_nobody_watches_any_more_is_forgotten(start: Start) -> None:
    room = await start()
    room.put()
    async with room.watch() as watcher:
        assert await watcher.version() == 1
    assert room.watches._subjects == {}
    assert room.watches._unread == set()
    room.view.put()
    async with room.watch() as watcher:
        assert await watcher.version() == 2


async def test_watchers_that_come_together_are_read_together(start: Start) -> None:
    room = await start()
    keys = [uuid.UUID(identity("order", number)) for number in range(100)]
    for key in keys:
        room.put(key)
    calls = [room.watch(keys[number % 100]) for number in range(2000)]
    watchers = [await call.__aenter__() for call in calls]
    assert set(await asyncio.gather(*(watcher.version() for watcher in watchers))) == {1}
    assert len(room.view.reads) <= 3
    before = len(room.view.reads)
    room.put(keys[0])
    assert set(await asyncio.gather(*(watcher.version() for watcher in watchers[::100]))) == {2}
    assert room.view.reads[before:] == [1]
    for call in calls:
        await call.__aexit__(None, None, None)


def _order(version: int, order_id: str = str(ORDER)) -> bytes:
    return OrderDetails(order_id=order_id, version=version).SerializeToString()


@pytest.mark.parametrize("value", [b"\xff", _order(7, str(OTHER))], ids=["no order", "another order"])
async def test_a_damaged_row_ends_its_own_watches_and_no_others(start: Start, value: bytes) -> None:
    room = await start()
    for key in (ORDER, OTHER):
        room.put(key)
    async with room.watch() as watcher, room.watch(OTHER) as other:
        assert [await watcher.version(), await other.version()] == [1, 1]
        room.view.put()
        room.view.rows[ORDER] = State(value, room.view.position)
        room.put(OTHER)
        with pytest.raises(Unavailable) as damaged:
            await watcher.next()
        assert damaged.value.reason == "ROW_DAMAGED"
        assert await other.version() == 2
    # Opened together: they are read together.
    async with room.watch() as watcher, room.watch(OTHER) as other:
        both: list[object] = await asyncio.gather(watcher.version(), other.version(), return_exceptions=True)
        ended, shown = both
        assert isinstance(ended, Unavailable)
        assert shown == 2
        # As a rebuild mends it.
        room.view.rows[ORDER] = State(_order(8), room.view.position)
    async with room.watch() as watcher:
        assert await watcher.version() == 8


def total_of(message: Watched) -> int:
    return OrderDetails.FromString(message.value or b"").total.minor_units


async def test_a_row_that_was_wrong_is_shown_again_when_its_view_was_made_anew(start: Start) -> None:
    """It has the same position then: its last event is the same."""
    room = await start()
    room.put()
    room.put(OTHER)
    async with room.watch() as watcher, room.watch(OTHER, heartbeat=0.01) as other:
        first = await watcher.next()
        room.view.make_anew(ORDER, 995)
        room.announce()
        message = await watcher.next()
        assert (total_of(message), message.as_of) == (995, room.view.token)
        messages = [await other.next() for _ in range(5)]
        assert [it.value for it in messages[1:]] == [None] * 4, "what is as it was is not shown twice"
    async with room.watch(resume_from=first.as_of) as back, room.watch(resume_from=message.as_of) as knows_it:
        assert total_of(await back.next()) == 995, "it was made anew while nobody watched"
        assert (await knows_it.next()).value is None


async def test_a_watch_of_a_view_that_has_what_the_feed_lost_ends(start: Start) -> None:
    room = await start()
    room.put()
    async with room.watch() as watcher:
        await watcher.next()
        room.announce("HISTORY_CHANGED")
        with pytest.raises(Unavailable) as raised:
            await watcher.next()
        assert raised.value.reason == "HISTORY_CHANGED"
