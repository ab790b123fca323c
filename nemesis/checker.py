"""Compares the answers that clients got with the feed, by guarantee: a history in, violations out. Pure.

The feed that the write database has at the end is the truth. It says which state each thing had at each position, so
every answer can be judged by its own `as_of`, whoever gave it.
"""

import bisect
import itertools
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from nemesis.history import Followed, History, Read, Receipt, Shown, State, Stored, Subject, Write
from tandem.feed.token import Token


class Violation(NamedTuple):
    """guarantee: G1 to G9 or G12, as docs/architecture.md numbers them; or that something recovers."""

    guarantee: str
    text: str

    def __str__(self) -> str:
        return f"{self.guarantee}: {self.text}"


class Feed:
    """The events in the order in which they are stored, and what follows from them."""

    def __init__(self, epoch: uuid.UUID, events: Sequence[Stored]) -> None:
        self.epoch = epoch
        self.events = events
        self.head = events[-1].position if events else 0
        self.at: dict[int, Stored] = {it.position: it for it in events}
        self.of_request: defaultdict[str, list[int]] = defaultdict(list)
        self._positions: dict[Subject, list[int]] = {}
        self._states: dict[Subject, list[State]] = {}
        for it in events:
            self.of_request[it.request_id].append(it.position)
            for subject, state in it.states.items():
                self._positions.setdefault(subject, []).append(it.position)
                self._states.setdefault(subject, []).append(state)

    def states_from(self, subject: Subject, position: int) -> list[State]:
        """The state at a position, where there is one, and all later ones."""
        first = bisect.bisect_right(self._positions.get(subject, []), position) - 1
        return self._states.get(subject, [])[max(first, 0) :]

    def existed_at(self, subject: Subject, position: int) -> bool:
        return subject in self._positions and self._positions[subject][0] <= position

    def last(self) -> dict[Subject, State]:
        """The state of each thing at the end."""
        return {subject: states[-1] for subject, states in self._states.items()}


def check(history: History, feed: Feed) -> list[Violation]:
    """Empty where all guarantees were kept."""
    return [
        *(Violation("G12", it) for it in history.unexpected),
        *_feed_has_no_gap(feed),
        *_acknowledged_writes_are_stored(history.writes, feed),
        *_requests_are_done_once(history.writes, feed),
        *_positions_follow_time(history.writes),
        *_answers_are_fresh(history, feed),
        *_watches_move_forward(history, feed),
        *_followers_miss_nothing(history, feed),
    ]


def _feed_has_no_gap(feed: Feed) -> Iterator[Violation]:
    for number, it in enumerate(feed.events, start=1):
        if it.position != number:
            yield Violation("G4", f"the feed has event {it.position} where {number} should be")
            return


def _acknowledged_writes_are_stored(writes: Iterable[Write], feed: Feed) -> Iterator[Violation]:
    for it in writes:
        if it.receipt is None:
            continue
        position, version, token, _ = it.receipt
        stored = feed.at.get(position)
        if stored is None or stored.request_id != it.request_id:
            yield Violation("G1", f"{_name(it)} was acknowledged at {position} and is not there")
            continue
        if token != Token(feed.epoch, position, stored.mark):
            yield Violation("G6", f"{_name(it)} at {position} has the token of {token.position}, mark {token.mark}")
        if it.subject in stored.states and stored.states[it.subject][0] != version:
            yield Violation("G3", f"{_name(it)} got version {version}, it made {stored.states[it.subject][0]}")


def _requests_are_done_once(writes: Iterable[Write], feed: Feed) -> Iterator[Violation]:
    """One effect, one receipt or one refusal for each request id, however often it is sent."""
    calls: dict[str, list[Write]] = {}
    for it in writes:
        calls.setdefault(it.request_id, []).append(it)
    for request_id, positions in feed.of_request.items():
        first = calls.get(request_id, [None])[0]
        if first is None:
            yield Violation("G3", f"events {positions} are of no request that was sent: {request_id!r}")
        elif len(positions) != first.expected:
            yield Violation(
                "G3", f"{_name(first)} has {len(positions)} events instead of {first.expected}: {positions}"
            )
        elif positions[-1] - positions[0] != len(positions) - 1:
            yield Violation("G2", f"{_name(first)} has events apart from one another: {positions}")
    for request_id, sent in calls.items():
        answers = {it.receipt._replace(replayed=False) for it in sent if it.receipt is not None}
        refusals = {it.refusal for it in sent if it.refusal}
        if len(answers) > 1:
            yield Violation("G3", f"{_name(sent[0])} got {len(answers)} receipts: {_positions(answers)}")
        if len(refusals) > 1 or (refusals and (answers or request_id in feed.of_request)):
            where = feed.of_request.get(request_id, _positions(answers))
            yield Violation("G3", f"{_name(sent[0])} was refused ({'; '.join(sorted(refusals))}) and done at {where}")


def _positions_follow_time(writes: Iterable[Write]) -> Iterator[Violation]:
    """What was acknowledged before another command was first sent is before it in the feed."""
    invoked: dict[str, float] = {}
    done: dict[str, tuple[float, int]] = {}
    for it in writes:
        invoked[it.request_id] = min(it.invoked, invoked.get(it.request_id, it.invoked))
        if it.receipt is not None:
            earlier = done.get(it.request_id, (it.completed, it.receipt.position))
            done[it.request_id] = min((it.completed, it.receipt.position), earlier)
    ends = sorted(done.values())
    latest = list(itertools.accumulate((position for _, position in ends), max))
    times = [time for time, _ in ends]
    for request_id, (_, position) in done.items():
        before = bisect.bisect_left(times, invoked[request_id])
        if before and latest[before - 1] >= position:
            yield Violation("G4", f"request {request_id} at {position} was sent after {latest[before - 1]} was known")


