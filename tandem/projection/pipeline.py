"""Batches of events on their way into views, three at a time.

An `EventBatch` is the events after a position, and what they do to each view. `Pipeline` writes one while the next one
is folded and the one behind that is found.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from tandem.feed.events import FeedEvent
from tandem.projection.changes import FoundRows, ParkedEvent
from tandem.projection.fold import fold_steps, steps_of
from tandem.projection.projection import Projection
from tandem.projection.rows import NeededKeys, RowSource
from tandem.projection.statements import Move
from tandem.projection.traced import trace_of


class EventBatch:
    """The events after a position that its views all have, with the rows that they change.

    before, after: the positions of the events before it and of its last one. mark: of that last one. full: there may be
    more events behind it. moves: what it does to each view, by name, once it is folded.
    """

    def __init__(
        self,
        projections: Sequence[Projection],
        before: int,
        events: Sequence[FeedEvent],
        known_kinds: Collection[str],
        rows: RowSource,
        *,
        mark_before: int,
        full: bool,
        fills: bool,
        max_rows: int,
    ) -> None:
        """mark_before: of the event at `before`. fills: the views are made anew.

        max_rows: of each view; the events that would change more are left to the batch behind.

        Raises psycopg.Error.
        """
        self.began = time.perf_counter()
        self.trace = trace_of(events, catches_up=full or fills)
        self.before = before
        self.after, self.mark = events[-1].position, events[-1].mark
        self._marks = [mark_before, *(it.mark for it in events)]
        self.full = full
        self._last_kind = events[-1].kind
        self.moves: dict[str, Move] = {}
        self._projections = {it.view: it for it in projections}
        self._steps = {it.view: steps_of(it, events, known_kinds) for it in projections}
        # By view that does not take all events: the first one that it leaves to the batch behind.
        self._rest = {it.view: rest for it in projections if (rest := self._steps[it.view].bound(max_rows))}
        self._needed: NeededKeys = {it.view: self._steps[it.view].needed(it) for it in projections}
        self._found: FoundRows = rows.find(self._needed)

    @property
    def views(self) -> list[str]:
        return list(self._projections)

    def fold(self, rows: RowSource) -> None:
        """The batches before this one must be folded, and may be written or not."""
        rows.refresh(self._needed, self._found)
        for view, steps in self._steps.items():
            projection = self._projections[view]
            changes = fold_steps(projection, steps, self._found[view], rows.parked(view))
            end = changes.stopped_by.position if changes.stopped_by else self._rest.get(view)
            after = self.after if end is None else end - 1
            self.moves[view] = Move(projection, self.before, after, changes, self._marks[after - self.before])
        rows.add_folded({view: move.changes for view, move in self.moves.items()})
        # Not needed any more, and three batches are in memory while views catch up.
        self._steps, self._needed, self._found, self._marks = {}, {}, {}, []

    def park(self, view: str, refused: Mapping[bytes, str]) -> None:
        """Parks rows of a batch of one event, which the database refuses. refused: why, by key."""
        projection, changes = self._projections[view], self.moves[view].changes
        for key, error in refused.items():
            row = changes.rows.pop(key)
            assert row is not None, "to take a row away is not refused"
            scope = projection.scope_of(projection.message.FromString(row.value), None)
            changes.parked.append(ParkedEvent(key, self.after, self._last_kind, error, scope))
        changes.parked_keys += len(refused)

    @property
    def moved(self) -> bool:
        """Whether some view takes some event in."""
        return any(it.after > it.before for it in self.moves.values())

    @property
    def is_cut(self) -> bool:
        """Whether some view has taken in a part of the events, and can go on behind it."""
        return bool(self._rest)

    @property
    def leads_on(self) -> bool:
        """Whether all of its views go on together behind it."""
        return self.full and all(it.after == self.after for it in self.moves.values())


Find = Callable[[Sequence[str], int, int], EventBatch | None]
"""(views, the position that they all have, the mark there) -> the events behind it, if there are any."""


class Pipeline:
    """Writes a batch, folds the next and finds the one behind that, at the same time. Then all move on by one.

    Each of the three has a thread. Between two steps nothing runs. Nothing of a batch is seen outside before it is
    written. When something fails, all that was done ahead is dropped, since it was made from what was never written.
    """

    def __init__(self, find: Find, rows: RowSource, write: Callable[[EventBatch], None]) -> None:
        """find, write: they may run at the same time."""
        self._find = find
        self._rows = rows
        self._write = write
        # The next batch, folded, and the one behind it, found.
        self._ahead: tuple[EventBatch, EventBatch | None] | None = None

    def step(self, views: Sequence[str], position: int, mark: int, *, goes_on: bool) -> EventBatch | None:
        """Writes the views' next batch; None where there is none. Raises what `find` and `write` raise.

        goes_on: the next step is of the same views, so the batch behind is worth folding meanwhile.
        """
        try:
            return self._step(views, position, mark, goes_on)
        except Exception:
            self.forget()
            raise

    def forget(self) -> None:
        """Drops what was done ahead and all rows in memory: somebody else is about to write rows. Between two steps."""
        self._ahead = None
        self._rows.forget()

    def _step(self, views: Sequence[str], position: int, mark: int, goes_on: bool) -> EventBatch | None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and (ahead[0].views, ahead[0].before) == (views, position):
            batch, behind = ahead
        else:
            self._rows.drop_folded()
            found, behind = self._find(views, position, mark), None
            if found is None:
                return None
            batch = found
            batch.fold(self._rows)
        if batch.leads_on and goes_on:
            self._ahead = self._write_and_go_on(batch, behind)
        else:
            self._write(batch)
        self._rows.written()
        return batch

    def _write_and_go_on(
        self, batch: EventBatch, behind: EventBatch | None
    ) -> tuple[EventBatch, EventBatch | None] | None:
        """Returns what is ahead of the batch then. behind: what was found behind it already."""
        with ThreadPoolExecutor(2, "projector") as threads:
            written = threads.submit(self._write, batch)
            following = behind or _found(threads.submit(self._find, batch.views, batch.after, batch.mark))
            after_that: Future[EventBatch | None] | None = None
            if following is not None:
                if following.full:
                    after_that = threads.submit(self._find, batch.views, following.after, following.mark)
                following.fold(self._rows)
        written.result()
        if following is None:
            return None
        return following, _found(after_that) if after_that and following.leads_on else None


def _found(found: "Future[EventBatch | None]") -> EventBatch | None:
    """None for what cannot be found ahead: `step` looks for it once more when its time has come, and raises then."""
    try:
        return found.result()
    except Exception:
        return None
