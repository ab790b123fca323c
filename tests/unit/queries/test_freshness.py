"""What is announced is believed for a while and never taken back; what waits for a position is parked until then."""

import threading
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from commerce.query.v1.query_service_pb2 import GetOrderDetailsRequest
from tandem.feed.token import Token, new_epoch
from tandem.queries.freshness import Asked, Fresh, Freshness, Need, Wanted
from tandem.queries.head import FULLY_CONSISTENT
from tandem.queries.settings import FreshnessSettings
from tandem.read_store.announcement import Announcement
from tandem.runtime.call import Call, LocalCall, Method
from tandem.runtime.errors import Overloaded, PreconditionFailed, TandemError, Unavailable
from tandem.runtime.listener import Listener
from tandem.runtime.settings import DatabaseSettings
from tests.support.metrics import sample
from tests.support.watching import Silence

FEED, LATER_FEED = uuid.UUID(int=1), uuid.UUID(int=2)
VIEW, OTHER_VIEW = "order_details", "product_card"
LONG = 20.0
METHOD = Method("Test", GetOrderDetailsRequest)


class Home:
    """The worker of a query: it keeps what comes back."""

    def __init__(self) -> None:
        self.batches: list[list[Call]] = []
        self.came = threading.Semaphore(0)

    def put_all(self, calls: Sequence[Call]) -> None:
        self.batches.append(list(calls))
        self.came.release()

    @property
    def calls(self) -> list[Call]:
        return [call for batch in self.batches for call in batch]


class FakeHead:
    """The feed's head, where the test says that it is; or the error that reading it is to raise."""

    def __init__(self, *, is_set_up: bool = True) -> None:
        self.is_set_up = is_set_up
        self.says: Token | Exception = Token(FEED, 0)
        self.reads = 0

    def read(self) -> Token:
        self.reads += 1
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


class Scene:
    """A Freshness without its threads: the test is the projector, the clock and the database."""

    def __init__(self, head: FakeHead | None = None, *, on_replica: bool = False, **settings: float) -> None:
        self.now = time.monotonic()
        self.in_database: dict[str, Token] = {}
        self.looks = count()
        self.home = Home()
        self.head = head or FakeHead()
        read_by: Any = self.head
        # It connects when its thread starts, which it never does here.
        listener = Listener(DatabaseSettings(url=SecretStr("postgresql://nowhere")), "channel", "test")
        self.freshness = Freshness(
            FreshnessSettings(**settings),
            listener,
            self.look,
            [VIEW, OTHER_VIEW],
            read_by,
            on_replica=on_replica,
            clock=lambda: self.now,
        )

    def look(self) -> dict[str, Token]:
        next(self.looks)
        return self.in_database

    def announce(
        self, position: int, *, epoch: str | None = "e1", feed: uuid.UUID = FEED, view: str = VIEW, **more: Any
    ) -> None:
        """more: what an announcement says of each view, by its field."""
        said = {name: {view: value} for name, value in more.items()}
        announcement = Announcement(feed, {view: position}, {view: {"node:1": epoch}}, **said)
        self.freshness.apply_announcement(Announcement.decode(announcement.encode()), self.now)

    def position(self, view: str = VIEW) -> int | None:
        announced = self.freshness.announced(view)
        return announced.token.position if announced is not None else None

    def call(self, *tokens: Token, max_wait: float = LONG, view: str = VIEW, all_writes: bool = False) -> LocalCall:
        call = LocalCall(METHOD, GetOrderDetailsRequest(), seconds=60)
        call.came_at = self.now
        need = Need((), max_wait, fully_consistent=all_writes)
        for number, token in enumerate(tokens):
            need = need.including(token, f"consistency.tokens[{number}]")
        call.asked = Asked(self.home, view, need)
        return call

    def judge(self, call: Call, as_of: Token | None = None) -> Fresh | TandemError:
        known = self.freshness.announced_token(VIEW) if as_of is None else as_of
        return self.freshness.judge(VIEW, call, call.asked.need, known, final=as_of is not None)

    def parked(self, position: int, *, feed: uuid.UUID = FEED, max_wait: float = LONG, view: str = VIEW) -> LocalCall:
        """A call that is handed to be parked."""
        call = self.call(Token(feed, position), max_wait=max_wait, view=view)
        self.freshness.put_all([call])
        return call