def _answers_are_fresh(history: History, feed: Feed) -> Iterator[Violation]:
    known = _Known(history.writes, feed)
    for it in history.reads:
        needed = max([token.position for token in it.needed], default=0)
        if it.fully_consistent:
            needed = max(needed, known.acknowledged_before(it.invoked))
        yield from _judge(it, needed, known, feed)


def _judge(it: Read, needed: int, known: "_Known", feed: Feed) -> Iterator[Violation]:
    who = f"{it.client} read {it.subject}"
    at = needed
    if it.as_of is not None:
        at = it.as_of.position
        if it.as_of.epoch != feed.epoch or not 0 <= at <= known.sent_before(it.completed):
            yield Violation("G6", f"{who} as of {at}, when the feed was at {known.sent_before(it.completed)} at most")
        elif at < needed:
            yield Violation("G6", f"{who} as of {at}, and needed {needed}")
    yield from _shows(who, it.subject, it.state, max(at, needed), feed)


def _shows(who: str, subject: Subject, state: State | None, at: int, feed: Feed) -> Iterator[Violation]:
    """That a state is the one at the position or a later one."""
    if state is None:
        if feed.existed_at(subject, at):
            yield Violation("G6", f"{who} and found nothing at {at}")
        return
    if state in feed.states_from(subject, at):
        return
    if state in feed.states_from(subject, 0):
        yield Violation("G7", f"{who} and found {state} at {at}, which was older")
    else:
        yield Violation("G5", f"{who} and found {state} at {at}, which it never was")


class _Known:
    """What could be known of the feed at a time."""

    def __init__(self, writes: Iterable[Write], feed: Feed) -> None:
        invoked: dict[str, float] = {}
        ends: list[tuple[float, int]] = []
        for it in writes:
            invoked[it.request_id] = min(it.invoked, invoked.get(it.request_id, it.invoked))
            if it.receipt is not None:
                ends.append((it.completed, it.receipt.position))
        self._ends, self._ended = _running_maximum(ends)
        starts = [(invoked.get(it.request_id, 0.0), it.position) for it in feed.events]
        self._starts, self._started = _running_maximum(starts)

    def acknowledged_before(self, time: float) -> int:
        """The last position that somebody had a receipt for."""
        found = bisect.bisect_left(self._ends, time)
        return self._ended[found - 1] if found else 0

    def sent_before(self, time: float) -> int:
        """The last position of a command that had been sent."""
        found = bisect.bisect_left(self._starts, time)
        return self._started[found - 1] if found else 0


def _running_maximum(timed: Iterable[tuple[float, int]]) -> tuple[list[float], list[int]]:
    """The times in order, and the highest position up to each."""
    ordered = sorted(timed)
    return [time for time, _ in ordered], list(itertools.accumulate((position for _, position in ordered), max))


def _watches_move_forward(history: History, feed: Feed) -> Iterator[Violation]:
    for watcher, messages in history.shown.items():
        subject = history.watched[watcher]
        yield from _watch_moves_forward(f"{watcher} watched {subject}", subject, messages, feed)
        if history.settled and _last_state(messages) != feed.last().get(subject):
            yield Violation("G8", f"{watcher} ended with {_last_state(messages)}, {subject} is {feed.last()[subject]}")


def _watch_moves_forward(who: str, subject: Subject, messages: Sequence[Shown], feed: Feed) -> Iterator[Violation]:
    at, state = 0, None
    for it in messages:
        if it.as_of.position < at:
            yield Violation("G8", f"{who} as of {at} and then as of {it.as_of.position}")
        at = it.as_of.position
        if it.state is not None:
            if state is not None and it.state[0] <= state[0]:
                yield Violation("G8", f"{who} and was shown {state} and then {it.state}")
            state = it.state
        # A heartbeat says that the state before is still the one.
        yield from _shows(who, subject, state, at, feed)


def _last_state(messages: Sequence[Shown]) -> State | None:
    return next((it.state for it in reversed(messages) if it.state is not None), None)


def _followers_miss_nothing(history: History, feed: Feed) -> Iterator[Violation]:
    for follower, messages in history.followed.items():
        reached = 0
        for position, request_id in _events(messages):
            if position != reached + 1:
                yield Violation("G4", f"{follower} got event {position} after {reached}")
            reached = position
            stored = feed.at.get(position)
            if stored is None or stored.request_id != request_id:
                yield Violation("G4", f"{follower} got {request_id} at {position}, where it is not stored")
        for it in messages:
            if it.events and it.cursor.position != it.events[-1][0]:
                yield Violation("G4", f"{follower} got the cursor {it.cursor.position} with event {it.events[-1][0]}")
        if history.settled and reached != feed.head:
            yield Violation("G4", f"{follower} ended at {reached}, the feed is at {feed.head}")


def _events(messages: Iterable[Followed]) -> Iterator[tuple[int, str]]:
    for it in messages:
        yield from it.events


def _positions(answers: Iterable[Receipt]) -> list[int]:
    return sorted(it.position for it in answers)


def _name(write: Write) -> str:
    return f"request {write.request_id} of {write.client} for {write.subject}"


def by_guarantee(violations: Iterable[Violation]) -> Mapping[str, list[Violation]]:
    """In the order of the guarantees."""
    found: dict[str, list[Violation]] = {}
    for it in sorted(violations):
        found.setdefault(it.guarantee, []).append(it)
    return found
