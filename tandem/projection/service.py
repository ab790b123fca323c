"""ProjectionService: how far the views are."""

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from commerce.projection.v1.projection_service_pb2 import (
    ListProjectionsRequest,
    ListProjectionsResponse,
    Projection,
    ProjectionState,
)
from projector.feed import problem_of
from projector.loop import Loop
from tandem.feed.head import read_head
from tandem.feed.reader import recorded_at
from tandem.read_store.tables import projection
from tandem.runtime.calls import Call
from tandem.runtime.database import may_pass
from tandem.runtime.errors import Unavailable


@dataclass(frozen=True)
class _FeedNow:
    """head: the feed's last position. waiting_since: position of a view to when the event after it was stored.

    problem: why the write database cannot be asked; `head` is then the last one that was seen.
    """

    head: int
    waiting_since: dict[int, datetime | None] = field(default_factory=dict)
    problem: str = ""


class ProjectionServicer:
    """Answers from the databases, so that a standby tells the same as the projector that holds the views."""

    def __init__(self, feed: Engine, read: Engine, loop: Loop) -> None:
        self._feed = feed
        self._read = read
        self._loop = loop

    async def ListProjections(self, _request: ListProjectionsRequest, _call: Call) -> ListProjectionsResponse:
        return await asyncio.to_thread(self._list)

    def _list(self) -> ListProjectionsResponse:
        # States before positions: a failed view's position is committed before its state says so, and is to be seen
        # with it. Positions before the head: the other way round a view could seem to be ahead of its feed.
        states = dict(self._loop.states)
        positions = self._positions()
        feed = self._feed_now({*positions.values(), 0})
        now = datetime.now(UTC)
        answer = ListProjectionsResponse(feed_head=feed.head)
        for view, state in sorted(states.items()):
            position = positions.get(view, 0)
            since = feed.waiting_since.get(position)
            error = state.error or (feed.problem if state.held else "")
            entry = Projection(
                view=view,
                state=_state(state.held, error),
                position=position,
                lag_events=max(0, feed.head - position),
                error=error,
            )
            entry.lag.FromTimedelta(max(now - since, timedelta()) if since else timedelta())
            answer.projections.append(entry)
        return answer

    def _positions(self) -> dict[str, int]:
        try:
            with self._read.connect() as connection:
                return {row.view: row.position for row in connection.execute(projection.select())}
        except SQLAlchemyError as error:
            if isinstance(error, PoolTimeout) or may_pass(error):
                raise Unavailable("the read database is away", reason="STORE_UNAVAILABLE") from error
            raise

    def _feed_now(self, positions: set[int]) -> _FeedNow:
        try:
            with self._feed.connect() as connection:
                head = read_head(connection).position
                return _FeedNow(
                    head, {position: recorded_at(connection, position + 1) for position in positions if position < head}
                )
        except SQLAlchemyError as error:
            # An operator wants to know how far the views are then, too.
            return _FeedNow(self._loop.feed.head, problem=problem_of(error))


def _state(held: bool, error: str) -> ProjectionState.ValueType:
    if error:
        return ProjectionState.PROJECTION_STATE_FAILED
    return ProjectionState.PROJECTION_STATE_RUNNING if held else ProjectionState.PROJECTION_STATE_STANDBY