def waiters() -> float | None:
    return sample("tandem_freshness_waiters")


def failure(call: LocalCall) -> Any:
    return call.future.exception(timeout=LONG)


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
    scene.freshness.distrust([VIEW, OTHER_VIEW])
    assert scene.position() is None

    scene.announce(7)
    assert scene.position() == 7


def test_a_view_that_is_behind_what_was_announced_is_blind_until_it_is_there_again() -> None:
    scene = Scene()
    scene.announce(7)
    scene.freshness.distrust([VIEW])
    assert scene.position() is None

    scene.announce(6)
    assert scene.position() is None

    scene.announce(7)
    assert scene.position() == 7


@pytest.mark.parametrize("distrusted", [False, True])
def test_an_older_announcement_of_the_same_feed_is_ignored_with_its_cache_epochs(distrusted: bool) -> None:
    scene = Scene()
    scene.announce(7, epoch="new")
    if distrusted:
        scene.freshness.distrust([VIEW, OTHER_VIEW])
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


def test_a_view_that_is_made_anew_is_seen_at_once_and_from_its_beginning() -> None:
    scene = Scene()
    scene.announce(1000, generations=1)
    scene.announce(0, epoch="new", generations=2)
    assert scene.position() == 0

    scene.announce(3, epoch="new", generations=2)
    scene.announce(2, epoch="new", generations=2)
    assert scene.position() == 3


@pytest.mark.parametrize("position", [5, 9])
def test_of_a_view_that_has_what_the_feed_lost_no_call_with_a_token_is_answered(position: int) -> None:
    scene = Scene()
    parked = scene.parked(9)
    scene.announce(7, problems="HISTORY_CHANGED")
    [back] = scene.home.calls
    assert back is parked
    for call in (back, scene.call(Token(FEED, position))):
        refused = scene.judge(call)
        assert isinstance(refused, Unavailable)
        assert refused.reason == "HISTORY_CHANGED"
    assert scene.judge(scene.call()) is Fresh.NOW
    assert scene.judge(scene.parked(1, feed=new_epoch(FEED, datetime.now(UTC)))) is Fresh.WAIT, "that mends it"

    scene.announce(7)
    assert scene.judge(scene.call(Token(FEED, 5))) is Fresh.NOW


def test_who_wants_what_a_view_that_cannot_go_on_lacks_is_refused_at_once() -> None:
    scene = Scene()
    parked = scene.parked(9)
    other = scene.parked(9, view=OTHER_VIEW)
    scene.announce(7, problems="VIEW_FAILED")
    assert scene.home.calls == [parked]
    for call in (parked, scene.call(Token(FEED, 9))):
        refused = scene.judge(call)
        assert isinstance(refused, Unavailable)
        assert (refused.reason, refused.metadata["problem"]) == ("VIEW_FAILED", "VIEW_FAILED")
    assert scene.judge(scene.call(Token(FEED, 7))) is Fresh.NOW
    late = scene.parked(9)
    assert scene.home.calls[1:] == [late], "nobody waits for it"
    assert not other.future.done()


def test_what_a_projector_said_of_a_view_is_believed_for_three_seconds() -> None:
    scene = Scene()
    scene.announce(7, problems="HISTORY_CHANGED")
    scene.now += 3
    assert scene.judge(scene.call(Token(FEED, 5))) is Fresh.DATABASE


def test_a_token_of_another_history_at_the_same_position_is_of_another_feed() -> None:
    scene = Scene()
    scene.announce(7, marks=1)
    assert scene.judge(scene.call(Token(FEED, 7, 1))) is Fresh.NOW
    assert scene.judge(scene.call(Token(FEED, 7))) is Fresh.NOW, "a token from before there were marks"
    call = scene.call(Token(FEED, 7, 2))
    assert scene.judge(call) is Fresh.DATABASE
    assert isinstance(scene.judge(call, as_of=Token(FEED, 7, 1)), PreconditionFailed)


