"""The checker finds each way in which a guarantee may be broken, and nothing in a history that keeps them all."""

import uuid
from collections.abc import Callable

import pytest

from nemesis.checker import Feed, check
from nemesis.history import Followed, History, Read, Receipt, Shown, Stored, Subject, Write
from tandem.feed.token import Token

EPOCH = uuid.UUID(int=1)
ORDER, OTHER = Subject("order", "a"), Subject("order", "b")


def token(position: int, mark: int | None = None) -> Token:
    """mark: the event's own where it is not said."""
    return Token(EPOCH, position, position * 10 if mark is None else mark)


def stored(position: int, subject: Subject, version: int, request_id: str = "") -> Stored:
    return Stored(position, request_id or f"r{position}", position * 10, {subject: (version, 1)})


FEED = [stored(1, ORDER, 1), stored(2, OTHER, 1), stored(3, ORDER, 2), stored(4, ORDER, 3)]


def write(position: int, subject: Subject, version: int, **changes: object) -> Write:
    """The call that made the event at the position; each was answered before the next was sent."""
    receipt = Receipt(position, version, token(position), replayed=False)
    call = Write("c", f"r{position}", subject, invoked=position, completed=position + 0.5, receipt=receipt)
    return call._replace(**changes)  # type: ignore[arg-type]


def read(version: int | None, as_of: int | None, subject: Subject = ORDER, **changes: object) -> Read:
    """Asked after all was stored."""
    found = Read(
        "c", subject, 10.0, 11.0, None if version is None else (version, 1), None if as_of is None else token(as_of)
    )
    return found._replace(**changes)  # type: ignore[arg-type]


def a_history() -> History:
    return History(
        writes=[write(1, ORDER, 1), write(2, OTHER, 1), write(3, ORDER, 2), write(4, ORDER, 3)],
        reads=[
            read(2, 3),
            read(3, 3),
            read(3, 4, needed=(token(4),)),
            read(3, 4, fully_consistent=True),
            read(None, 1, OTHER),
        ],
        watched={"w": ORDER},
        shown={"w": [Shown(1.0, token(2), (1, 1)), Shown(5.0, token(4), (3, 1)), Shown(6.0, token(4), None)]},
        followed={
            "f": [Followed(5.0, token(2), ((1, "r1"), (2, "r2"))), Followed(5.0, token(4), ((3, "r3"), (4, "r4")))]
        },
        settled=True,
    )


def found(history: History, events: list[Stored] | None = None) -> list[str]:
    return [str(it) for it in check(history, Feed(EPOCH, FEED if events is None else events))]


def test_a_history_that_keeps_all_guarantees_has_no_violation() -> None:
    assert found(a_history()) == []


def test_what_was_asked_for_again_or_never_answered_is_no_violation() -> None:
    history = a_history()
    replay = write(1, ORDER, 1)
    assert replay.receipt is not None
    history.writes += [
        replay._replace(invoked=8.0, completed=9.0, receipt=replay.receipt._replace(replayed=True)),
        write(4, ORDER, 3, receipt=None),
        write(9, OTHER, 1, receipt=None, refusal="OUT_OF_STOCK"),
        write(9, OTHER, 1, receipt=None, refusal="OUT_OF_STOCK"),
    ]
    assert found(history) == []


def add_write(**changes: object) -> Callable[[History], None]:
    return lambda history: history.writes.append(write(4, ORDER, 3, **changes))


def add_read(
    version: int | None, as_of: int | None, subject: Subject = ORDER, **changes: object
) -> Callable[[History], None]:
    return lambda history: history.reads.append(read(version, as_of, subject, **changes))


def add_shown(position: int, version: int | None) -> Callable[[History], None]:
    return lambda history: history.shown["w"].append(
        Shown(9.0, token(position), None if version is None else (version, 1))
    )


RECEIPT = Receipt(4, 3, token(4), replayed=False)

