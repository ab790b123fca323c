"""How far the views are, and whether that is far enough for a call.

A projector announces each view's position with the cache epochs that belong to it; the two are used together and never
mixed with those of another announcement. Without an announcement of a view for `blind_after` seconds, or while the
connection that listens is down, the view is blind: its cache is not read, and the database says how far it is.

`Freshness.judge` is the one place that decides whether an answer is fresh enough, before it is read and after. A call
that must wait is parked here, whichever query it is of:

    judged ──▶ parked ──▶ released   its position was announced, or is in the database while the view is blind; or the
                 │                   feed's head, which it asked for, was read: back into the queue of its worker
                 │                   (`home`), which judges it again
                 ├──────▶ replayed   the replica of which it was read has replayed its position: back to its home too
                 ├──────▶ overdue    its wait is over: it is released, and fails with PROJECTION_LAG if the database
                 │                   says so too, which has the last word. What was announced may be old: a server
                 │                   that did not run for a while ends waits before it receives what came meanwhile
                 ├──────▶ refused    its token is beyond the feed's head, so that no wait can end well
                 ├──────▶ gone       its caller has gone: it is dropped at once
                 └──────▶ stopped    the server stops: it fails

The listening thread (an announcement), the thread that reads positions while a view is blind or a replica behind, the
one that reads the feed's head, the one that ends waits, and the transport (the caller has gone) cause these. Whoever
takes a call out of `_parked` under the lock has it. All who wait for a view are looked through when it moves: 0.04 ms
for 1,000.

Rows may be read on a hot standby, a replica, while announcements are heard at its primary (`on_replica`). What was
announced holds for the cache then, and the replica comes to it later: who reads rows there that lack what the call
wants parks the call once more, until the replica has them. ADR 74.

Together they are at most `max_waiters`, and those who wait for one view at most as many as are free then. So a view
that does not move, or a write database that does not answer, takes half of the room, two such views two thirds: there
is always room for those who wait for another.
"""

import asyncio
import contextlib
import enum
import math
import threading
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import psycopg
from prometheus_client import Counter, Gauge, Histogram

from tandem.feed.token import Token, epoch_order
from tandem.queries.head import FULLY_CONSISTENT, Head
from tandem.queries.settings import FreshnessSettings
from tandem.read_store.announcement import HISTORY_CHANGED, Announcement, MalformedAnnouncement
from tandem.read_store.cache import CacheEpochs
from tandem.runtime.call import Call, Context, Stage, settle, stopping_error
from tandem.runtime.errors import Overloaded, PreconditionFailed, TandemError, Unavailable, Violation
from tandem.runtime.listener import Listener
from tandem.runtime.settings import SettingsError
from tandem.runtime.supervised import SupervisedThread
from tandem.runtime.telemetry import log
from tandem.runtime.tracing import TRACING
from tandem.runtime.worker import refuse

POSITION = Gauge("tandem_announced_position", "The position of each view that was announced last", ["view"])
PARKED_KEYS = Gauge(
    "tandem_announced_parked_keys", "Rows of each view that take in no more events, as it was announced last", ["view"]
)
BLIND = Gauge(
    "tandem_freshness_blind", "1 while a view's announcements are missing and its cache is not read", ["view"]
)
WAITS = Histogram(
    "tandem_freshness_wait_seconds",
    "Time that calls with a token waited for its position; those that needed no wait are not counted",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
)
WAITERS = Gauge("tandem_freshness_waiters", "Calls that wait for a position")
BEHIND = Gauge(
    "tandem_replica_behind_events",
    "How many events the replica that rows are read on lacked of what was announced, when it was looked at last: once a"
    " second, and more often while calls wait for it. Only where a primary database is set",
    ["view"],
)
IGNORED = Counter("tandem_announcements_ignored_total", "Announcements that were malformed or older than one before")