def test_a_token_of_the_feeds_next_epoch_is_waited_for_and_one_of_its_last_is_refused() -> None:
    first = uuid.uuid4()
    second = new_epoch(first, datetime.now(UTC))
    third = new_epoch(second, datetime.now(UTC) - timedelta(days=1))
    scene = Scene()
    scene.announce(1000, feed=second)
    before = scene.call(Token(first, 5))
    assert isinstance(scene.judge(before, as_of=Token(second, 1000)), PreconditionFailed)

    after = scene.parked(5, feed=third)
    assert scene.judge(after) is Fresh.WAIT
    scene.announce(1001, feed=second)
    assert scene.home.calls == []
    scene.announce(4, feed=third)
    assert scene.home.calls == []
    scene.announce(5, feed=third)
    assert scene.home.calls == [after]


def test_a_view_of_a_newer_program_is_ignored() -> None:
    scene = Scene()
    scene.announce(7, view="unheard_of")

    assert scene.position("unheard_of") is None


@given(
    st.lists(
        st.tuples(st.just("announce"), st.integers(0, 9))
        | st.tuples(st.just("pass"), st.floats(0, 4))
        | st.just(("distrust", 0))
    )
)
def test_whatever_comes_in_a_view_is_never_taken_back_and_its_epochs_stay_with_their_position(
    events: list[tuple[str, float]],
) -> None:
    scene = Scene()
    highest, received_at = -1, float("-inf")
    for what, value in events:
        if what == "pass":
            scene.now += value
        elif what == "distrust":
            scene.freshness.distrust([VIEW, OTHER_VIEW])
            received_at = float("-inf")
        else:
            scene.announce(int(value), epoch=f"of {int(value)}")
            if value >= highest:
                highest, received_at = int(value), scene.now
        announced = scene.freshness.announced(VIEW)
        if scene.now - received_at >= 3:
            assert announced is None
        else:
            assert announced is not None
            assert announced.token == Token(FEED, highest)
            assert announced.cache_epochs == {"node:1": f"of {highest}"}


def test_without_a_token_anything_is_fresh_enough() -> None:
    scene = Scene()
    assert scene.judge(scene.call()) is Fresh.NOW
    scene.announce(7)
    assert scene.judge(scene.call()) is Fresh.NOW
    assert scene.judge(scene.call(), Token(FEED, 1)) is Fresh.NOW


def test_before_it_is_read_announcements_say_whether_an_answer_will_be_fresh_enough() -> None:
    scene = Scene()
    seven, eight = scene.call(Token(FEED, 7)), scene.call(Token(FEED, 8))
    assert scene.judge(seven) is Fresh.DATABASE, "blind"

    scene.announce(7)
    assert scene.judge(seven) is Fresh.NOW
    assert scene.judge(eight) is Fresh.WAIT
    assert scene.judge(scene.call(Token(LATER_FEED, 1))) is Fresh.DATABASE


def test_after_it_was_read_the_database_has_the_last_word() -> None:
    scene = Scene()
    scene.announce(9)
    seven = scene.call(Token(FEED, 7))
    assert scene.judge(seven, Token(FEED, 7)) is Fresh.NOW
    assert scene.position() == 9
    assert scene.judge(seven, Token(FEED, 6)) is Fresh.WAIT
    assert scene.position() is None, "the database is behind what was announced"

    other_feed = scene.judge(scene.call(Token(LATER_FEED, 1)), Token(FEED, 7))
    assert isinstance(other_feed, PreconditionFailed)
    assert other_feed.reason == "TOKEN_EPOCH_MISMATCH"


def test_an_answer_includes_what_all_tokens_stand_for() -> None:
    scene = Scene()
    scene.announce(7)
    assert scene.judge(scene.call(Token(FEED, 5), Token(FEED, 7))) is Fresh.NOW
    assert scene.judge(scene.call(Token(FEED, 8), Token(FEED, 7))) is Fresh.WAIT