BROKEN: dict[str, tuple[str, Callable[[History], None]]] = {
    "an acknowledged write is not there": ("G1: request r9", add_write(request_id="r9")),
    "a token is of another position": ("G6: request r4", add_write(receipt=RECEIPT._replace(token=token(3, 30)))),
    "a token has another mark": ("G6: request r4", add_write(receipt=RECEIPT._replace(token=token(4, 7)))),
    "a receipt has another version": ("G3: request r4", add_write(receipt=RECEIPT._replace(version=2))),
    "a request is refused and done": ("G3: request r4", add_write(receipt=None, refusal="OUT_OF_STOCK")),
    "a request has two receipts": (
        "G3: request r4 of c for order a got 2 receipts",
        add_write(receipt=RECEIPT._replace(position=3, version=2, token=token(3))),
    ),
    "a later write is before an earlier one": (
        "G4: request r1",
        lambda it: it.writes.__setitem__(0, write(1, ORDER, 1, invoked=2.7)),
    ),
    "an answer is older than its as_of": ("G7: c read order a", add_read(2, 4)),
    "an answer was never true": ("G5: c read order a", add_read(7, 4)),
    "an answer does not include its token": (
        "G6: c read order a as of 3, and needed 4",
        add_read(2, 3, needed=(token(4),)),
    ),
    "what a token stands for is not found": (
        "G6: c read order b and found nothing",
        add_read(None, None, OTHER, needed=(token(2),)),
    ),
    "a fully consistent answer lacks what was acknowledged": (
        "G6: c read order a as of 3",
        add_read(2, 3, fully_consistent=True),
    ),
    "an as_of is ahead of the feed": ("G6: c read order a as of 9", add_read(3, 9)),
    "an as_of is ahead of what was sent": ("G6: c read order a as of 4", add_read(3, 4, invoked=3.0, completed=3.9)),
    "a watch goes back": ("G8: w watched order a as of 4 and then as of 3", add_shown(3, None)),
    "a watch shows an older state": ("G8: w watched order a and was shown (3, 1) and then (2, 1)", add_shown(4, 2)),
    "a watch does not come to the end": ("G8: w ended with (1, 1)", lambda it: it.shown["w"].__delitem__(slice(1, 3))),
    "a heartbeat says that an old state is new": ("G7: w watched order a", lambda it: it.shown["w"].__delitem__(1)),
    "a follower misses an event": ("G4: f got event 3 after 0", lambda it: it.followed["f"].__delitem__(0)),
    "a follower gets an event twice": (
        "G4: f got event 3 after 4",
        lambda it: it.followed["f"].append(it.followed["f"][1]),
    ),
    "a caller gets an error that is a bug": ("G12: INTERNAL", lambda it: it.unexpected.append("INTERNAL")),
    "a follower's cursor is ahead of its events": (
        "G4: f got the cursor 4 with event 2",
        lambda it: it.followed["f"].__setitem__(0, it.followed["f"][0]._replace(cursor=token(4))),
    ),
}


@pytest.mark.parametrize(("expected", "breaks"), BROKEN.values(), ids=list(BROKEN))
def test_it_is_found_that(expected: str, breaks: Callable[[History], None]) -> None:
    history = a_history()
    breaks(history)
    assert [it for it in found(history) if it.startswith(expected)]


EVENTS: dict[str, tuple[str, list[Stored]]] = {
    "is missing": ("G4: the feed has event 4 where 3 should be", [*FEED[:2], FEED[3]]),
    "is stored twice": ("G3: request r1 of c for order a has 2 events", [*FEED, stored(5, ORDER, 4, "r1")]),
    "is of no request": ("G3: events [5] are of no request", [*FEED, stored(5, ORDER, 4)]),
}


@pytest.mark.parametrize(("expected", "events"), EVENTS.values(), ids=list(EVENTS))
def test_it_is_found_that_an_event(expected: str, events: list[Stored]) -> None:
    assert [it for it in found(a_history(), events) if it.startswith(expected)]


def test_events_of_a_request_stand_together() -> None:
    history = a_history()
    history.writes[0] = history.writes[0]._replace(expected=2)
    assert [it for it in found(history, [*FEED, stored(5, ORDER, 4, "r1")]) if it.startswith("G2: request r1")]
