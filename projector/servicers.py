"""ProjectionService: how far the views are."""

import asyncio
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
from projector.loop import Loop, ViewState
from tandem.feed.reader import read_head, recorded_at
from tandem.read_store.tables import projection
from tandem.runtime.database import may_pass
from tandem.runtime.errors import Unavailable
from tandem.runtime.rpc import Call


class ProjectionServicer:
    """Answers from the databases, so that a standby tells the same as the projector that holds the views."""

    def __init__(self, feed: Engine, read: Engine, loop: Loop) -> None:
        self._feed = feed
        self._read = read
        self._loop = loop

    async def ListProjections(self, _request: ListProjectionsRequest, _call: Call) -> ListProjectionsResponse:
        return await asyncio.to_thread(self._list)

    def _list(self) -> ListProjectionsResponse:
        try:
            # Positions before the head: the other way round a view could seem to be ahead of its feed.
            with self._read.connect() as connection:
                positions = {row.view: row.position for row in connection.execute(projection.select())}
            with self._feed.connect() as connection:
                head = read_head(connection).position
                oldest = {
                    position: recorded_at(connection, position + 1)
                    for position in {*positions.values(), 0}
                    if position < head
                }
        except SQLAlchemyError as error:
            if isinstance(error, PoolTimeout) or may_pass(error):
                raise Unavailable("a database is away", reason="STORE_UNAVAILABLE") from error
            raise
        now = datetime.now(UTC)
        answer = ListProjectionsResponse(feed_head=head)
        for view, state in sorted(self._loop.states.items()):
            position = positions.get(view, 0)
            waiting_since = oldest.get(position)
            entry = Projection(
                view=view,
                state=_state(state),
                position=position,
                lag_events=max(0, head - position),
                error=state.error,
            )
            entry.lag.FromTimedelta(max(now - waiting_since, timedelta()) if waiting_since else timedelta())
            answer.projections.append(entry)
        return answer


def _state(state: ViewState) -> ProjectionState.ValueType:
    if state.error:
        return ProjectionState.PROJECTION_STATE_FAILED
    return ProjectionState.PROJECTION_STATE_RUNNING if state.held else ProjectionState.PROJECTION_STATE_STANDBY