@pytest.mark.parametrize("wrong", [0, 1])
def test_of_tokens_of_several_feeds_the_one_that_is_of_another_is_named(wrong: int) -> None:
    scene = Scene()
    scene.announce(7)
    tokens = [Token(FEED, 99)]
    tokens.insert(wrong, Token(LATER_FEED, 1))
    call = scene.call(*tokens)
    assert scene.judge(call) is Fresh.DATABASE

    refusal = scene.judge(call, Token(FEED, 7))
    assert isinstance(refusal, PreconditionFailed)
    assert [it.subject for it in refusal.violations] == [f"consistency.tokens[{wrong}]"]


def test_a_wait_that_is_over_says_how_far_the_view_is() -> None:
    scene = Scene()
    scene.announce(7)
    call = scene.call(Token(FEED, 9), max_wait=0)
    assert scene.judge(call) is Fresh.DATABASE
    assert scene.judge(call, Token(FEED, 9)) is Fresh.NOW
    refusal = scene.judge(call, Token(FEED, 7))
    assert isinstance(refusal, Unavailable)
    assert refusal.reason == "PROJECTION_LAG"
    assert refusal.metadata == {"view": VIEW, "position": "7", "wanted": "9", "behind": "2"}


def test_the_feeds_head_is_wanted_like_a_token() -> None:
    scene = Scene()
    scene.announce(7)
    call = scene.call(Token(FEED, 3), all_writes=True)
    assert scene.freshness.admit(call, VIEW, Token(FEED, 7)) is None
    assert call.next is scene.freshness

    asked: Asked = call.asked
    asked.need = asked.need.with_head(Token(FEED, 8))
    assert asked.need.wanted == (Wanted(Token(FEED, 8), FULLY_CONSISTENT),)
    assert scene.judge(call) is Fresh.WAIT
    asked.need = Need((), LONG, fully_consistent=True).with_head(Token(LATER_FEED, 1))
    refusal = scene.judge(call, Token(FEED, 7))
    assert isinstance(refusal, Unavailable)
    assert refusal.reason == "STORE_UNAVAILABLE"


def test_most_of_a_short_deadline_is_for_the_wait_and_some_for_the_answer() -> None:
    call = LocalCall(METHOD, GetOrderDetailsRequest(), seconds=0.2)
    assert Need((), LONG).end_of_wait(call) == pytest.approx(call.came_at + 0.15)
    assert Need((), 0.1).end_of_wait(call) == pytest.approx(call.came_at + 0.1)


def test_what_is_parked_goes_back_when_its_position_is_announced_all_of_it_together() -> None:
    scene = Scene()
    scene.announce(7)
    nine, eight, another = scene.parked(9), scene.parked(8), scene.parked(8)
    assert (scene.home.batches, waiters()) == ([], 3)

    scene.announce(8)
    assert scene.home.batches == [[eight, another]]
    scene.announce(9)
    assert scene.home.batches[1:] == [[nine]]
    assert waiters() == 0


def test_what_was_reached_before_it_was_parked_goes_back_at_once() -> None:
    scene = Scene()
    scene.announce(7)
    call = scene.parked(7)
    assert scene.home.batches == [[call]]
    assert waiters() == 0


def test_another_view_releases_nothing() -> None:
    scene = Scene()
    scene.announce(7)
    call = scene.parked(8)
    scene.announce(9, view=OTHER_VIEW)
    assert scene.home.batches == []
    scene.announce(8)
    assert scene.home.batches == [[call]]


def test_the_end_of_a_wait_has_the_database_asked_as_what_was_announced_may_have_come_before_a_standstill() -> None:
    scene = Scene()
    scene.announce(7)
    later, sooner = scene.parked(9, max_wait=2), scene.parked(9, max_wait=1)
    scene.freshness.end_waits()
    assert scene.home.batches == []
    # The server did not run for so long. The view may have moved, and announcements lie in the socket.
    scene.now += 1
    scene.freshness.end_waits()

    assert scene.home.batches == [[sooner]]
    assert scene.judge(sooner) is Fresh.DATABASE
    assert waiters() == 1
    scene.now += 0.5
    scene.announce(9)
    assert scene.home.batches == [[sooner], [later]]


def test_while_blind_the_end_of_the_wait_has_the_database_asked() -> None:
    scene = Scene()
    call = scene.parked(8, max_wait=1)
    scene.now += 1
    scene.freshness.end_waits()
    assert scene.home.batches == [[call]]
    assert scene.judge(call) is Fresh.DATABASE


