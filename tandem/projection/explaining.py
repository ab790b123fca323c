"""Where a write is, and how a row came to be: ProjectionService's answers to an operator's questions.

`explain` says of one event what became of it in each view. `get_history` makes a row again from the feed, event by
event, beside the view: the projection's own rules say which events belong to it.
"""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from sqlalchemy import Connection, func, select, text
from sqlalchemy.exc import SQLAlchemyError

from tandem.feed.events import FeedEvent
from tandem.feed.head import FeedHead
from tandem.feed.live import another_feed, store_away
from tandem.feed.lookup import Lookup, NewLookups
from tandem.feed.reader import BrokenOff
from tandem.feed.service import refusal_of
from tandem.feed.token import MalformedToken, Token, decode_token
from tandem.internal.v1.stored_pb2 import Envelope
from tandem.projection.cache_writer import CacheWriter
from tandem.projection.changes import CannotApply
from tandem.projection.parking import fill_parked_key, find_lacking
from tandem.projection.projection import Projection, uuid_key
from tandem.projection.replay import Change, Replay
from tandem.projection.views import Progress, Views
from tandem.read_store.node import NodeError
from tandem.read_store.tables import ALL_NEWEST, change, parked
from tandem.runtime.call import Call, StreamCall, stopping_error
from tandem.runtime.checker import Checker
from tandem.runtime.database import create_database_engine, first_line
from tandem.runtime.errors import NotFound, OutOfRange, Overloaded, Unavailable
from tandem.runtime.inquiries import Inquiries, answer_by, of_database
from tandem.runtime.settings import DatabaseSettings
from tandem.runtime.telemetry import log
from tandem.runtime.worker import Worker, one_by_one

# Each looks through the feed, with a thread and a connection.
_HISTORIES = 4
_MOST_KEYS = 20
_MOST_KEY_CHARACTERS = 200
_POSITIONS = text(f"SELECT view, position, owner, error, parked FROM {ALL_NEWEST} AS p")  # noqa: S608 - a table of ours


