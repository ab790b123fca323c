"""What a session does with the other generations of its views: fills, compares, exchanges and drops them.

For the thread that follows. generations.py draws their states.
"""

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import psycopg
from sqlalchemy.exc import SQLAlchemyError

from tandem.projection import metrics
from tandem.projection.cache_writer import CacheWriter
from tandem.projection.comparison import Apart, Comparisons
from tandem.projection.generations import (
    Asked,
    Generation,
    State,
    begin_filling,
    drop,
    exchange,
    read_generations,
    say_error,
    set_state,
)
from tandem.projection.ownership import forget_changes, mark_filled
from tandem.projection.pipeline import Pipeline
from tandem.projection.projection import Projection
from tandem.projection.rows import RowSource
from tandem.projection.settings import FollowSettings
from tandem.projection.views import Phase, ViewState
from tandem.read_store.tables import other_of, served_of
from tandem.runtime.database import Driver, first_line
from tandem.runtime.sqlstate import ViewAction, failure_of
from tandem.runtime.telemetry import log


class Rebuilding:
    """Of one session. unfilled: its views that have not been at the feed's end yet."""

    def __init__(
        self,
        *,
        driver: Driver,
        session: uuid.UUID,
        lock: threading.Lock,
        served: Mapping[str, Projection],
        projections: dict[str, Projection],
        states: dict[str, ViewState],
        rows: RowSource,
        pipeline: Pipeline,
        cache: CacheWriter,
        comparisons: Comparisons,
        follow: FollowSettings,
        announce: Callable[[Driver], None],
    ) -> None:
        """lock: guards `states`, `cache` and what is announced. served: the program's own projections.

        projections, states: to them the other generations are added. announce: over a driver, in its transaction.
        """
        self._driver = driver
        self._session = session
        self._lock = lock
        self._served = served
        self._projections = projections
        self._states = states
        self._rows = rows
        self._pipeline = pipeline
        self._cache = cache
        self._comparisons = comparisons
        self._follow = follow
        self._announce = announce
        self._due = 0.0
        # By view, of those that have a limit of their own: events a second at most.
        self._rates: dict[str, int] = {}
        # Until when nobody is held up again by an exchange that found a table in use, and the pause before that.
        self._exchange_at: dict[str, float] = {}
        self._pauses: dict[str, float] = {}
        self.unfilled: set[str] = set()

    # How fast they are filled.

    @property
    def rests(self) -> bool:
        return time.monotonic() < self._due

    @property
    def rest_seconds(self) -> float | None:
        """Until more is to be filled; None where nothing waits for that."""
        seconds = self._due - time.monotonic()
        return seconds if seconds > 0 else None

    @contextmanager
    def work_on(self, views: Sequence[str]) -> Iterator[None]:
        """While it is entered the views are filled. Then they rest, as the share of time and their rates want it."""
        began, before = time.monotonic(), self._states[views[0]].position
        try:
            yield
        finally:
            seconds, events = time.monotonic() - began, self._states[views[0]].position - before
            rest = seconds * (1 / self._follow.rebuild_share - 1) if events else self._follow.poll_seconds
            rates = [self._rates[view] for view in views if view in self._rates]
            self._due = time.monotonic() + max([rest, *(events / rate - seconds for rate in rates)])

    def are_together(self, view: str) -> bool:
        """Whether a view and its other generation are at the same position, and go on together."""
        one, other = self._states[view], self._states[other_of(view)]
        return one.is_followed and (one.phase, one.position, one.mark) == (other.phase, other.position, other.mark)

    def batch_size(self, view: str, most: int) -> int:
        """Of one that is filled: small, and not past where the one that is served is, so that the two meet there."""
        at, served = self._states[view], self._states[served_of(view)]
        size, gap = min(most, self._follow.rebuild_batch), served.position - at.position
        return min(size, gap) if gap > 0 and served.is_followed else size

    def note_filled(self, views: Sequence[str]) -> None:
        """The views are at the feed's end. Where that cannot be kept now, it is next time."""
        if filled := self.unfilled.intersection(views):
            try:
                mark_filled(self._driver, filled, self._session)
            except psycopg.Error as error:
                if self._driver.closed or failure_of(error).view is ViewAction.END_SESSION:
                    raise
                log.warning("that views are filled cannot be kept now", error=first_line(error))
            else:
                self.unfilled -= filled

    # What is to be done with them.

    def look_after_all(self, epoch: uuid.UUID) -> None:
        """Does the next thing with each, if there is anything to do now. epoch: of the feed that is followed.

        Raises psycopg.Error.
        """
        shown: list[metrics.ShownGeneration] = []
        for it in read_generations(self._driver):
            with self._lock:
                state = self._states.get(it.view)
                other = self._states.get(other_of(it.view), ViewState())
            if state is None or state.phase is Phase.STANDBY:
                # Of a view that is another projector's.
                continue
            progress = other.position / max(state.position, other.position, 1)
            shown.append(metrics.ShownGeneration(it.view, it.state, progress, it.differences))
            try:
                self._look_after(it, epoch)
            except (Apart, SQLAlchemyError, psycopg.Error) as error:
                if self._driver.closed or failure_of(error).view is ViewAction.END_SESSION:
                    raise
                if first_line(error) != it.error:
                    log.warning("another generation has to wait", view=it.view, error=first_line(error))
                    say_error(self._driver, it.view, first_line(error))
        metrics.show_generations(shown)

    def _look_after(self, it: Generation, epoch: uuid.UUID) -> None:
        other = other_of(it.view)
        if it.state is State.REQUESTED:
            if it.asked is Asked.DROP:
                self._drop(it.view)
            else:
                self._begin_filling(it, epoch)
        elif other not in self._projections:
            # It was there before this session, and is taken over as any view is.
            self._add(it, ViewState())
        elif self._states[other].phase is Phase.STANDBY:
            return
        elif it.asked is Asked.DROP:
            self._drop(it.view)
        elif it.state in {State.FILLING, State.COMPARING}:
            self._compare(it)
        elif it.asked is Asked.SWITCH:
            self._switch(it.view)

    def _begin_filling(self, it: Generation, epoch: uuid.UUID) -> None:
        with self._lock:
            generation = begin_filling(self._driver, it.view, self._session, epoch)
        self.unfilled.add(other_of(it.view))
        self._add(it, ViewState(Phase.RUNNING, generation=generation))
        log.info("a view is made anew beside the one that is served", view=it.view)

    def _add(self, it: Generation, state: ViewState) -> None:
        other = self._served[it.view].other_generation()
        self._projections[other.view] = other
        self._rows.add(other.view)
        if it.rate is not None:
            self._rates[other.view] = it.rate
        with self._lock:
            self._states[other.view] = state

    def _compare(self, it: Generation) -> None:
        """Once the two are together, or the one that is served cannot go on and the other is at the feed's end."""
        view, other = it.view, other_of(it.view)
        if self.are_together(view):
            if it.state is State.FILLING:
                set_state(self._driver, view, State.COMPARING)
            elif (found := self._comparisons.result(self._served[view].table)) is not None:
                set_state(self._driver, view, State.READY, found.as_json())
                log.info("the generations of a view are compared", view=view, **found.counts)
        elif self._states[view].problem and self._is_at_the_end(other):
            set_state(self._driver, view, State.READY)
        elif it.state is State.COMPARING:
            self._comparisons.cancel(view)
            set_state(self._driver, view, State.FILLING)

    def _is_at_the_end(self, view: str) -> bool:
        return self._states[view].phase is Phase.RUNNING and view not in self.unfilled

    def _switch(self, view: str) -> None:
        """Serves the other generation: those who read, watch or have the cache learn it with the commit."""
        if time.monotonic() < self._exchange_at.get(view, 0.0):
            return
        other, epochs = other_of(view), self._cache.epochs
        served, instead = self._states[view], self._states[other]
        if not self.are_together(view) and not (served.problem and self._is_at_the_end(other)):
            raise Apart("it is not where the one that is served is; it is exchanged when both are together")
        if served.position != instead.position:
            # What the change log has is of positions that come again.
            forget_changes(self._driver, view)
        with self._lock:
            before = epochs.get(view)
            try:
                with self._driver.transaction():
                    exchange(self._driver, view, self._session)
                    self._cache.begin(view, None)
                    self._states[view], self._states[other] = instead, served
                    self._announce(self._driver)
            except BaseException:
                self._states[view], self._states[other] = served, instead
                if before is None:
                    epochs.pop(view, None)
                else:
                    epochs[view] = before
                # Readers of the table wait behind an exchange that waits for it.
                self._pauses[view] = min(2 * self._pauses.get(view, 0.25), self._follow.retry_seconds)
                self._exchange_at[view] = time.monotonic() + self._pauses[view]
                raise
        for name, state in ((view, instead), (other, served)):
            metrics.show(name, problem=state.problem, parked=state.parked)
        self._pauses.pop(view, None)
        self._pipeline.forget()
        log.info("another generation of a view is served", view=view, position=instead.position)

    def _drop(self, view: str) -> None:
        other = other_of(view)
        self._comparisons.cancel(view)
        with self._lock:
            drop(self._driver, view, self._session)
            if other in self._projections:
                del self._projections[other], self._states[other]
                self._rows.remove(other)
                metrics.forget(other)
        self.unfilled.discard(other)
        self._rates.pop(other, None)
        self._pipeline.forget()
        log.info("another generation of a view is dropped", view=view)