def test_a_token_of_another_feed_is_not_waited_for() -> None:
    scene = Scene()
    scene.announce(7)
    call = scene.parked(9, feed=LATER_FEED)
    assert scene.home.batches == [[call]]


def test_a_new_feed_ends_the_waits_for_the_old_one() -> None:
    scene = Scene()
    scene.announce(7)
    call = scene.parked(9)
    scene.announce(1, feed=LATER_FEED)
    assert scene.home.batches == [[call]]


def test_a_view_that_is_seen_again_releases_those_who_wait_for_its_feed_or_for_another() -> None:
    scene = Scene()
    waiting, reached, of_another = scene.parked(8), scene.parked(7), scene.parked(1, feed=LATER_FEED)
    scene.announce(7)
    assert {*scene.home.calls} == {reached, of_another}
    scene.announce(8)
    assert scene.home.batches[1:] == [[waiting]]


def test_past_the_limit_nobody_is_parked_and_those_who_have_gone_do_not_count() -> None:
    scene = Scene(max_waiters=4)
    scene.announce(7)
    first, second, refused = scene.parked(8), scene.parked(8), scene.parked(8)
    assert isinstance(failure(refused), Overloaded)

    first.future.cancel()
    third = scene.parked(8)
    scene.announce(8)
    assert scene.home.batches == [[second, third]]


def test_whoever_waits_for_a_view_that_does_not_move_leaves_room_for_those_who_wait_for_another() -> None:
    scene = Scene(max_waiters=100)
    scene.announce(7)
    scene.announce(7, view=OTHER_VIEW)
    stuck = [scene.parked(8) for _ in range(1000)]
    asking = [scene.call(all_writes=True) for _ in range(1000)]
    scene.freshness.put_all(asking)
    others = [scene.parked(8, view=OTHER_VIEW) for _ in range(10)]
    assert len([it for it in stuck if it.code is None]) == 50
    assert not any(it.future.done() for it in others)
    scene.announce(8, view=OTHER_VIEW)
    assert scene.home.calls == others


def test_a_token_beyond_the_feeds_head_is_refused_and_others_go_on_waiting() -> None:
    scene = Scene()
    scene.announce(7)
    forged, given_out = scene.parked(10**18), scene.parked(9)
    scene.head.says = Token(FEED, 9)
    scene.freshness.read_head()
    assert scene.head.reads == 0, "most waits are over before the head is asked for"
    scene.now += 0.1
    too_new = scene.parked(10)
    scene.freshness.read_head()
    error = failure(forged)
    assert isinstance(error, PreconditionFailed)
    [violation] = error.violations
    assert (violation.kind, violation.subject) == ("TOKEN_AHEAD", "consistency.tokens[0]")
    assert not given_out.future.done()
    assert not too_new.future.done(), "it may have been given out since"
    scene.announce(9)
    assert scene.home.calls == [given_out]


def test_a_feed_that_ends_before_what_a_view_has_lost_something_and_no_token_is_called_forged() -> None:
    """Until a projector says so; it reads the feed as often."""
    scene = Scene()
    scene.announce(7)
    call = scene.parked(9)
    scene.head.says = Token(FEED, 5)
    scene.now += 0.1
    scene.freshness.read_head()
    assert failure(call).reason == "HISTORY_CHANGED"


def test_tokens_of_which_it_is_known_that_they_were_given_out_are_not_compared_again() -> None:
    scene = Scene()
    scene.announce(7)
    scene.head.says = Token(FEED, 9)
    for _ in range(3):
        scene.parked(9)
        scene.now += 0.1
        scene.freshness.read_head()
    assert scene.head.reads == 1


def test_where_the_head_cannot_be_asked_for_tokens_wait() -> None:
    for head in (FakeHead(), FakeHead(is_set_up=False)):
        scene = Scene(head)
        scene.announce(7)
        head.says = Unavailable("away", reason="STORE_UNAVAILABLE")
        call = scene.parked(9)
        scene.now += 0.1
        scene.freshness.read_head()
        assert not call.future.done()


