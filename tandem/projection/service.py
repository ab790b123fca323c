"""ProjectionService: how far the views are, and what operators do with their generations."""

import asyncio
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, TypeVar

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from tandem.feed.archive import Archive
from tandem.feed.head import read_head
from tandem.feed.reader import recorded_at
from tandem.feed.source import problem_of
from tandem.projection.explaining import Explaining
from tandem.projection.generations import Asked, State, ask, drop_version, request_rebuild
from tandem.projection.parked_keys import ParkedKeys
from tandem.projection.statements import Driver
from tandem.projection.views import Progress, ViewState
from tandem.read_store.tables import ALL_NEWEST, SCHEMA, generation, is_other, other_of
from tandem.runtime.call import Call
from tandem.runtime.checker import Checker
from tandem.runtime.database import create_database_engine, driver_of, has_revision, read_pooled
from tandem.runtime.errors import NotFound, PreconditionFailed, Unavailable, Violation
from tandem.runtime.server import Service
from tandem.runtime.settings import DatabaseSettings
from tandem.runtime.sqlstate import QueryAction, failure_of
from tandem.runtime.telemetry import log
from tandem.runtime.worker import Worker, all_alike, one_by_one

T = TypeVar("T")

# One for each worker, and the two that readiness asks on: the server's and this service's.
_CONNECTIONS = 8
_SWITCHABLE = (State.READY, State.KEPT)
_ROWS = text(f"SELECT view, position, feed_epoch, error, parked FROM {ALL_NEWEST} AS p")  # noqa: S608 - a table of ours
_GENERATIONS = text(f"SELECT * FROM {generation.fullname} ORDER BY view")  # noqa: S608
# PostgreSQL's names are no longer.
_LONGEST_NAME = 63
_MOST_EVENTS_PER_SECOND = 1_000_000


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
        """descriptor: a service as commerce.projection.v1.ProjectionService is.

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
        self._feed = create_database_engine(feed_database, name=name, pool_size=1, by_key=True, autocommit=True)
        self._read = create_database_engine(
            read_database, name=name, pool_size=_CONNECTIONS, by_key=True, autocommit=True
        )
        listed = descriptor.methods_by_name["ListGenerations"].output_type
        self._generations: Any = GetMessageClass(listed)
        states = listed.fields_by_name["generations"].message_type.fields_by_name["state"].enum_type  # type: ignore[union-attr]
        assert states is not None, "an enum"
        self._generation_states = {it.name.removeprefix("GENERATION_STATE_"): it.number for it in states.values}
        handlers = {
            "ListProjections": all_alike(self._list),
            "ListGenerations": all_alike(self._list_generations),
            "StartRebuild": one_by_one(self._start_rebuild),
            "SwitchGeneration": one_by_one(self._switch_generation),
            "DropGeneration": one_by_one(self._drop_generation),
        }
        self._empty = {it: GetMessageClass(descriptor.methods_by_name[it].output_type)() for it in handlers}
        self._workers = {
            name: Worker(name, [handler], max_batch=1000, max_waiting=10_000) for name, handler in handlers.items()
        }
        parked = ParkedKeys(descriptor, self._read, progress.states)
        self._operators = Worker("operators", [parked.handle], max_batch=10, max_waiting=1000)
        workers = {
            **self._workers,
            "Explain": explaining.worker,
            **dict.fromkeys(parked.rpcs, self._operators),
        }
        self.service = Service(descriptor, workers, {"GetHistory": explaining.get_history}, ready=self._are_well)

    async def start(self) -> None:
        for worker in (*self._workers.values(), self._operators):
            await worker.start()

    async def stop(self) -> None:
        for worker in (*self._workers.values(), self._operators):
            await worker.stop()
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
            return not any(row.error for view, row in self._rows().items() if view in self._served())
        except Unavailable as error:
            log.debug("the views cannot be asked", error=str(error))
            return False

    def _list(self) -> Any:
        # States before positions: a failed view's position is committed before its state says so, and is to be seen
        # with it. Positions before the head: the other way round a view could seem to be ahead of its feed.
        states = self._served()
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

    def _served(self) -> dict[str, ViewState]:
        """The views of this program, without their other generations."""
        return {view: state for view, state in self._progress.states.copy().items() if not is_other(view)}

    def _list_generations(self) -> Any:
        """Other generations, and views of other versions of the program."""
        found, rows = self._ask(lambda it: it.execute(_GENERATIONS).all()), self._rows()
        head = self._feed_now(set())[0].position
        answer = self._generations(feed_head=head)
        for it in found:
            served, other = rows.get(it.view), rows.get(other_of(it.view))
            entry = answer.generations.add(
                view=it.view,
                state=self._generation_states[it.state.upper()],
                position=other.position if other is not None else 0,
                served_position=served.position if served is not None else 0,
                max_events_per_second=it.rate or 0,
                switch_asked=it.asked == Asked.SWITCH,
                drop_asked=it.asked == Asked.DROP,
                error=(other.error if other is not None else None) or it.error or "",
            )
            if it.began_at is not None:
                entry.began_at.FromDatetime(it.began_at)
            if it.comparison is not None:
                _fill_comparison(entry.comparison, it.comparison)
        known = self._served().keys()
        for view, row in sorted(rows.items()):
            if not is_other(view) and view not in known:
                state = self._generation_states["OTHER_VERSION"]
                answer.generations.add(view=view, state=state, position=row.position, error=row.error or "")
        return answer

    def _start_rebuild(self, call: Call) -> Any:
        view, check = self._view_of(call)
        most = call.request.max_events_per_second
        check.number("max_events_per_second", most, 0, _MOST_EVENTS_PER_SECOND)
        check.finish()
        if view not in self._served():
            raise NotFound("view", f"views/{view}")
        switch = call.request.switch_when_ready
        if not self._do(lambda it: request_rebuild(it, view, most or None, switch=switch)):
            description = "has another generation already: switch to it, or drop it first"
            raise PreconditionFailed([Violation(f"views/{view}", description, "GENERATION_EXISTS")])
        return self._empty["StartRebuild"]

    def _switch_generation(self, call: Call) -> Any:
        view, check = self._view_of(call)
        check.finish()
        state = self._do(lambda it: ask(it, view, Asked.SWITCH, _SWITCHABLE))
        if state is None:
            raise NotFound("generation", f"views/{view}/generation")
        if state not in _SWITCHABLE:
            description = f"is {state}: ask again when it is ready"
            raise PreconditionFailed([Violation(f"views/{view}/generation", description, "GENERATION_NOT_READY")])
        return self._empty["SwitchGeneration"]

    def _drop_generation(self, call: Call) -> Any:
        view, check = self._view_of(call)
        check.finish()
        is_ours = view in self._served()
        if not self._do(lambda it: ask(it, view, Asked.DROP) is not None if is_ours else drop_version(it, view)):
            raise NotFound("generation", f"views/{view}/generation")
        return self._empty["DropGeneration"]

    @staticmethod
    def _view_of(call: Call) -> tuple[str, Checker]:
        check = Checker()
        view: str = call.request.view
        if not view:
            check.wrong("view", "REQUIRED", "is required")
        elif len(view) > _LONGEST_NAME:
            check.wrong("view", "TOO_LONG", f"must have at most {_LONGEST_NAME} characters")
        return view, check

    def _rows(self) -> dict[str, Any]:
        """Of the views' table `projection`, by view. Raises Unavailable."""
        return {row.view: row for row in self._ask(lambda it: it.execute(_ROWS).all())}

    def _do(self, what: Callable[[Driver], T]) -> T:
        def with_driver(connection: Connection) -> T:
            with driver_of(connection) as driver:
                return what(driver)

        return self._ask(with_driver)

    def _ask(self, query: Callable[[Connection], T]) -> T:
        """Raises Unavailable."""
        try:
            return read_pooled(self._read, query)
        except SQLAlchemyError as error:
            if failure_of(error).query is not QueryAction.BUG:
                raise Unavailable("the read database is away", reason="STORE_UNAVAILABLE") from error
            raise

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


def _fill_comparison(entry: Any, found: Mapping[str, Any]) -> None:
    """found: a Comparison, as JSON."""
    entry.position, entry.row_count = found["position"], found["rows"]
    entry.changed_count, entry.missing_count, entry.added_count = found["changed"], found["missing"], found["added"]
    for it in found["examples"]:
        entry.examples.add(key=it["key"], served_position=it["served_at"] or 0, other_position=it["other_at"] or 0)