class Explaining:
    """A Component. Reads both databases; a standby says the same, but for what only the projector of a view knows."""

    def __init__(
        self,
        descriptor: ServiceDescriptor,
        views: Views,
        progress: Progress,
        cache: CacheWriter,
        *,
        lookups: NewLookups,
        read_database: DatabaseSettings,
    ) -> None:
        """descriptor: a service with Explain and GetHistory, as commerce.projection.v1.ProjectionService has them."""
        self._explained: Any = GetMessageClass(descriptor.methods_by_name["Explain"].output_type)
        self._change: Any = GetMessageClass(descriptor.methods_by_name["GetHistory"].output_type)
        entry: Any = self._explained.DESCRIPTOR.fields_by_name["views"].message_type
        states = entry.fields_by_name["cached"].enum_type.values
        self._cached = {it.name.removeprefix("CACHED_STATE_"): it.number for it in states}
        self._views, self._progress, self._cache = views, progress, cache
        name = "tandem-projector-explaining"
        self._feed = lookups(name, 1 + _HISTORIES)
        self._read = create_database_engine(read_database, name=name, pool_size=1, by_key=True, autocommit=True)
        self._threads = ThreadPoolExecutor(_HISTORIES, "row-history")
        self._histories = 0
        self._ask_feed = Inquiries(self._feed.read, self._feed.what, at_once=1)
        self._ask_read = of_database(self._read, "read database", at_once=1)
        self.worker = Worker("explain", [one_by_one(self.explain)], max_batch=10, max_waiting=1000)

    async def start(self) -> None:
        await self.worker.start()

    async def stop(self) -> None:
        await self.worker.stop()
        await self._ask_feed.stop()
        await self._ask_read.stop()
        await asyncio.to_thread(self._threads.shutdown, wait=True, cancel_futures=True)
        await asyncio.to_thread(self._feed.close)
        self._read.dispose()

    # What became of an event.

    def explain(self, call: Call) -> Message:
        """Raises TandemError."""
        request: Any = call.request
        asked, until = _wanted(request), answer_by(call)
        wanted = self._ask_read.ask(partial(self._last_change, key=asked), until) if isinstance(asked, str) else asked
        head, event, stored_at = self._ask_feed.ask(lambda it: self._event_at(it, wanted), until)
        answer = self._explained(feed_head=head.position)
        if stored_at is not None:
            answer.stored_at.FromDatetime(stored_at)
        personal = call.permission.sees_personal_data and not request.without_personal_data
        self._fill(answer.event, event, personal=personal)
        try:
            views = self._ask_read.ask(lambda it: self._explained_views(it, event), until)
        except Unavailable as error:
            answer.unreachable.add(store=self._ask_read.what, problem=error.message)
        else:
            answer.views.extend(views)
        message: Message = answer
        return message

    def _last_change(self, connection: Connection, key: str) -> int:
        """The position of the last event that changed a row with this key, or waits for one that is parked."""
        own = {view: it.table for view, it in self._views.projections.items() if it.key_of is uuid_key}
        waiting = select(func.max(parked.c.position)).where(parked.c.view.in_(own), parked.c.key == uuid.UUID(key))
        queries = [*(select(it.c.position).where(it.c.key == uuid.UUID(key)) for it in own.values()), waiting]
        positions = [connection.execute(it).scalar_one_or_none() for it in queries]
        found: list[int] = [it for it in positions if it is not None]
        if not found:
            raise NotFound("row", f"rows/{key}")
        return max(found)

    def _event_at(self, feed: Lookup, wanted: int | Token) -> tuple[FeedHead, FeedEvent, datetime | None]:
        head = feed.head()
        token = wanted if isinstance(wanted, Token) else Token(head.epoch, wanted)
        if token.epoch != head.epoch:
            raise another_feed()
        if token.position > head.position:
            raise OutOfRange(
                f"the feed is at position {head.position}",
                reason="CURSOR_AHEAD",
                metadata={"head_position": str(head.position)},
            )
        if not token.position:
            raise NotFound("event", "events/0")
        try:
            event = feed.event(token.position, token.epoch)
        except BrokenOff as error:
            raise refusal_of(error, token.epoch) from error
        if token.contradicts(Token(token.epoch, event.position, event.mark)):
            raise another_feed()
        return head, event, feed.recorded_at(event.position)

    def _explained_views(self, connection: Connection, event: FeedEvent) -> Any:
        entries = self._explained().views
        rows = {row.view: row for row in connection.execute(_POSITIONS)}
        for view, projection in sorted(self._views.projections.items()):
            row = rows.get(view)
            position = row.position if row is not None else 0
            keys = _keys(projection, event)
            # Where the view has yet to come to the event, a row may lack an earlier one.
            is_looked_up = row is not None and row.parked and keys
            lacking = find_lacking(connection, view, keys, event.position, _MOST_KEYS) if is_looked_up else ()
            included = row is not None and position >= event.position and not lacking
            entry = entries.add(
                view=view,
                keys=[_name(projection, it) for it in keys[:_MOST_KEYS]],
                position=position,
                included=included,
                waiting_for="" if included else self._waits_for(row, view, event.position - 1 - position, lacking),
            )
            for it in lacking:
                fill_parked_key(entry.parked_keys.add(), it)
            if not included or not keys:
                continue
            written = connection.execute(_CHANGED_AT, {"view": view, "position": event.position}).scalar_one_or_none()
            if written is not None:
                entry.changed_at.FromDatetime(written)
            announced = self._progress.passed.announced_by(view, event.position)
            if announced is not None:
                entry.announced_by.FromDatetime(announced)
            entry.cached = self._cached[self._look(connection, projection, keys[0])]
        return entries

    def _waits_for(self, row: Any, view: str, before: int, lacking: Sequence[Any]) -> str:
        """before: how many events are before it; -1 where the view has passed it. lacking: the rows that are parked."""
        if row is None:
            return "a projector that makes the view"
        if before < 0:
            return "a redrive of what is parked"
        if row.error:
            return f"the view to go on, which it cannot: {row.error}"
        if row.owner is None:
            return "a projector that follows the view"
        state = self._progress.states[view]
        ahead = f"{before} events before it" if before > 0 else "the projector, whose next event it is"
        if lacking:
            ahead += ", and then a redrive of what is parked"
        return f"{ahead}, and the view waits: {state.error}" if state.error else ahead

    def _look(self, connection: Connection, projection: Projection, key: bytes) -> str:
        if projection.view not in self._views.cached:
            return "UNSPECIFIED"
        try:
            found = self._cache.look(projection.view, key)
        except (OSError, NodeError) as error:
            log.debug("a cache node does not answer an operator", error=str(error))
            return "UNSPECIFIED"
        if found is None:
            return "UNSPECIFIED"
        if found.fenced:
            return "FENCED"
        if found.value is None:
            return "ABSENT"
        table = projection.table
        value = connection.execute(
            select(table.c.value).where(table.c.key == uuid.UUID(bytes=key))
        ).scalar_one_or_none()
        return "CURRENT" if value == found.value else "OTHER"

    # How a row came to be.

    async def get_history(self, request: Any, call: StreamCall) -> AsyncGenerator[Any, None]:
        """Raises TandemError."""
        projection, key = self._row(request)
        if self._histories == _HISTORIES:
            raise Overloaded(f"{_HISTORIES} histories are being sent", retry_after=1.0)
        self._histories += 1
        try:
            head = await self._on_thread(lambda feed: feed.head())
            until = min(request.until_position or head.position, head.position)
            replay = Replay(self._views.contract, projection, frozenset([key]), epoch=head.epoch)
            last: Change | None = None
            while replay.position < until:
                for it in await self._on_thread(lambda feed: replay.advance_by_change(feed, until)):
                    last = it
                    if it.failed is not None or not request.last_only:
                        yield self._message(it, projection, until)
                    if it.failed is not None:
                        return
                if call.stopping:
                    raise stopping_error()
                yield self._change(position=replay.position, until_position=until)
            if request.last_only and last is not None:
                yield self._message(last, projection, until)
        finally:
            self._histories -= 1

    def _row(self, request: Any) -> tuple[Projection, bytes]:
        """Raises InvalidArgument."""
        checker = Checker()
        projection = self._views.projections.get(request.view)
        key = b""
        if projection is None:
            names = ", ".join(sorted(self._views.projections))
            checker.wrong("view", "INVALID" if request.view else "REQUIRED", f"must be one of {names}")
        if checker.text("key", request.key, _MOST_KEY_CHARACTERS, required=True) and projection is not None:
            try:
                key = projection.key_of(request.key)
            except ValueError:
                checker.wrong("key", "MALFORMED", f"is no key of {projection.view}")
        checker.finish()
        assert projection is not None, "checked"
        return projection, key

    async def _on_thread(self, query: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._ask, query)

    def _ask(self, query: Any) -> Any:
        """Of the feed. Raises TandemError."""
        try:
            return self._feed.read(query)
        except BrokenOff as error:
            raise refusal_of(error, uuid.UUID(int=0)) from error
        except CannotApply as error:
            raise Unavailable(str(error), reason="EVENT_UNREADABLE", retry_after=5.0) from error
        except SQLAlchemyError as error:
            log.warning("a history cannot be read", error=first_line(error))
            raise store_away("the write database is away") from error

    def _message(self, it: Change, projection: Projection, until: int) -> Any:
        answer = self._change(position=it.event.position, until_position=until)
        self._fill(answer.event, it.event, personal=True)
        if it.failed is not None:
            answer.problem = it.failed.error or ""
        elif it.row is not None:
            answer.row.Pack(projection.message.FromString(it.row.value))
        return answer

    def _fill(self, entry: Any, event: FeedEvent, *, personal: bool) -> None:
        """A RecordedEvent, whose event is the domain's message, or an Any with it. Raises Unavailable for an event that
        cannot be read.

        personal: whether the caller is to see what it tells of a person.
        """
        try:
            message, envelope, erased = event.event, event.envelope, event.is_unopened
        except (DecodeError, ValueError) as error:
            raise Unavailable(
                f"event {event.position} cannot be read: {error}", reason="EVENT_UNREADABLE", retry_after=5.0
            ) from error
        entry.position, entry.type, entry.personal_data_erased = event.position, event.kind, erased
        contract = self._views.contract
        if not personal and contract.subject_of(message) is not None:
            shown = contract.message()
            shown.CopyFrom(message)
            contract.clear_personal(shown)
            message = shown
        if isinstance(entry.event, AnyMessage):
            entry.event.Pack(message)
        else:
            entry.event.CopyFrom(message)
        if envelope is not None:
            for name in (it.name for it in Envelope.DESCRIPTOR.fields):
                setattr(entry.envelope, name, getattr(envelope, name))