def test_a_wait_for_the_head_ends_with_max_wait_and_has_a_moment_where_that_is_nothing() -> None:
    scene = Scene()
    scene.announce(7)
    calls = [scene.call(all_writes=True, max_wait=max_wait) for max_wait in (0.0, 0.5, LONG)]
    scene.freshness.put_all(calls)
    scene.freshness.end_waits()
    assert not any(it.future.done() for it in calls)
    scene.now += 0.11
    scene.freshness.end_waits()
    assert [it.future.done() for it in calls] == [True, False, False]
    scene.now += 0.4
    scene.freshness.end_waits()
    assert [it.future.done() for it in calls] == [True, True, False]
    assert failure(calls[1]).reason == "STORE_UNAVAILABLE"
    scene.head.says = Token(FEED, 9)
    scene.freshness.read_head()
    assert scene.home.calls == [calls[2]]
    assert calls[2].asked.need == Need((Wanted(Token(FEED, 9), FULLY_CONSISTENT),), LONG)


def test_who_waits_for_the_head_has_another_moment_after_a_standstill() -> None:
    scene = Scene()
    scene.announce(7)
    call = scene.call(max_wait=1, all_writes=True)
    scene.freshness.put_all([call])
    scene.now += 5
    scene.freshness.end_waits()
    assert not call.future.done()
    scene.now += 0.1
    scene.freshness.end_waits()
    assert failure(call).reason == "STORE_UNAVAILABLE"


def test_a_caller_that_goes_is_let_go_of_at_once() -> None:
    scene = Scene()
    scene.announce(7)
    call = scene.parked(8)
    call.caller_left()
    assert (call.code is not None, waiters()) == (True, 0)
    scene.announce(8)
    assert scene.home.batches == []


def test_a_caller_that_had_gone_before_it_was_parked_is_let_go_of() -> None:
    scene = Scene()
    scene.announce(7)
    call = scene.call(Token(FEED, 8))
    call.gone = True
    scene.freshness.put_all([call])
    assert (call.code is not None, waiters()) == (True, 0)


def test_whoever_takes_a_call_out_first_has_it() -> None:
    scene = Scene()
    scene.announce(7)
    calls = [scene.parked(8) for _ in range(500)]

    def leave() -> None:
        for call in calls:
            call.caller_left()

    leaving = threading.Thread(target=leave)
    leaving.start()
    scene.announce(8)
    leaving.join()
    back = set(scene.home.calls)
    assert all((call in back) != (call.code is not None) for call in calls)
    assert waiters() == 0


def test_while_blind_the_database_releases_what_it_includes() -> None:
    scene = Scene()
    reached, later, other_feed = scene.parked(8), scene.parked(9), scene.parked(1, feed=LATER_FEED)
    scene.freshness.release_in_database({VIEW: Token(FEED, 8)})
    assert {*scene.home.calls} == {reached, other_feed}
    scene.freshness.release_in_database({VIEW: Token(FEED, 9)})
    assert scene.home.batches[1:] == [[later]]


def test_a_view_that_is_not_blind_is_released_by_announcements_alone() -> None:
    scene = Scene()
    scene.announce(7)
    scene.parked(8)
    scene.freshness.release_in_database({VIEW: Token(FEED, 8)})
    assert scene.home.batches == []


def test_who_reads_on_a_replica_that_is_behind_waits_for_it_and_what_is_announced_holds() -> None:
    scene = Scene(on_replica=True)
    scene.announce(9)
    call = scene.call(Token(FEED, 9))
    assert scene.freshness.admit(call, VIEW, Token(FEED, 7), final=True) is None
    scene.freshness.put_all([call])
    scene.announce(10)
    assert (scene.home.batches, scene.position(), waiters()) == ([], 10, 1)
    scene.freshness.release_in_database({VIEW: Token(FEED, 8)})
    assert scene.home.batches == []
    assert sample("tandem_replica_behind_events", view=VIEW) == 2
    scene.freshness.release_in_database({VIEW: Token(FEED, 9)})
    assert scene.home.calls == [call]
    assert scene.freshness.admit(call, VIEW, Token(FEED, 9), final=True) is Fresh.NOW


