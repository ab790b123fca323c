"""ProjectionService: how far the views are. What operators ask of them is in files of its own."""

import asyncio
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass
from sqlalchemy import text

from tandem.feed.lookup import Lookup, NewLookups
from tandem.projection.cache_writer import CacheWriter
from tandem.projection.explaining import Explaining
from tandem.projection.generation_calls import GenerationCalls
from tandem.projection.lag import LagWatch
from tandem.projection.own_calls import OwnCalls
from tandem.projection.parked_keys import ParkedKeys
from tandem.projection.views import Progress, ViewState
from tandem.read_store.tables import ALL_NEWEST, READ, is_other
from tandem.runtime.call import Call
from tandem.runtime.database import create_database_engine
from tandem.runtime.errors import Unavailable
from tandem.runtime.inquiries import Inquiries, answer_by, of_database
from tandem.runtime.migrations import has_revision
from tandem.runtime.server import Service
from tandem.runtime.settings import DatabaseSettings
from tandem.runtime.telemetry import log
from tandem.runtime.worker import Worker, all_alike

# Questions to the read database: the workers', and one of health.
_AT_ONCE = 4
# Those that ask them, and the one that the server's readiness asks on.
_CONNECTIONS = _AT_ONCE + 1
# That ListProjections takes at most: `tandem status` waits 3 s for it. Half of it is for the read database.
_LIST_SECONDS = 2.5
# Also for a call whose deadline is nearer: others are answered with it.
_LEAST_SECONDS = 0.2
_ROWS = text(f"SELECT view, position, feed_epoch, error, parked FROM {ALL_NEWEST} AS p")  # noqa: S608 - a table of ours


class _Feed(NamedTuple):
    """epoch: None where the feed does not say it."""

    position: int
    epoch: uuid.UUID | None


class _Row(NamedTuple):
    """What is kept with a view. feed_epoch: None where the read database does not say it, and error with it."""

    position: int
    feed_epoch: uuid.UUID | None
    error: str | None
    parked: int