# Where those are parked who wait for the feed's head. No view has this name.
_HEAD = "the feed's head"
# They have at least this long, so that a `max_wait` of 0 means: do not wait for the view.
_LEAST_HEAD_SECONDS = 0.1
# A token that no announcement has reached is compared with the feed's head after this. Most waits are over by then.
_HEAD_AFTER_SECONDS = 0.02
# How long those who wait for a blind view wait between looks at the database; one look serves them all.
_POLL_SECONDS = 0.05
# The same for a replica, which mostly has all some milliseconds after its primary: each look that releases nobody
# doubles it before the next one, up to the one above. Without anybody who waits it is looked at now and then, for the
# metric.
_REPLICA_SECONDS = 0.002
_REPLICA_IDLE_SECONDS = 1.0
# The listening thread looks up this often, to stop or to notice that a view is blind.
_LISTEN_SECONDS = 0.2
_RECONNECT_SECONDS = 0.5
# How long before the caller's deadline a wait ends, so that the answer says why, and arrives.
_MARGIN_SECONDS = 0.1
# A view that cannot go on is mended by a person, or tried again after some seconds.
_FAILED_RETRY_SECONDS = 5.0


@dataclass(frozen=True)
class Announced:
    """A view's last announcement."""

    token: Token
    cache_epochs: CacheEpochs
    """Empty where there is no cache."""
    received_at: float


class Problem(NamedTuple):
    """Why a view cannot go on: as a reason of errors."""

    reason: str
    received_at: float


class Wanted(NamedTuple):
    """A token that an answer must include. field: where the caller gave it."""

    token: Token
    field: str


class Need(NamedTuple):
    """How fresh an answer must be.

    wanted: what it must include, one token of each feed; two where their histories contradict. max_wait: in seconds,
    since the call came. fully_consistent: the feed's head is wanted too, and is still to be read.
    """

    wanted: tuple[Wanted, ...] = ()
    max_wait: float = 0.0
    fully_consistent: bool = False

    def including(self, token: Token, field: str) -> "Need":
        """With another token. Of two tokens of one feed the later one includes the other."""
        others = self.wanted
        if others:
            if any(it.token.includes(token) for it in others):
                return self
            others = tuple([it for it in others if not token.includes(it.token)])
        return Need((*others, Wanted(token, field)), self.max_wait, self.fully_consistent)

    def with_head(self, token: Token) -> "Need":
        """With the feed's head, which was read after the call came."""
        return self.including(token, FULLY_CONSISTENT)._replace(fully_consistent=False)

    def end_of_wait(self, call: Context) -> float:
        """When a call's wait is over, on the clock of time.monotonic()."""
        seconds = call.deadline - call.came_at
        # A short deadline keeps most of its time for the wait.
        return call.came_at + min(self.max_wait, seconds - min(_MARGIN_SECONDS, seconds / 4))


NOTHING_NEEDED = Need()


class Asked:
    """What a query's call asks for: its `asked`, from the first handler on.

    home: the stage that a call goes back to from where it was parked. view: what it waits for; for_rows: not for what
    is announced of it, but for the replica that has its rows. wanted: what its request wants, as its query has it.
    """

    __slots__ = ("for_rows", "home", "need", "view", "wanted")

    def __init__(self, home: Stage, view: str, need: Need, wanted: Hashable = None) -> None:
        self.home = home
        self.need = need
        self.view = view
        self.for_rows = False
        self.wanted = wanted


class Fresh(enum.Enum):
    NOW = "it is fresh enough"
    WAIT = "it will be, or the wait ends first"
    WAIT_FOR_ROWS = "as WAIT, and what was announced says nothing: the replica that was read is behind"
    DATABASE = "only the database can say: no announcement does, it is of another feed, or the wait is over"


WAITS_ON = (Fresh.WAIT, Fresh.WAIT_FOR_ROWS)
"""Verdicts upon which a call is parked."""