def test_a_wait_for_a_replica_ends_with_what_that_says() -> None:
    scene = Scene(on_replica=True)
    scene.announce(9)
    call = scene.call(Token(FEED, 9), max_wait=1)
    assert scene.freshness.admit(call, VIEW, Token(FEED, 7), final=True) is None
    scene.freshness.put_all([call])
    scene.now += 1
    scene.freshness.end_waits()
    assert scene.home.calls == [call], "it is read once more"
    error = scene.judge(call, Token(FEED, 8))
    assert isinstance(error, TandemError)
    assert (error.reason, scene.position()) == ("PROJECTION_LAG", 9)


def test_a_view_that_cannot_go_on_is_waited_for_where_only_the_replica_lacks_the_token() -> None:
    scene = Scene(on_replica=True)
    scene.announce(9, problems="VIEW_FAILED")
    assert scene.judge(scene.call(Token(FEED, 9)), Token(FEED, 8)) is Fresh.WAIT_FOR_ROWS
    error = scene.judge(scene.call(Token(FEED, 10)), Token(FEED, 8))
    assert isinstance(error, TandemError)
    assert error.reason == "VIEW_FAILED"


def test_a_forged_token_is_found_out_at_a_replica_too() -> None:
    scene = Scene(on_replica=True)
    scene.head.says = Token(FEED, 9)
    call = scene.call(Token(FEED, 99))
    assert scene.freshness.admit(call, VIEW, Token(FEED, 7), final=True) is None, "nothing is announced"
    scene.freshness.put_all([call])
    scene.now += 0.1
    scene.freshness.read_head()
    assert failure(call).reason == "TOKEN_AHEAD"


def test_waits_that_are_given_up_leave_nothing_behind() -> None:
    scene = Scene()
    scene.announce(7)
    for _ in range(10):
        for call in [scene.parked(10**9) for _ in range(20)]:
            call.caller_left()
    assert waiters() == 0
    assert not scene.freshness._parked[VIEW]


class Running:
    """A Freshness with its threads, on a database that says what the test says."""

    def __init__(self) -> None:
        self.home = Home()
        self.database = {VIEW: Token(FEED, 1)}
        self.looks = 0
        listener: Any = Silence()
        head: Any = FakeHead(is_set_up=False)
        self.freshness = Freshness(FreshnessSettings(), listener, self._look, [VIEW, OTHER_VIEW], head)

    def _look(self) -> dict[str, Token]:
        self.looks += 1
        return self.database

    def park(self, position: int, max_wait: float = LONG) -> LocalCall:
        call = LocalCall(METHOD, GetOrderDetailsRequest(), seconds=60)
        need = Need((Wanted(Token(FEED, position), "consistency.at_least_as_fresh"),), max_wait)
        call.asked = Asked(self.home, VIEW, need)
        self.freshness.put_all([call])
        return call


@pytest.fixture
async def running() -> Any:
    running = Running()
    await running.freshness.start()
    yield running
    await running.freshness.stop()


async def test_while_blind_one_look_at_the_database_serves_all_who_wait(running: Running) -> None:
    running.database = {VIEW: Token(FEED, 8)}
    later = running.park(9)
    for _ in range(100):
        running.park(8)
    while len(running.home.calls) < 100:
        assert running.home.came.acquire(timeout=LONG)
    assert running.looks < 50
    assert later not in running.home.calls
    running.database = {VIEW: Token(FEED, 9)}
    assert running.home.came.acquire(timeout=LONG)
    assert running.home.calls[-1] is later


async def test_a_wait_ends_in_time_though_others_last_longer(running: Running) -> None:
    running.freshness.apply_announcement(Announcement(FEED, {VIEW: 7}, {}), time.monotonic())
    long = running.park(9)
    short = running.park(9, max_wait=0.05)
    began = time.monotonic()
    assert running.home.came.acquire(timeout=LONG)
    assert time.monotonic() - began < LONG / 2
    assert running.home.calls == [short]
    assert not long.future.done()


async def test_a_server_that_stops_tells_those_who_wait() -> None:
    running = Running()
    await running.freshness.start()
    call = running.park(9)
    await running.freshness.stop()
    assert failure(call).reason == "STOPPING"
    assert failure(running.park(9)).reason == "STOPPING"
