"""Watches of one view: many callers follow a few rows each, and the database is asked for all of them together.

After each announcement, and once a second where none comes, the change log says which keys changed since the last look;
those that somebody watches are read, in batches, and each watcher is woken. Nothing is queued for anybody: a watcher
that comes for its next message gets the newest state, with the number of versions that it did not see.

Positions make it right. A row is read together with the view's position (`as_of`) and has the position of the event
that made it (`changed`). A watcher is shown a state if it was made after the last one that it was shown, or is another
one at the same position because the view was made anew; and never one that was read at an older position than it knows
of. Where the log cannot say what changed (it was purged, it is too
long, the view was made anew), all watched rows are read.

A watch, in `Watches.watch`:

    waiting ──▶ reading ──▶ showing ◀──▶ idle
       ▲           │
       └───────────┘ the database was behind the tokens

    waiting   parked like a call (Freshness) until the view includes its tokens
    reading   until its row has been read at their position; nothing to read where others watch it
    showing   gives the newest state, or a sign of life; on when the caller has taken it
    idle      until woken: by the follower (its row was read), the heartbeat's time, or the server's stop

It ends from every state: its caller goes; and with an error where the row is not there or is damaged, a wait is over,
the feed becomes another, or the server has stopped, after a last message.

A row that is watched, in `_Subject`:

    stale ──▶ current   the follower has read it
    current ──▶ stale   a watch needs it at a later position, or the change log names it
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple
from uuid import UUID

from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.empty_pb2 import Empty
from prometheus_client import Counter

from tandem.feed.token import Token
from tandem.queries.checker import QueryChecker
from tandem.queries.damage import RowCheck
from tandem.queries.encoding import EncodedField, view_of, watch_as_of_text
from tandem.queries.freshness import Asked, Fresh, Freshness, Need, history_changed
from tandem.queries.owners import RowOwner
from tandem.queries.parked import (
    NONE_PARKED,
    Parked,
    parked_among,
    parked_error,
    parked_fields,
    parked_refusal,
)
from tandem.queries.settings import WatchSettings
from tandem.queries.store import ChangedKeys, State, Store
from tandem.read_store.announcement import HISTORY_CHANGED
from tandem.runtime import audit
from tandem.runtime.call import UNCOUNTED, Call, LocalCall, Stage, StreamCall, stopping_error
from tandem.runtime.errors import NotFound, Overloaded, PreconditionFailed, TandemError, Unavailable, Violation
from tandem.runtime.supervised import supervise
from tandem.runtime.telemetry import log

SKIPPED = Counter("tandem_watch_skipped_versions_total", "Versions that watchers were not shown", ["view"])
REREADS = Counter(
    "tandem_watch_rereads_total", "Times that all watched rows were read: the change log could not say more", ["view"]
)

# How often to look without an announcement: none comes while the projector is away or cannot be received.
_POLL_SECONDS = 1.0
_RETRY_SECONDS = 0.5
# Twice this, and twice as long each time, until a replica is looked at once more that lacks what was announced.
_BEHIND_SECONDS = 0.002


class Watched(NamedTuple):
    """What a watcher is shown. value: the state, serialised; None where nothing changed up to `as_of`. parked: whether
    the row lacks events since then.
    """

    value: bytes | None
    as_of: Token
    skipped: int = 0
    parked: Parked = NONE_PARKED


class _Subject:
    """A row that is watched.

    state: as it was read at `as_of`; None where there is no such row. damage: why that cannot be shown. parked: what it
    lacks of `as_of`; it is read again and again, since the change log does not say when that ends.
    stale: it is to be read, or is being read.
    """

    __slots__ = ("as_of", "damage", "key", "parked", "stale", "state", "version", "watchers")

    def __init__(self, key: UUID) -> None:
        self.key = key
        self.watchers: set[_Watcher] = set()
        self.as_of: Token | None = None
        self.state: State | None = None
        self.damage: TandemError | None = None
        self.parked = NONE_PARKED
        self.version = 0
        self.stale = False


class _Watcher:
    """One caller's watch. It waits for nothing but to be woken; what is new it finds at its subject."""

    __slots__ = ("_loop", "_woken", "error")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._woken: asyncio.Future[None] | None = None
        self.error: TandemError | None = None
        """Why its subject could not be read."""

    def wake(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    async def wait(self, seconds: float | None = None) -> None:
        """Until it is woken, or for `seconds`. There must be no await between looking for news and this."""
        self._woken = self._loop.create_future()
        timer = None if seconds is None else self._loop.call_later(seconds, self.wake)
        try:
            await self._woken
        finally:
            self._woken = None
            if timer is not None:
                timer.cancel()


class _Wait(LocalCall):
    """A stream where calls are handed on: a stage has it, and it goes on when the stage sends it back, to itself."""

    longest_seconds = StreamCall.longest_seconds

    def __init__(self, stream: StreamCall, asked: Asked) -> None:
        seconds = stream.deadline - stream.came_at
        super().__init__(UNCOUNTED, Empty(), seconds=seconds, metadata=stream.metadata())
        self.came_at = stream.came_at
        self.asked = asked
        asked.home = self

    async def at(self, stage: Stage) -> None:
        """Raises what the stage fails it with."""
        stage.put_all([self])
        await asyncio.wrap_future(self.future)

    def put_all(self, _calls: Sequence[Call]) -> None:
        """Sent back, from any thread."""
        self.reply(Empty())


class Watches:
    """Answers a watch of one view's rows. `start` and `stop` make it a Component. For the event loop.

    What the messages hold is read from the contract: a request with one id, and a response with the row, or else a
    `heartbeat`, and with `as_of` and `skipped_versions`. The row's message has a `version`.
    """

    def __init__(
        self,
        method: MethodDescriptor,
        store: Store,
        freshness: Freshness,
        settings: WatchSettings,
        *,
        max_batch: int,
        owner: str | None = None,
    ) -> None:
        """max_batch: rows to read at once. owner: the field of a row that names its owner, if rows have one."""
        [ids] = [it for it in method.input_type.fields if it.name.endswith("_id")]
        [value] = [it for it in method.output_type.fields if it.message_type is not None and it.name != "heartbeat"]
        self._id_field = ids.name
        self._resource = ids.name.removesuffix("_id")
        self._view = view_of(value)
        assert value.message_type is not None, "a row"
        self._message: type[Any] = message_factory.GetMessageClass(value.message_type)
        self._response: type[Any] = message_factory.GetMessageClass(method.output_type)
        self._check = RowCheck(self._view, self._message)
        self._rpc = method.name
        self._owner = None if owner is None else RowOwner(self._message, owner)
        self._value = EncodedField(self._response, value.name)
        self._as_of = EncodedField(self._response, "as_of")
        self._heartbeat = EncodedField(self._response, "heartbeat")(b"")
        self._freshness = freshness
        self._store = store
        self._settings = settings
        self._max_batch = max_batch
        self._subjects: dict[UUID, _Subject] = {}
        self._watchers = 0
        self._unread: set[UUID] = set()
        # Those that are parked, and when they are read again, on the loop's clock.
        self._lacking: set[UUID] = set()
        self._read_lacking_at = 0.0
        # The position up to which changes are known: of subjects that are not stale, nothing changed up to it.
        self._at: Token | None = None
        self._wanted = asyncio.Event()
        self._behind_seconds = _BEHIND_SECONDS
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._skipped = SKIPPED.labels(self._view)
        self._rereads = REREADS.labels(self._view)
        freshness.subscribe(self._position_changed)

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(supervise(f"watches-{self._view}", self._follow))

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def answer(self, request: Any, call: StreamCall) -> AsyncGenerator[bytes, None]:
        """The RPC."""
        check = QueryChecker(self._freshness.default_max_wait)
        key = check.key(self._id_field, getattr(request, self._id_field))
        need, shown = check.resume_from(check.consistency(request.consistency), request.resume_from)
        heartbeat = check.heartbeat_interval(request)
        check.finish()
        async with aclosing(self.watch(key, need, shown, heartbeat, call)) as states:
            async for value, as_of, skipped, parked in states:
                rest: bytes = self._response(skipped_versions=skipped).SerializeToString()
                rest += parked_fields(self._response, parked)
                shown_value = self._heartbeat if value is None else self._value(value)
                yield shown_value + self._as_of(watch_as_of_text(as_of)) + rest

    async def watch(
        self, key: UUID, need: Need, shown: Token | None, heartbeat: float, call: StreamCall
    ) -> AsyncGenerator[Watched, None]:
        """The row's state, then every newer one that is there to see, and a sign of life every `heartbeat` seconds.

        shown: up to where the caller knows the row. Raises NotFound; what `Freshness.judge` refuses with; Overloaded;
        Unavailable after a last message when the server stops, and when the feed's history has changed;
        PreconditionFailed when the feed becomes another.
        """
        if self._watchers >= self._settings.max_watchers:
            raise Overloaded(f"{self._watchers} watches are open already", retry_after=1.0)
        with self._subscribed(key) as (subject, watcher):
            call.when_stopping(watcher.wake)
            known = await self._first_read(subject, watcher, need, call)
            # The caller knows nothing of what was made since.
            knows_it = shown is not None and not known.is_made_anew_since(shown)
            position = shown.position if shown is not None and knows_it else -1
            last = self._newest(subject, known)[0] if knows_it else None
            version, told = 0, NONE_PARKED
            loop = asyncio.get_running_loop()
            # The first message at once, whatever it is: the caller learns that the watch is open.
            due = loop.time()
            while True:
                stopping = call.stopping
                if self._freshness.problem(self._view) == HISTORY_CHANGED:
                    raise history_changed(self._view)
                state, known = self._newest(subject, known)
                # Another value at the same position: the view was made anew, and the row was wrong before.
                if state.changed > position or (last is not None and state.value != last.value):
                    skipped = max(0, subject.version - version - 1) if version else 0
                    self._skipped.inc(skipped)
                    position, version, last, told = state.changed, subject.version, state, subject.parked
                    yield Watched(state.value, known, skipped, told)
                elif stopping or loop.time() >= due or subject.parked != told:
                    told = subject.parked
                    yield Watched(None, known, parked=told)
                else:
                    await watcher.wait(due - loop.time())
                    continue
                if stopping:
                    raise stopping_error()
                due = loop.time() + heartbeat

    @contextlib.contextmanager
    def _subscribed(self, key: UUID) -> Iterator[tuple[_Subject, _Watcher]]:
        watcher = _Watcher()
        subject = self._subjects.setdefault(key, _Subject(key))
        subject.watchers.add(watcher)
        self._watchers += 1
        try:
            yield subject, watcher
        finally:
            self._watchers -= 1
            subject.watchers.discard(watcher)
            if not subject.watchers:
                self._subjects.pop(key, None)
                self._unread.discard(key)
                self._lacking.discard(key)
            if not self._subjects:
                self._at = None

    async def _first_read(self, subject: _Subject, watcher: _Watcher, need: Need, call: StreamCall) -> Token:
        """Waits until the subject is as fresh as needed; returns the position that it includes."""
        # Where it goes back to is set by each wait.
        asked = Asked(self._freshness, self._view, need)
        while True:
            if asked.need.fully_consistent:
                await _Wait(call, asked).at(self._freshness)
            announced = self._freshness.announced_token(self._view)
            verdict = self._freshness.judge(self._view, call, asked.need, announced)
            if verdict in (Fresh.NOW, Fresh.DATABASE):
                # What was announced is to be in the first state, as in every other answer.
                tokens = [it.token for it in asked.need.wanted] + ([announced] if announced is not None else [])
                covered = await self._read(subject, watcher, tokens)
                verdict = self._freshness.judge(self._view, call, asked.need, covered, final=True)
                if verdict is Fresh.NOW:
                    self._must_be_own(subject, call)
                    refusal = parked_refusal(self._view, asked.need, covered, subject.parked, subject.key.hex)
                    if refusal is not None:
                        raise refusal
                    return subject.parked.shown_at(covered)
            if isinstance(verdict, TandemError):
                raise verdict
            asked.for_rows = verdict is Fresh.WAIT_FOR_ROWS
            await _Wait(call, asked).at(self._freshness)

    def _must_be_own(self, subject: _Subject, call: StreamCall) -> None:
        """Raises NotFound for a row that is not known to be the caller's, who may see no other."""
        if call.owner is None:
            return
        if subject.state is not None and self._owner is not None and self._owner.is_of(subject.state.value, call.owner):
            return
        if subject.state is not None:
            audit.somebody_elses(call, self._rpc, f"the row {subject.key.hex}")
        raise self._not_found(subject)

    def _not_found(self, subject: _Subject) -> NotFound:
        return NotFound(self._resource, f"{self._resource}s/{subject.key}")

    async def _read(self, subject: _Subject, watcher: _Watcher, tokens: Sequence[Token]) -> Token:
        """Has the subject read unless it includes the tokens; returns the position that it includes then."""
        covered = self._covered(subject)
        if covered is None or not all(covered.includes(token) for token in tokens):
            self._mark(subject)
            while subject.stale:
                await watcher.wait()
                if watcher.error is not None:
                    raise watcher.error
            covered = self._covered(subject)
            assert covered is not None, "it was read"
        return covered

    def _newest(self, subject: _Subject, known: Token) -> tuple[State, Token]:
        """The subject's state, and the position that it includes, not before `known`."""
        covered = self._covered(subject)
        assert covered is not None, "it was read"
        if covered.epoch != known.epoch:
            description = "the write store was restored: begin a new watch, without a token"
            raise PreconditionFailed([Violation("resume_from", description, "TOKEN_EPOCH_MISMATCH")])
        if subject.damage is not None:
            raise subject.damage
        if subject.state is None:
            if subject.parked.rows:
                raise parked_error(self._view, subject.parked, subject.key.hex)
            raise self._not_found(subject)
        shown = subject.parked.shown_at(covered)
        return subject.state, shown if shown.position >= known.position else known

    def _covered(self, subject: _Subject) -> Token | None:
        """The position that the subject's state includes; None before it was read."""
        as_of, at = subject.as_of, self._at
        return at if not subject.stale and as_of is not None and at is not None and at.includes(as_of) else as_of

    def _mark(self, subject: _Subject) -> None:
        subject.stale = True
        self._unread.add(subject.key)
        self._wanted.set()

    def _position_changed(self, view: str) -> None:
        """On the listening thread. Without subjects nobody is woken: one that comes now reads what is announced."""
        if view == self._view and self._subjects and self._loop is not None:
            self._loop.call_soon_threadsafe(self._look)

    def _look(self) -> None:
        if self._subjects:
            self._wanted.set()
        if self._freshness.problem(self._view) == HISTORY_CHANGED:
            for subject in self._subjects.values():
                for watcher in subject.watchers:
                    watcher.wake()

    async def _follow(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause() if self._subjects else None):
                    await self._wanted.wait()
            self._wanted.clear()
            try:
                await self._catch_up()
            except TandemError as error:
                self._give_up(error)
                await asyncio.sleep(_RETRY_SECONDS)
            except Exception:
                log.exception("watches failed", view=self._view)
                self._give_up(Unavailable(f"the view {self._view} cannot be watched", reason="STORE_UNAVAILABLE"))
                await asyncio.sleep(_RETRY_SECONDS)

    def _pause(self) -> float:
        """How long to wait for an announcement: shorter while a replica lacks what was announced, or what its change
        log named before.
        """
        announced, at = self._freshness.announced_token(self._view), self._at
        if not self._unread and (announced is None or at is None or not _is_before(at, announced)):
            self._behind_seconds = _BEHIND_SECONDS
            return _POLL_SECONDS
        self._behind_seconds = min(2 * self._behind_seconds, _POLL_SECONDS)
        return self._behind_seconds

    def _give_up(self, error: TandemError) -> None:
        """Fails those who wait for their first state. The others go on when the subjects can be read again."""
        for key in self._unread:
            for watcher in self._subjects[key].watchers:
                watcher.error = error
                watcher.wake()
        self._wanted.set()

    async def _catch_up(self) -> None:
        at = self._at
        if self._subjects and (at is None or self._freshness.announced_token(self._view) != at):
            after = at.position if at is not None else None
            self._take_in(
                await asyncio.to_thread(self._store.changed_keys, self._view, after, self._settings.max_changes)
            )
        now = asyncio.get_running_loop().time()
        if now >= self._read_lacking_at:
            self._read_lacking_at = now + _POLL_SECONDS
            for key in self._lacking:
                self._mark(self._subjects[key])
        # What is marked meanwhile is read after the next look: many new watchers must not hold up the news of others.
        todo = list(self._unread)
        for start in range(0, len(todo), self._max_batch):
            keys = [key for key in todo[start : start + self._max_batch] if key in self._unread]
            self._unread.difference_update(keys)
            try:
                states, parked, as_of = await asyncio.to_thread(self._store.states, self._view, keys)
            except BaseException:
                self._unread.update(self._subjects.keys() & set(keys))
                raise
            for key in keys:
                subject = self._subjects.get(key)
                if subject is not None:
                    self._offer(subject, states.get(key), parked_among([key], parked), as_of)

    def _take_in(self, changes: ChangedKeys) -> None:
        at, self._at = self._at, changes.as_of
        if at is None:
            # Nobody watched before. Subjects that were read since, before this look, may have changed in between.
            changed = [subject for subject in self._subjects.values() if subject.as_of is not None]
        elif changes.as_of.includes(at) and changes.complete:
            changed = [self._subjects[key] for key in changes.keys if key in self._subjects]
        else:
            # The log cannot say, the view is being made anew, or the feed is another.
            self._rereads.inc()
            changed = list(self._subjects.values())
        for subject in changed:
            if at is not None and not subject.stale and subject.as_of is not None and at.includes(subject.as_of):
                # Nothing had changed up to there, and nobody is to be shown less when the view goes back.
                subject.as_of = at
            self._mark(subject)

    def _offer(self, subject: _Subject, state: State | None, parked: Parked, as_of: Token) -> None:
        """What was read of a subject."""
        if self._at is not None and _is_before(as_of, self._at):
            # Another replica answered than the one whose log was read, and it is behind: it has not all that was named.
            self._unread.add(subject.key)
        # Marked again while it was being read: it is read once more.
        subject.stale = subject.key in self._unread
        before = subject.as_of
        if before is None or before.epoch != as_of.epoch or as_of.position >= before.position:
            subject.damage = None if state is None else self._check.failure(state.value, subject.key.hex)
            is_news = state is not None and (subject.state is None or state.value != subject.state.value)
            if state is not None and is_news and subject.damage is None:
                subject.version = self._message.FromString(state.value).version
            subject.as_of, subject.state, subject.parked = as_of, state, parked
            (self._lacking.add if parked.rows else self._lacking.discard)(subject.key)
        for watcher in subject.watchers:
            watcher.error = None
            watcher.wake()


def _is_before(token: Token, other: Token) -> bool:
    """Of one feed, and one generation of the view."""
    return token.epoch == other.epoch and token.position < other.position and not token.is_made_anew_since(other)