class ProjectionService:
    """A Component. It asks the databases, so that a standby says the same as the projector that holds the views."""

    def __init__(
        self,
        descriptor: ServiceDescriptor,
        progress: Progress,
        *,
        lookups: NewLookups,
        read_database: DatabaseSettings,
        explaining: Explaining,
        cache: CacheWriter,
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
        self._revision = revision
        name = "tandem-projector-status"
        self._feed = lookups(name, 1)
        self._read = create_database_engine(
            read_database, name=name, pool_size=_CONNECTIONS, by_key=True, autocommit=True
        )
        self._ask_feed = Inquiries(self._feed.read, self._feed.what, at_once=1)
        self._ask_read = of_database(self._read, "read database", at_once=_AT_ONCE)
        self._worker = Worker("projections", [self._answer_list], max_batch=1000, max_waiting=10_000)
        parked = ParkedKeys(descriptor, self._ask_read, self._served)
        self._operators = Worker("operators", [parked.handle], max_batch=10, max_waiting=1000)
        self._lag = LagWatch(progress, self._waiting_since)
        calls = GenerationCalls(descriptor, self._ask_read, self._served, self._head)
        self._generations = Worker("generations", [calls.handle], max_batch=10, max_waiting=1000)
        own = OwnCalls(descriptor, progress, cache)
        self._own = Worker("own", [own.handle], max_batch=10, max_waiting=1000)
        workers = {
            "ListProjections": self._worker,
            "Explain": explaining.worker,
            **dict.fromkeys(parked.rpcs, self._operators),
            **dict.fromkeys(calls.rpcs, self._generations),
            **dict.fromkeys(own.rpcs, self._own),
        }
        self.service = Service(
            descriptor,
            workers,
            {"GetHistory": explaining.get_history},
            ready=self._are_well,
            audited=True,
            # Its rows are made of it.
            personal_data=frozenset({"GetHistory"}),
        )

    async def start(self) -> None:
        await self._worker.start()
        await self._operators.start()
        await self._generations.start()
        await self._own.start()
        await self._lag.start()

    async def stop(self) -> None:
        await self._lag.stop()
        await self._own.stop()
        await self._generations.stop()
        await self._operators.stop()
        await self._worker.stop()
        await self._ask_read.stop()
        await self._ask_feed.stop()
        await asyncio.to_thread(self._feed.close)
        self._read.dispose()

    async def is_ready(self) -> bool:
        """Whether the read database answers, is migrated and takes writes."""
        return await asyncio.to_thread(has_revision, self._read, READ, self._revision, writing=True)

    async def _are_well(self) -> bool:
        """Whether the database can be asked, and no view stands, in whichever projector."""
        return await self.is_ready() and await asyncio.to_thread(self._no_view_stands)

    def _no_view_stands(self) -> bool:
        try:
            rows = self._rows(time.monotonic() + _LIST_SECONDS)
            return not any(row.error for view, row in rows.items() if view in self._served())
        except Unavailable as error:
            log.debug("the views cannot be asked", error=str(error))
            return False

    def _answer_list(self, calls: Sequence[Call]) -> None:
        now = time.monotonic()
        first = max(min(map(answer_by, calls)), now + _LEAST_SECONDS)
        all_alike(partial(self._list, now, min(first, now + _LIST_SECONDS)))(calls)

    def _list(self, now: float, until: float) -> Any:
        """now, until: on the clock of time.monotonic(). What is not known then is said to be so."""
        # States before positions: a failed view's position is committed before its state says so, and is to be seen
        # with it. Positions before the head: the other way round a view could seem to be ahead of its feed.
        states = self._served()
        unreachable: dict[str, str] = {}
        try:
            rows = self._rows((now + until) / 2)
        except Unavailable as silent:
            unreachable[self._ask_read.what] = silent.message
            rows = {view: _Row(it.position, None, None, it.parked) for view, it in states.items()}
        try:
            feed, waiting_since = self._feed_now({*(it.position for it in rows.values()), 0}, until)
        except Unavailable as silent:
            unreachable[self._ask_feed.what] = silent.message
            feed, waiting_since = _Feed(self._progress.head, None), {}
        problem = unreachable.get(self._ask_feed.what, "")
        head = feed.position
        answer = self._response(feed_head=head)
        for store, why in unreachable.items():
            answer.unreachable.add(store=store, problem=why)
        clock = datetime.now(UTC)
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
                lag_events=max(0, head - position) if row and _are_of_one(feed, row) else head,
                error=error,
                parked_keys=row.parked if row is not None else 0,
                differences=self._progress.differences[view],
            )
            if view in self._progress.compared_at:
                entry.audited_at.FromSeconds(int(self._progress.compared_at[view]))
            entry.lag.FromTimedelta(max(clock - since, timedelta()) if since else timedelta())
        return answer

    def _served(self) -> dict[str, ViewState]:
        """The views of this program, without their other generations."""
        return {view: state for view, state in self._progress.states.copy().items() if not is_other(view)}

    def _waiting_since(self) -> dict[str, datetime | None]:
        """For LagWatch."""
        until = time.monotonic() + _LIST_SECONDS
        rows = self._rows(until)
        feed, since = self._feed_now({0, *(row.position for row in rows.values())}, until)
        waiting = {}
        for view in self._served():
            row = rows.get(view)
            # Of a view of another epoch it is not known yet what it has of this one.
            position = row.position if row is not None and _are_of_one(feed, row) else 0
            waiting[view] = since.get(position)
        return waiting

    def _rows(self, until: float) -> "dict[str, _Row]":
        """Of the views' table `projection`, by view. Raises Unavailable."""
        found = self._ask_read.ask(lambda it: it.execute(_ROWS).all(), until)
        return {view: _Row(*rest) for view, *rest in found}

    def _head(self, until: float) -> int:
        """As far as it is known."""
        try:
            return self._feed_now(set(), until)[0].position
        except Unavailable:
            return self._progress.head

    def _feed_now(self, positions: set[int], until: float) -> tuple[_Feed, dict[int, datetime | None]]:
        """Where the feed is, and when the event after each of the views' positions was stored. Raises Unavailable."""

        def read(it: Lookup) -> tuple[_Feed, dict[int, datetime | None]]:
            head = it.head()
            since = {at: it.recorded_at(at + 1) for at in positions if at < head.position}
            return _Feed(head.position, head.epoch), since

        return self._ask_feed.ask(read, until)


def _are_of_one(feed: _Feed, row: _Row) -> bool:
    """Whether a view is of the feed that is there, as far as both are known."""
    return None in {feed.epoch, row.feed_epoch} or feed.epoch == row.feed_epoch