def _wanted(request: Any) -> int | Token | str:
    """A position, a token, or a key. Raises InvalidArgument."""
    checker = Checker()
    wanted: int | Token | str = 0
    match request.WhichOneof("of"):
        case "position":
            wanted = request.position
        case "consistency_token":
            try:
                wanted = decode_token(request.consistency_token)
            except MalformedToken:
                checker.wrong("consistency_token", "MALFORMED", "must be the token of a receipt, or a cursor")
        case "key":
            checker.uuid("key", request.key)
            wanted = request.key
        case _:
            checker.wrong("of", "REQUIRED", "one of position, consistency_token and key is required")
    checker.finish()
    return wanted


def _keys(projection: Projection, event: FeedEvent) -> list[bytes]:
    """Of the rows that an event changes; none where that cannot be said."""
    if event.kind not in projection.rules:
        return []
    try:
        return list(projection.parts_of(event.kind, event.message))
    except (ArithmeticError, DecodeError, LookupError, ValueError) as error:
        log.debug("it is not known which rows an event changes", position=event.position, error=str(error))
        return []


def _name(projection: Projection, key: bytes) -> str:
    return str(uuid.UUID(bytes=key)) if projection.key_of is uuid_key else key.hex()


_CHANGED_AT = select(func.min(change.c.changed_at)).where(
    change.c.view == text(":view"), change.c.position == text(":position")
)
