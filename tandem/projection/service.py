"""ProjectionService: how far the views are."""

import asyncio
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from tandem.feed.archive import Archive
from tandem.feed.head import read_head
from tandem.feed.reader import recorded_at
from tandem.feed.source import problem_of
from tandem.projection.explaining import Explaining
from tandem.projection.lag import LagWatch
from tandem.projection.parked_keys import ParkedKeys
from tandem.projection.views import Progress
from tandem.read_store.tables import ALL_NEWEST, SCHEMA
from tandem.runtime.database import create_database_engine, has_revision, read_pooled
from tandem.runtime.errors import Unavailable
from tandem.runtime.server import Service
from tandem.runtime.settings import DatabaseSettings
from tandem.runtime.sqlstate import QueryAction, failure_of
from tandem.runtime.telemetry import log
from tandem.runtime.worker import Worker, all_alike

# The workers', the lag's, and the two that readiness asks on: the server's and this service's.
_CONNECTIONS = 5
_ROWS = text(f"SELECT view, position, feed_epoch, error, parked FROM {ALL_NEWEST} AS p")  # noqa: S608 - a table of ours


class _Feed(NamedTuple):
    """epoch: None where the write database does not say it."""

    position: int
    epoch: uuid.UUID | None


class ProjectionService:
    """A Component. It asks the databases, so that a standby says the same as the projector that holds the views."""

    def __init__(
        self,
        descriptor: ServiceDescriptor,
        progress: Progress,
        *,
        feed_database: DatabaseSettings,
        read_database: DatabaseSettings,
        archive: Archive,
        explaining: Explaining,
        revision: str,
    ) -> None:
        """descriptor: a service with ListProjections, as commerce.projection.v1.ProjectionService has it.

        explaining: answers its other RPCs; a component of its own.

        revision: the migration of the read database that this program needs.
        """
        response = descriptor.methods_by_name["ListProjections"].output_type
        entry = response.fields_by_name["projections"].message_type
        states = entry.fields_by_name["state"].enum_type if entry is not None else None
        assert states is not None, "an enum"
        self._response: Any = GetMessageClass(response)
        self._states = {it.name.removeprefix("PROJECTION_STATE_"): it.number for it in states.values}
        self._progress = progress
        self._archive = archive
        self._revision = revision
        name = "tandem-projector-status"
        self._feed = create_database_engine(feed_database, name=name, pool_size=2, by_key=True, autocommit=True)
        self._read = create_database_engine(
            read_database, name=name, pool_size=_CONNECTIONS, by_key=True, autocommit=True
        )
        self._worker = Worker("projections", [all_alike(self._list)], max_batch=1000, max_waiting=10_000)
        parked = ParkedKeys(descriptor, self._read, progress.states)
        self._operators = Worker("operators", [parked.handle], max_batch=10, max_waiting=1000)
        self._lag = LagWatch(progress, self._waiting_since)
        workers = {
            "ListProjections": self._worker,
            "Explain": explaining.worker,
            **dict.fromkeys(parked.rpcs, self._operators),
        }
        self.service = Service(descriptor, workers, {"GetHistory": explaining.get_history}, ready=self._are_well)

    async def start(self) -> None:
        await self._worker.start()
        await self._operators.start()
        await self._lag.start()

    async def stop(self) -> None:
        await self._lag.stop()
        await self._operators.stop()
        await self._worker.stop()
        self._feed.dispose()
        self._read.dispose()

    async def is_ready(self) -> bool:
        """Whether the read database answers, is migrated and takes writes."""
        return await asyncio.to_thread(has_revision, self._read, SCHEMA, self._revision, writing=True)

    async def _are_well(self) -> bool:
        """Whether the database can be asked, and no view stands, in whichever projector."""
        return await self.is_ready() and await asyncio.to_thread(self._no_view_stands)

    def _no_view_stands(self) -> bool:
        try:
            return not any(row.error for row in self._rows().values())
        except Unavailable as error:
            log.debug("the views cannot be asked", error=str(error))
            return False

    def _list(self) -> Any:
        # States before positions: a failed view's position is committed before its state says so, and is to be seen
        # with it. Positions before the head: the other way round a view could seem to be ahead of its feed.
        states = dict(self._progress.states)
        rows = self._rows()
        feed, waiting_since, problem = self._feed_now({*(row.position for row in rows.values()), 0})
        head = feed.position
        now = datetime.now(UTC)
        answer = self._response(feed_head=head)
        for view, state in sorted(states.items()):
            row = rows.get(view)
            position = row.position if row is not None else 0
            since = waiting_since.get(position)
            # One that is HELD without an error is being brought over: nobody follows it yet.
            held = state.is_followed or bool(state.error)
            # What another projector says of the view, or said last, stands in its row.
            error = (state.error or problem) if held else (row.error or "" if row is not None else "")
            entry = answer.projections.add(
                view=view,
                state=self._states[("FAILED" if error else "RUNNING") if held else "STANDBY"],
                position=position,
                # Of a view of another epoch it is not known yet what it has of this one.
                lag_events=max(0, head - position) if row and feed.epoch in {row.feed_epoch, None} else head,
                error=error,
                parked_keys=row.parked if row is not None else 0,
                differences=self._progress.differences[view],
            )
            if view in self._progress.compared_at:
                entry.audited_at.FromSeconds(int(self._progress.compared_at[view]))
            entry.lag.FromTimedelta(max(now - since, timedelta()) if since else timedelta())
        return answer

    def _waiting_since(self) -> dict[str, datetime | None]:
        """For LagWatch."""
        rows = self._rows()
        feed, since, problem = self._feed_now({0, *(row.position for row in rows.values())})
        if problem:
            raise Unavailable(problem, reason="STORE_UNAVAILABLE")
        waiting = {}
        for view in self._progress.states:
            row = rows.get(view)
            # Of a view of another epoch it is not known yet what it has of this one.
            position = row.position if row is not None and row.feed_epoch == feed.epoch else 0
            waiting[view] = since.get(position)
        return waiting

    def _rows(self) -> dict[str, Any]:
        """Of the views' table `projection`, by view. Raises Unavailable."""
        try:
            rows = read_pooled(self._read, lambda it: it.execute(_ROWS).all())
        except SQLAlchemyError as error:
            if failure_of(error).query is not QueryAction.BUG:
                raise Unavailable("the read database is away", reason="STORE_UNAVAILABLE") from error
            raise
        return {row.view: row for row in rows}

    def _feed_now(self, positions: set[int]) -> tuple[_Feed, dict[int, datetime | None], str]:
        """Where the feed is; when the event after each of the views' positions was stored; and "".

        Where the write database is away: the last position that was seen, nothing, and why.
        """

        def read(connection: Connection) -> tuple[_Feed, dict[int, datetime | None]]:
            head = read_head(connection)
            since = {it: recorded_at(connection, it + 1, self._archive) for it in positions if it < head.position}
            return _Feed(head.position, head.epoch), since

        try:
            return *read_pooled(self._feed, read), ""
        except SQLAlchemyError as error:
            # An operator wants to know how far the views are then, too.
            return _Feed(self._progress.head, None), {}, problem_of(error)
