"""Batches on their way: one is written while the next is folded and the one behind that is found."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import psycopg
from sqlalchemy.exc import SQLAlchemyError

from projector.apply import Move, Prepared
from projector.fold import Changes
from tandem.feed.events import FeedEvent


class Batch:
    """The events after a position that its views all have, with the rows that they change.

    full: there may be more events behind it. moves: what it does to each view, once it is folded.
    """

    def __init__(self, prepared: Sequence[Prepared], before: int, events: Sequence[FeedEvent], *, full: bool) -> None:
        self.began = time.perf_counter()
        self.views = [it.view for it in prepared]
        self.before = before
        self.after = events[-1].position
        self.full = full
        self.moves: dict[str, Move] = {}
        self._prepared = prepared

    def fold(self, last: Mapping[str, Changes]) -> None:
        """last: what the batch before this one does, which may have been folded after this one was found."""
        for it in self._prepared:
            if it.view in last:
                it.put(last[it.view])
            changes = it.fold()
            after = changes.stopped_by.position - 1 if changes.stopped_by else self.after
            self.moves[it.view] = Move(self.before, after, changes)
        self._prepared = ()

    @property
    def changes(self) -> dict[str, Changes]:
        """By view, once it is folded."""
        return {view: it.changes for view, it in self.moves.items()}

    @property
    def moved(self) -> bool:
        """Whether some view takes some event in."""
        return any(it.after > it.before for it in self.moves.values())

    @property
    def leads_on(self) -> bool:
        """Whether all of its views go on together behind it."""
        return self.full and all(it.after == self.after for it in self.moves.values())


Find = Callable[[Sequence[str], int, Mapping[str, Changes]], Batch | None]
"""Views, the position that they have, and what is folded up to there and not written yet -> the next batch, if any."""


class Pipeline:
    """All three go on at once, on threads of their own, and then all move on by one: between two steps nothing runs.

    Nothing of a batch is seen outside before it is written. Whatever fails, all that was done ahead is dropped: it was
    made from what did not come to be.
    """

    def __init__(self, find: Find, write: Callable[[Batch], None]) -> None:
        """Both raise psycopg.Error and SQLAlchemyError; they may run at the same time."""
        self._find = find
        self._write = write
        self._ahead: tuple[Batch, Batch | None] | None = None

    def step(self, views: Sequence[str], position: int) -> Batch | None:
        """Writes the views' next batch; None where there is none. Raises what `find` and `write` raise."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and (ahead[0].views, ahead[0].before) == (views, position):
            batch, behind = ahead
        else:
            found, behind = self._find(views, position, {}), None
            if found is None:
                return None
            batch = found
            batch.fold({})
        if not batch.leads_on:
            self._write(batch)
            return batch
        with ThreadPoolExecutor(2, "projector") as threads:
            written = threads.submit(self._write, batch)
            next_one = behind or _result(threads.submit(self._find, views, batch.after, batch.changes))
            after_that: Future[Batch | None] | None = None
            if next_one is not None:
                if next_one.full:
                    after_that = threads.submit(self._find, views, next_one.after, batch.changes)
                next_one.fold(batch.changes)
        written.result()
        if next_one is not None:
            self._ahead = next_one, _result(after_that) if after_that and next_one.leads_on else None
        return batch


def _result(found: "Future[Batch | None]") -> Batch | None:
    """What cannot be found ahead of its turn says why in its turn, when it is looked for once more."""
    try:
        return found.result()
    except (psycopg.Error, SQLAlchemyError):
        return None