class _Parked(NamedTuple):
    """What a call waits for, since when, and until when at the latest. epoch: the feed's, as its integer, and `order`
    as `epoch_order` has it.
    """

    epoch: int
    order: int
    position: int
    since: float
    end: float


class Freshness:
    """`start` and `stop` make it a Component. For any thread, and a Stage: it parks the calls that it is handed."""

    def __init__(
        self,
        settings: FreshnessSettings,
        listener: Listener,
        read_positions: Callable[[], dict[str, Token]],
        views: Collection[str],
        head: Head,
        *,
        with_cache: bool = True,
        on_replica: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """read_positions: the views' positions in the database; raises Unavailable. views: all that are followed.

        head: reads the feed's head. with_cache: False to take no notice of the nodes that are announced. on_replica:
        rows, and positions, are read where they may come later than what is announced.
        """
        self._head = head
        self.default_max_wait = settings.default_max_wait
        self._settings = settings
        self._listener = listener
        self._read_positions = read_positions
        self._views = frozenset(views)
        self._with_cache = with_cache
        self._on_replica = on_replica
        self._clock = clock
        self._announced: dict[str, Announced] = {}
        self._problems: dict[str, Problem] = {}
        self._subscribers: list[Callable[[str], None]] = []
        # Guards all below, and changes of what was announced.
        self._lock = threading.Lock()
        places = (*views, *(map(_rows_of, views) if on_replica else ()), _HEAD)
        self._parked: dict[str, dict[Call, _Parked]] = {place: {} for place in places}
        # Tokens up to it were given out. Others are compared with it at `_compare_at`, by time.monotonic().
        self._known_head: Token | None = None
        self._compare_at = math.inf
        self._head_is_wanted = threading.Condition(self._lock)
        # No wait ends before.
        self._next_end = math.inf
        self._ends_changed = threading.Condition(self._lock)
        self._is_waited_for = threading.Condition(self._lock)
        self._stopping = threading.Event()
        self._threads: list[SupervisedThread] = []

    async def start(self) -> None:
        for name, run in (
            ("announcements", self._follow_announcements),
            ("positions", self._follow_database),
            ("waits", self._follow_ends),
            ("head", self._follow_head),
        ):
            thread = SupervisedThread(name, run)
            thread.start()
            self._threads.append(thread)

    async def stop(self) -> None:
        with self._lock:
            self._stopping.set()
            self._ends_changed.notify_all()
            self._is_waited_for.notify_all()
            self._head_is_wanted.notify_all()
            parked = [call for view, calls in self._parked.items() for call in self._take_out(view, list(calls))]
        refuse(parked, stopping_error())
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        self._listener.close()

    def announced(self, view: str) -> Announced | None:
        """The view's last announcement, or None while it is blind. It may be trusted together or not at all."""
        last = self._announced.get(view)
        if last is None or self._clock() - last.received_at >= self._settings.blind_after:
            return None
        return last

    def subscribe(self, listener: Callable[[str], None]) -> None:
        """`listener` is called, on the listening thread, with each view that an announcement moves."""
        self._subscribers.append(listener)

    def judge(
        self, view: str, call: Context, need: Need, known: Token | None, *, final: bool = False
    ) -> Fresh | TandemError:
        """Whether an answer from `view` is as fresh as a call needs it, or the error that it is refused with.

        known: the position that was announced, before the answer is read; None while the view is blind. After that the
        one that the database said with what was read, which is `final`.
        """
        if not need.wanted:
            return Fresh.NOW
        if self.problem(view) == HISTORY_CHANGED and not self._comes_to_all(view, need):
            return history_changed(view)
        if known is None:
            return Fresh.DATABASE
        for it in need.wanted:
            if _is_of_another(it.token, known):
                return _other_feed(view, it.field) if final else Fresh.DATABASE
        behind = [it.token for it in need.wanted if not known.includes(it.token)]
        if not behind:
            return Fresh.NOW
        return self._judge_behind(view, call, need, known, max(behind, key=_order), final=final)

    def _judge_behind(
        self, view: str, call: Context, need: Need, known: Token, wanted: Token, *, final: bool
    ) -> Fresh | TandemError:
        """For a view that does not include the wanted token, and may come to it."""
        problem = self.problem(view)
        comes_by_itself = self._on_replica and self._is_announced(view, wanted)
        if problem is not None and wanted.epoch == known.epoch and not comes_by_itself:
            return _view_failed(view, problem, known, wanted)
        if self._clock() >= need.end_of_wait(call):
            return _projection_lag(view, known, wanted) if final else Fresh.DATABASE
        if final and self._is_decided(view, wanted):
            if self._on_replica:
                return Fresh.WAIT_FOR_ROWS
            # Behind what was announced: the view is made anew, or the database lost commits in a failover.
            self.distrust([view])
        return Fresh.WAIT

    def admit(self, call: Call, view: str, known: Token | None, *, final: bool = False) -> Fresh | None:
        """As `judge`; None for a call that is not answered now: it was refused, or goes to where it is parked."""
        asked: Asked = call.asked
        if asked.need.fully_consistent:
            call.next = self
            return None
        verdict = self.judge(view, call, asked.need, known, final=final)
        if isinstance(verdict, TandemError):
            call.fail(verdict)
            return None
        if verdict in WAITS_ON:
            asked.view, asked.for_rows = view, verdict is Fresh.WAIT_FOR_ROWS
            call.next = self
            return None
        return verdict

    def problem(self, view: str) -> str | None:
        """Why the view cannot go on, as a reason of errors, as long as a projector says so; None when it can."""
        problem = self._problems.get(view)
        if problem is None or self._clock() - problem.received_at >= self._settings.blind_after:
            return None
        return problem.reason

    def announced_token(self, view: str) -> Token | None:
        """The view's position; None while it is blind."""
        announced = self.announced(view)
        return None if announced is None else announced.token

    def apply_announcement(self, announcement: Announcement, received_at: float) -> None:
        """Takes an announcement in. Within a feed's epoch an older one is a deposed projector's and is ignored."""
        moved: list[str] = []
        released: list[Call] = []
        with self._lock:
            for view, position in announcement.positions.items():
                if view not in self._views:
                    # A newer projector has views that this program does not know.
                    continue
                marks, generations = announcement.marks, announcement.generations
                token = Token(announcement.feed_epoch, position, marks.get(view, 0), generations.get(view, 0))
                last = self._announced.get(view)
                if last is not None and last.token != token and self._is_older(token, last.token):
                    IGNORED.inc()
                    continue
                was_blind = self.announced(view) is None
                epochs = announcement.cache_epochs.get(view, {}) if self._with_cache else {}
                self._announced[view] = Announced(token, epochs, received_at)
                if self._parked[view]:
                    released += self._release(view, token)
                if was_blind or last is None or token != last.token:
                    moved.append(view)
            if announcement.problems or self._problems:
                released += self._take_problems_in(announcement, received_at, moved)
        _send_home(released)
        # After those who wait: nobody waits for these.
        for view in moved:
            for listener in self._subscribers:
                listener(view)
        for view in self._views & announcement.positions.keys():
            _position(view).set(self._announced[view].token.position)
            _parked_keys(view).set(announcement.parked.get(view, 0))

    def _take_problems_in(self, announcement: Announcement, received_at: float, moved: list[str]) -> list[Call]:
        """Returns the calls that are released; adds views whose problem is another one now to `moved`."""
        released: list[Call] = []
        for view in self._views & (announcement.positions.keys() | announcement.problems.keys()):
            before = self.problem(view)
            reason = announcement.problems.get(view)
            if reason is None:
                self._problems.pop(view, None)
                continue
            self._problems[view] = Problem(reason, received_at)
            if reason != before:
                # They are judged again, and refused.
                released += self._take_out(view, list(self._parked[view]))
                moved.append(view)
        return released

    def distrust(self, views: Iterable[str]) -> None:
        """Makes views blind until their next announcement.

        Positions are kept, so that it cannot take a view back.
        """
        with self._lock:
            for view in views:
                self._problems.pop(view, None)
                if view in self._announced:
                    self._announced[view] = replace(self._announced[view], received_at=float("-inf"))

    def put_all(self, calls: Sequence[Call]) -> None:
        """Parks calls until the views that they wait for are where they want them, or the feed's head is read."""
        decided: list[Call] = []
        refused: list[Call] = []
        with self._lock:
            stopping = self._stopping.is_set()
            for call in calls:
                place = _place(call)
                if place in self._views and self._is_decided(place, _wanted(call).token):
                    decided.append(call)
                elif stopping or len(self._parked[place]) >= self._settings.max_waiters - self._waiters():
                    refused.append(call)
                else:
                    self._park(call, place)
        _send_home(decided)
        for call in refused:
            full = Overloaded(f"too many calls wait for {_place(call)} already")
            refuse([call], stopping_error() if stopping else full)
        for call in calls:
            # Its caller may have gone before `when_gone` was set.
            if call.gone:
                self._let_go(call)

    def release_in_database(self, positions: dict[str, Token]) -> bool:
        """Releases the calls that wait for blind views, or for the replica, where the database is as far as they want
        it; says whether there were any.
        """
        released: list[Call] = []
        with self._lock:
            for view in self._blind_and_waited_for() & positions.keys():
                released += self._release(view, positions[view])
            for view in self._views & positions.keys() if self._on_replica else ():
                released += self._release(_rows_of(view), positions[view])
                last = self._announced.get(view)
                if last is not None and last.token.epoch == positions[view].epoch:
                    _behind(view).set(max(0, last.token.position - positions[view].position))
        _send_home(released)
        return bool(released)

    def end_waits(self) -> None:
        """Ends the waits that are over: the database has the last word, and who waits for the feed's head fails."""
        over: list[Call] = []
        with self._lock:
            now = self._clock()
            if now - self._next_end > _LEAST_HEAD_SECONDS:
                # The server did not run for a while: the head may have come meanwhile, and be still to be received.
                parked = self._parked[_HEAD]
                parked |= {it: at._replace(end=max(at.end, now + _LEAST_HEAD_SECONDS)) for it, at in parked.items()}
            for place, parked in self._parked.items():
                over += self._take_out(place, [call for call, it in parked.items() if it.end <= now])
            ends = [it.end for parked in self._parked.values() for it in parked.values()]
            self._next_end = min(ends, default=math.inf)
        back: list[Call] = []
        for call in over:
            view = call.asked.view
            if _place(call) == _HEAD:
                refuse([call], Unavailable("the write database does not answer in time", reason="STORE_UNAVAILABLE"))
                continue
            verdict = self.judge(view, call, call.asked.need, self.announced_token(view))
            if isinstance(verdict, TandemError):
                refuse([call], verdict)
            else:
                back.append(call)
        _send_home(back)

    @staticmethod
    def _is_older(token: Token, last: Token) -> bool:
        """Of the same feed and the same generation of the view."""
        return last.epoch == token.epoch and last.position > token.position and not token.is_made_anew_since(last)

    def read_head(self) -> None:
        """Reads the feed's head, once for all who wait for it or for a token that no head has reached.

        Whatever was acknowledged before a call came is at or below a head that is read later.
        """
        with self._lock:
            asking = list(self._parked[_HEAD])
            now = self._clock()
            unreached = {call for call, it in self._unreached() if it.since <= now - _HEAD_AFTER_SECONDS}
            announced = {view: it.token for view, it in self._announced.items()}
            self._compare_at = math.inf
        if not asking and not unreached:
            self._compare_again(_HEAD_AFTER_SECONDS)
            return
        try:
            head = self._head.read()
        except TandemError as error:
            with self._lock:
                failed = self._take_out(_HEAD, [call for call in asking if call in self._parked[_HEAD]])
            refuse(failed, error)
            self._compare_again(_RECONNECT_SECONDS)
            return
        with self._lock:
            self._known_head = head
            found = self._take_out(_HEAD, [call for call in asking if call in self._parked[_HEAD]])
            beyond: list[Call] = []
            for view in self._views:
                calls = [
                    call
                    for call, it in self._parked[view].items()
                    if call in unreached and it.epoch == head.epoch.int and it.position > head.position
                ]
                beyond += self._take_out(view, calls)
        for call in found:
            call.asked.need = call.asked.need.with_head(head)
        for call in beyond:
            refuse([call], _beyond_the_head(call, head, announced.get(call.asked.view)))
        _send_home(found)
        self._compare_again(_HEAD_AFTER_SECONDS)

    def _unreached(self) -> list[tuple[Call, _Parked]]:
        """Those whose token may be one that was never given out. None where this server cannot ask."""
        if not self._head.is_set_up:
            return []
        head = self._known_head
        epoch, position = (head.epoch.int, head.position) if head is not None else (0, 0)
        return [
            (call, it)
            for view in self._views
            for call, it in self._parked[view].items()
            if it.position > position or it.epoch != epoch
        ]

    def _compare_again(self, seconds: float) -> None:
        with self._lock:
            if self._unreached():
                self._compare_at = time.monotonic() + seconds

    def _is_decided(self, view: str, token: Token) -> bool:
        """Whether announcements say enough: the view includes the token, cannot go on, or is of another feed."""
        last = self.announced(view)
        if last is None:
            return False
        if last.token.epoch != token.epoch:
            return epoch_order(token.epoch) <= epoch_order(last.token.epoch)
        return last.token.position >= token.position or self.problem(view) is not None

    def _is_announced(self, view: str, token: Token) -> bool:
        last = self.announced(view)
        return last is not None and last.token.includes(token)

    def _comes_to_all(self, view: str, need: Need) -> bool:
        """Whether a view that has taken in what the feed lost will include what is wanted: in the feed's next epoch.

        Positions of its own epoch say nothing: what came instead of what was lost is not in it.
        """
        last = self._announced.get(view)
        return last is not None and all(
            epoch_order(it.token.epoch) > epoch_order(last.token.epoch) for it in need.wanted
        )

    def _park(self, call: Call, place: str) -> None:
        end = call.asked.need.end_of_wait(call)
        if place == _HEAD:
            end = max(end, call.came_at + _LEAST_HEAD_SECONDS)
            parked = _Parked(0, 0, 0, self._clock(), end)
            self._head_is_wanted.notify()
        else:
            token = _wanted(call).token
            parked = _Parked(token.epoch.int, epoch_order(token.epoch), token.position, self._clock(), end)
            if self._compare_at == math.inf and self._head.is_set_up and place in self._views:
                self._compare_at = time.monotonic() + _HEAD_AFTER_SECONDS
                self._head_is_wanted.notify()
        self._parked[place][call] = parked
        call.when_gone = self._let_go
        waiters = self._waiters()
        WAITERS.set(waiters)
        if end < self._next_end:
            self._next_end = end
            self._ends_changed.notify()
        if waiters == 1 or place not in self._views:
            self._is_waited_for.notify()

    def _waiters(self) -> int:
        return sum(map(len, self._parked.values()))

    def _release(self, view: str, reached: Token) -> list[Call]:
        """Takes out the calls for which it is decided now that a view is at `reached`: also those of another feed."""
        # Compared as integers: all who wait for the view are looked at.
        epoch, order, position = reached.epoch.int, epoch_order(reached.epoch), reached.position
        waiting = self._parked[view].items()
        ready = [call for call, it in waiting if (it.position <= position if it.epoch == epoch else it.order <= order)]
        return self._take_out(view, ready)

    def _take_out(self, place: str, calls: list[Call]) -> list[Call]:
        """Takes out calls that wait for a view, or for the head; they are the caller's now."""
        now = self._clock()
        for call in calls:
            since = self._parked[place].pop(call).since
            WAITS.observe(now - since)
            if TRACING.is_on:
                TRACING.note("wait", since, TRACING.span_of(call, call.method.name), now, view=place)
        if calls:
            WAITERS.set(self._waiters())
        return calls

    def _let_go(self, call: Call) -> None:
        """The caller has gone."""
        with self._lock:
            place = _place(call)
            if call not in self._parked[place]:
                return
            self._take_out(place, [call])
        call.drop()
        settle([call])

    def _blind_and_waited_for(self) -> set[str]:
        return {view for view in self._views if self._parked[view] and self.announced(view) is None}

    def _follow_announcements(self) -> None:
        """The listening thread."""
        connected = True
        while not self._stopping.is_set():
            try:
                payloads = self._listener.wait(_LISTEN_SECONDS)
                connected = True
            except (psycopg.Error, SettingsError) as error:
                if connected:
                    log.warning("announcements cannot be received", error=str(error)[:500])
                connected = False
                self.distrust(self._views)
                self._stopping.wait(_RECONNECT_SECONDS)
                payloads = []
            received_at = self._clock()
            for payload in payloads:
                try:
                    self.apply_announcement(Announcement.decode(payload), received_at)
                except MalformedAnnouncement as error:
                    IGNORED.inc()
                    log.warning("not an announcement", payload=str(error))
            for view in self._views:
                _blind(view).set(self.announced(view) is None)

    def _follow_database(self) -> None:
        """The thread that reads positions while somebody waits for a blind view, or for the replica."""
        # When a replica is looked at though nobody waits.
        due = time.monotonic() if self._on_replica else math.inf
        pause = _REPLICA_SECONDS
        while not self._stopping.is_set():
            with self._lock:
                for_rows = self._on_replica and any(self._parked[_rows_of(view)] for view in self._views)
                if not for_rows:
                    pause = _REPLICA_SECONDS
                if not for_rows and not self._blind_and_waited_for():
                    # A view that somebody waits for may become blind meanwhile.
                    seconds = _POLL_SECONDS if self._waiters() else due - time.monotonic()
                    # Looked at again with the lock: a stop may have come, and nobody else wakes this thread then.
                    if not self._stopping.is_set():
                        self._is_waited_for.wait(None if seconds == math.inf else seconds)
                    if time.monotonic() < due:
                        continue
            if self._on_replica:
                due = time.monotonic() + _REPLICA_IDLE_SECONDS
            # Unavailable is logged where it is raised; those who wait get the error when they read.
            released = False
            with contextlib.suppress(Unavailable):
                released = self.release_in_database(self._read_positions())
            pause = _REPLICA_SECONDS if released else min(2 * pause, _POLL_SECONDS)
            self._stopping.wait(pause if for_rows else _POLL_SECONDS)

    def _follow_ends(self) -> None:
        """The thread that ends waits."""
        while not self._stopping.is_set():
            self.end_waits()
            with self._lock:
                if not self._stopping.is_set():
                    self._ends_changed.wait(None if self._next_end == math.inf else self._next_end - self._clock())

    def _follow_head(self) -> None:
        """The thread that reads the feed's head while somebody waits for it."""
        while not self._stopping.is_set():
            try:
                self.read_head()
            except Exception:
                log.exception("the feed's head could not be compared")
                self._stopping.wait(_RECONNECT_SECONDS)
            with self._lock:
                while not self._stopping.is_set() and not self._parked[_HEAD]:
                    seconds = self._compare_at - time.monotonic()
                    if seconds <= 0:
                        break
                    self._head_is_wanted.wait(None if seconds == math.inf else seconds)


# With every announcement, and looked up by its label each time takes longer than to set it.
_position = cache(POSITION.labels)
_blind = cache(BLIND.labels)
_behind = cache(BEHIND.labels)
_parked_keys = cache(PARKED_KEYS.labels)


@cache
def _rows_of(view: str) -> str:
    """Where those are parked who wait for a replica. No view has this name."""
    return f"{view}, on the replica"


def _place(call: Call) -> str:
    """What a call waits for: the feed's head, a view, or the replica that has its rows."""
    asked: Asked = call.asked
    if asked.need.fully_consistent:
        return _HEAD
    return _rows_of(asked.view) if asked.for_rows else asked.view


def _wanted(call: Call) -> Wanted:
    """What a call that is parked waits for: of two feeds the later one, which the view may come to."""
    asked: Asked = call.asked
    wanted = asked.need.wanted
    return wanted[0] if len(wanted) == 1 else max(wanted, key=lambda it: _order(it.token))


def _send_home(calls: Sequence[Call]) -> None:
    by_home: dict[Stage, list[Any]] = {}
    for call in calls:
        by_home.setdefault(call.asked.home, []).append(call)
    for home, together in by_home.items():
        home.put_all(together)


def _order(token: Token) -> tuple[int, int]:
    return epoch_order(token.epoch), token.position


def _is_of_another(token: Token, known: Token) -> bool:
    """Whether a view at `known` will never come to the token: it is of another feed, or of a history that was lost."""
    if token.epoch == known.epoch:
        return token.contradicts(known)
    return epoch_order(token.epoch) <= epoch_order(known.epoch)


def history_changed(view: str) -> Unavailable:
    return Unavailable(
        f"the write store lost writes that the view {view} shows, and an operator must say which history holds;"
        " without a token it is read as it is",
        reason="HISTORY_CHANGED",
        retry_after=_FAILED_RETRY_SECONDS,
        metadata={"view": view},
    )


def _view_failed(view: str, problem: str, seen: Token, wanted: Token) -> Unavailable:
    """The view has not reached the token, and will not by itself."""
    return Unavailable(
        f"the view {view} cannot go on ({problem}), and does not include the token; an operator must see to it",
        reason="VIEW_FAILED",
        retry_after=_FAILED_RETRY_SECONDS,
        metadata={"view": view, "position": str(seen.position), "wanted": str(wanted.position), "problem": problem},
    )


def _projection_lag(view: str, seen: Token, wanted: Token) -> Unavailable:
    """The view has not reached the token in time; both are of one feed, or the token of its next epoch."""
    behind = wanted.position - (seen.position if seen.epoch == wanted.epoch else 0)
    return Unavailable(
        f"the view {view} is {behind} events behind the token; it is safe to ask again",
        reason="PROJECTION_LAG",
        metadata={
            "view": view,
            "position": str(seen.position),
            "wanted": str(wanted.position),
            "behind": str(behind),
        },
    )


def _beyond_the_head(call: Call, head: Token, announced: Token | None) -> TandemError:
    """announced: where the view was before the head was read."""
    if announced is not None and announced.epoch == head.epoch and announced.position > head.position:
        # The feed has lost what the view shows, and perhaps what the token stands for.
        return history_changed(call.asked.view)
    description = (
        f"is beyond the feed, which is at position {head.position}: no receipt and no answer had it, or the write store"
        " lost what it stood for"
    )
    return PreconditionFailed([Violation(_wanted(call).field, description, "TOKEN_AHEAD")])


def _other_feed(view: str, field: str) -> TandemError:
    """The view is of another feed than a token that was given, or than the write store has."""
    if field == FULLY_CONSISTENT:
        message = f"the view {view} was made from another feed than the write store has now, and is to be made anew"
        return Unavailable(message, reason="STORE_UNAVAILABLE")
    description = "belongs to another feed: the write store was restored since, and what it stood for may be gone"
    return PreconditionFailed([Violation(field, description, "TOKEN_EPOCH_MISMATCH")])
