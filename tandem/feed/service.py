"""FeedService: other services follow a domain's events. Read a follower's way from `subscribe` downward.

Followers at the feed's end are served from memory (tandem.feed.live). Followers that are behind read the database, a
bounded number at once. What they are sent is the same.
"""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, TypeVar

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message_factory import GetMessageClass
from prometheus_client import Counter
from pydantic import Field
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from tandem.feed.archive import Archive
from tandem.feed.envelope import ID
from tandem.feed.events import EventContract, FeedEvent
from tandem.feed.head import FeedHead, read_head, read_marked_head
from tandem.feed.live import Entry, EntryReader, LatestEntries, Live, another_feed, store_away
from tandem.feed.reader import BrokenOff, EventsArchived, EventsMissing, FeedPart, read_events
from tandem.feed.source import FeedSource
from tandem.feed.token import MalformedToken, Token, decode_token, encode_token
from tandem.runtime.call import UNCOUNTED, LocalCall, StreamCall, stopping_error
from tandem.runtime.checker import Checker, is_uuid
from tandem.runtime.database import create_database_engine, first_line, read_pooled
from tandem.runtime.errors import OutOfRange, TandemError, Unavailable
from tandem.runtime.server import Service
from tandem.runtime.settings import Block, DatabaseSettings
from tandem.runtime.telemetry import log
from tandem.runtime.worker import Worker, all_alike

SENT = Counter("tandem_feed_sent_events_total", "Events that followers were sent, by where they came from", ["source"])

MAX_FILTERS = 100
MAX_BATCH_EVENTS = 1000
DEFAULT_BATCH_EVENTS = 100
MIN_HEARTBEAT_SECONDS, MAX_HEARTBEAT_SECONDS = 1, 60
DEFAULT_HEARTBEAT_SECONDS = 15.0
# Clients take messages of 4 MiB unless they are told otherwise, and an event is far below the rest of that.
MAX_MESSAGE_BYTES = 1024 * 1024
# Rows that are looked through at once for the few that are wanted.
_SCAN = MAX_BATCH_EVENTS
# Where more followers catch up than there are threads for it, these take so much of a processor, all together: Python
# runs one thread at a time, and whoever calls meanwhile would wait for them at each step.
_CATCH_UP_SHARE = 0.5
# While a deployment is under way, a command server may be newer than this program: that is soon over.
_UNREADABLE_RETRY_SECONDS = 5.0

T = TypeVar("T")


class FeedServiceSettings(Block):
    """FeedService: other services that follow the events."""

    max_subscribers: int = Field(1000, ge=1, le=100_000, description="Streams at once; past it RESOURCE_EXHAUSTED")
    ring_events: int = Field(
        10_000, ge=1, le=1_000_000, description="Latest events kept in memory while somebody follows them"
    )
    ring_bytes: int = Field(16 * 1024 * 1024, ge=1024, description="Bytes that they may take; the oldest go first")
    catch_up_threads: int = Field(
        2, ge=1, le=64, description="Subscribers that are behind and read the database at once; a connection each"
    )


class FeedService:
    """A Component. Reads the write database and nothing else; each part has connections of its own."""

    def __init__(
        self,
        descriptor: ServiceDescriptor,
        contract: EventContract[Any],
        database: DatabaseSettings,
        settings: FeedServiceSettings,
        *,
        erased_kind: str,
        poll_seconds: float,
        archive: Archive,
    ) -> None:
        """descriptor: a service with GetHead and Subscribe, as commerce.feed.v1.FeedService has them.

        erased_kind: of the event with which a data subject is erased. poll_seconds: how soon a lost notification is
        made up for.
        """
        subscribe = descriptor.methods_by_name["Subscribe"].output_type
        self._head_response: Any = GetMessageClass(descriptor.methods_by_name["GetHead"].output_type)
        self._response: Any = GetMessageClass(subscribe)
        self._kinds = frozenset(contract.kinds)
        reader = EntryReader(contract, subscribe, erased_kind=erased_kind)
        source = FeedSource(database, contract, name="tandem-feed-tail", poll_seconds=poll_seconds, archive=archive)
        latest = LatestEntries(reader, settings.ring_events, settings.ring_bytes)
        self._reader = reader
        self._live = Live(source, reader, latest, settings.max_subscribers)
        self._history = History(database, contract, archive, reader, settings.catch_up_threads)
        # Two: the worker's, and the one that readiness asks on. Nobody who is behind is waited for here.
        self._heads = _engine(database, "tandem-feed-head", 2)
        self._head_worker = Worker("feed-head", [all_alike(self._get_head)], max_batch=1000, max_waiting=10_000)
        self.service = Service(
            descriptor, {"GetHead": self._head_worker}, {"Subscribe": self.subscribe}, ready=self._is_ready
        )

    async def start(self) -> None:
        await self._head_worker.start()

    async def stop(self) -> None:
        await self._live.stop()
        await self._history.stop()
        await self._head_worker.stop()
        self._heads.dispose()

    async def _is_ready(self) -> bool:
        return await asyncio.to_thread(self._has_feed)

    def _has_feed(self) -> bool:
        try:
            read_pooled(self._heads, read_head)
        except SQLAlchemyError as error:
            log.debug("the feed is not there", error=first_line(error))
            return False
        return True

    def _get_head(self) -> Any:
        head = _ask(self._heads, read_marked_head)
        return self._head_response(cursor=encode_token(head.epoch, head.position, head.mark), position=head.position)

    async def _head(self) -> FeedHead:
        """As GetHead finds it, for a stream. Those that ask during a read share the next. Raises Unavailable."""
        asked = LocalCall(UNCOUNTED, Empty(), seconds=LocalCall.longest_seconds)
        self._head_worker.put_all([asked])
        response = self._head_response.FromString(await asyncio.wrap_future(asked.future))
        cursor = decode_token(response.cursor)
        return FeedHead(cursor.epoch, cursor.position, cursor.mark)

    async def subscribe(self, request: Any, call: StreamCall) -> AsyncGenerator[bytes, None]:
        terms = check(request, self._kinds)
        wake = asyncio.Event()
        call.when_stopping(wake.set)
        self._live.add(wake)
        try:
            await self._until_live(wake, call)
            start = _first(terms.start, await self._head())
            if isinstance(terms.start, Token):
                await self._history.compare(start)
            epoch = start.epoch
            show = None if call.permission.sees_personal_data else self._reader.without_personal_data
            follower = Follower(self._history, self._live, start, terms.selection, show)
            due = 0.0
            while True:
                wake.clear()
                if call.stopping:
                    yield self._message(epoch, follower.no_events(), caught_up=False)
                    raise stopping_error()
                delivery, caught_up = await follower.next()
                if delivery.items or caught_up or time.monotonic() >= due:
                    yield self._message(epoch, delivery, caught_up=caught_up)
                    due = time.monotonic() + terms.heartbeat_seconds
                if follower.at_head:
                    # Until there is more, or it is time for a heartbeat.
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(max(0.0, due - time.monotonic())):
                            await wake.wait()
        finally:
            self._live.remove(wake)

    async def _until_live(self, wake: asyncio.Event, call: StreamCall) -> None:
        """Until the feed's end is followed: who then reads up to the head finds all that comes after it in memory."""
        while self._live.latest.epoch is None:
            self._live.check()
            if call.stopping:
                raise stopping_error()
            await wake.wait()
            wake.clear()

    def _message(self, epoch: uuid.UUID, delivery: "Delivery", *, caught_up: bool) -> bytes:
        """A SubscribeResponse, serialised."""
        rest = self._response(
            cursor=encode_token(epoch, delivery.position, delivery.mark),
            position=delivery.position,
            head_position=delivery.head,
            caught_up=caught_up,
        )
        return b"".join((*delivery.items, rest.SerializeToString()))


# What is asked for.


class Place(Enum):
    """Where to begin, other than after a cursor."""

    BEGINNING = auto()
    NOW = auto()


@dataclass(frozen=True)
class Selection:
    """Which events a follower wants: those that pass all filters; an empty one passes all. max_events: in a message."""

    kinds: frozenset[str] = frozenset()
    ids: frozenset[str] = frozenset()
    correlation_ids: frozenset[str] = frozenset()
    max_events: int = DEFAULT_BATCH_EVENTS


@dataclass(frozen=True)
class Terms:
    """A SubscribeRequest, checked. heartbeat_seconds: the time between messages while there are no events."""

    start: Token | Place
    selection: Selection
    heartbeat_seconds: float


def check(request: Any, kinds: frozenset[str]) -> Terms:
    """What makes a SubscribeRequest wrong in itself. kinds: of all events. Raises InvalidArgument."""
    checker = _SubscribeChecker()

    def filtered(field: str, read: Callable[[str], str | None], problem: str) -> frozenset[str]:
        return frozenset(checker.distinct(field, getattr(request, field), MAX_FILTERS, read, problem))

    terms = Terms(
        checker.start(request),
        Selection(
            filtered("event_types", lambda text: text if text in kinds else None, "is no type of event"),
            filtered("aggregate_ids", _id, "must be a UUID"),
            filtered(
                "correlation_ids",
                lambda text: text if ID.fullmatch(text) else None,
                "must be printable ASCII, 1 to 128 characters",
            ),
            checker.number("max_batch_events", request.max_batch_events or DEFAULT_BATCH_EVENTS, 1, MAX_BATCH_EVENTS),
        ),
        checker.heartbeat(request),
    )
    checker.finish()
    return terms


def _id(text: str) -> str | None:
    """As events have it."""
    return str(uuid.UUID(text)) if is_uuid(text) else None


class _SubscribeChecker(Checker):
    def start(self, request: Any) -> Token | Place:
        match which := request.WhichOneof("start"):
            case "from_beginning" | "from_now":
                if not getattr(request, which):
                    self.wrong(which, "INVALID", "must be true when set")
                return Place.BEGINNING if which == "from_beginning" else Place.NOW
            case "after_cursor":
                try:
                    return decode_token(request.after_cursor)
                except MalformedToken:
                    self.wrong("after_cursor", "MALFORMED", "must be the cursor of a message, or a consistency token")
            case _:
                self.wrong("start", "REQUIRED", "one of from_beginning, after_cursor and from_now is required")
        return Place.NOW

    def heartbeat(self, request: Any) -> float:
        if not request.HasField("heartbeat_interval"):
            return DEFAULT_HEARTBEAT_SECONDS
        value = request.heartbeat_interval
        seconds: float = value.seconds + value.nanos / 1e9
        if not MIN_HEARTBEAT_SECONDS <= seconds <= MAX_HEARTBEAT_SECONDS or not 0 <= value.nanos < 1_000_000_000:
            limits = f"{MIN_HEARTBEAT_SECONDS} to {MAX_HEARTBEAT_SECONDS} s"
            self.wrong("heartbeat_interval", "OUT_OF_RANGE", f"must be from {limits}")
        return seconds


def _first(start: Token | Place, head: FeedHead) -> Token:
    """Where to begin. Raises PreconditionFailed and OutOfRange."""
    match start:
        case Place.BEGINNING:
            return Token(head.epoch, 0)
        case Place.NOW:
            return Token(head.epoch, head.position, head.mark)
        case Token():
            if start.epoch != head.epoch:
                raise another_feed()
            if start.position > head.position:
                raise OutOfRange(
                    f"the feed is at position {head.position}, and the cursor beyond it",
                    reason="CURSOR_AHEAD",
                    metadata={"head_position": str(head.position)},
                )
            return start


# What is sent.


@dataclass(frozen=True)
class Delivery:
    """The events of one message, serialised. Up to `position`, all that are wanted are among them or were sent before.

    mark: of the event at `position`. head: the feed's last position as it was known then.
    """

    items: list[bytes]
    position: int
    mark: int
    head: int


class Follower:
    """Where a follower is. at: up to there it has got all that it wants. at_head: that was all there was."""

    def __init__(
        self,
        history: "History",
        live: Live,
        start: Token,
        selection: Selection,
        show: Callable[[Entry], Entry] | None = None,
    ) -> None:
        """show: what the follower may see of an event that has personal data; None for all of it."""
        self._show = show
        self._history = history
        self._live = live
        self._selection = selection
        self._rows = selection.max_events
        self._caught_up = False
        self.at = start
        self.at_head = False

    async def next(self) -> tuple[Delivery, bool]:
        """What follows, perhaps nothing, and whether the follower has caught up with it."""
        at, latest = self.at, self._live.latest
        self._live.check(at.epoch)
        if latest.covers(at.position):
            if at.contradicts(Token(at.epoch, at.position, latest.mark_at(at.position))):
                raise another_feed()
            entries = latest.after(at.position, _SCAN)
            delivery = deliver(entries, self._selection, after=at, head=latest.last, read=self._shown)
            SENT.labels("memory").inc(len(delivery.items))
        else:
            self._caught_up = False
            delivery = await self._history.read(at, self._selection, self._rows, self._shown)
            SENT.labels("database").inc(len(delivery.items))
            # Where few rows are wanted the next read looks through twice as many, else through those for one message.
            enough = 2 * len(delivery.items) >= self._selection.max_events
            self._rows = self._selection.max_events if enough else min(2 * self._rows, _SCAN)
        self.at = Token(at.epoch, delivery.position, delivery.mark)
        self.at_head = delivery.position >= delivery.head
        news = self.at_head and not self._caught_up
        self._caught_up |= self.at_head
        return delivery, news

    def _shown(self, entry: Entry) -> Entry:
        return entry if self._show is None or not entry.personal_of else self._show(entry)

    def no_events(self) -> Delivery:
        """Nothing but the cursor to go on from."""
        return Delivery([], self.at.position, self.at.mark, max(self.at.position, self._live.latest.last))


R = TypeVar("R", bound=FeedEvent | Entry)


def deliver(
    rows: Iterable[R], selection: Selection, *, after: Token, head: int, read: Callable[[R], Entry]
) -> Delivery:
    """The next message's events out of rows that follow `after` without a gap.

    `read` is called for as few rows as possible. Raises Unavailable when the first event that is wanted cannot be read.
    """
    items: list[bytes] = []
    size = 0
    position, mark = after.position, after.mark
    for row in rows:
        if len(items) == selection.max_events or size >= MAX_MESSAGE_BYTES:
            break
        if _may_be_wanted(row, selection):
            entry = read(row)
            if entry.unreadable:
                # Whether it is about what is wanted cannot be known.
                if items:
                    break
                raise Unavailable(
                    f"event {entry.position} cannot be read: {entry.unreadable}",
                    reason="EVENT_UNREADABLE",
                    retry_after=_UNREADABLE_RETRY_SECONDS,
                    metadata={"position": str(entry.position)},
                )
            if not selection.ids or not selection.ids.isdisjoint(entry.ids):
                items.append(entry.item)
                size += len(entry.item)
        position, mark = row.position, row.mark
    return Delivery(items, position, mark, max(head, position))


def _may_be_wanted(row: FeedEvent | Entry, selection: Selection) -> bool:
    """As far as its kind and its envelope say. One whose envelope cannot be read may be."""
    if selection.kinds and row.kind not in selection.kinds:
        return False
    if not selection.correlation_ids:
        return True
    correlation_id = row.correlation_id
    return correlation_id is None or correlation_id in selection.correlation_ids


# What is read from the database.


class History:
    """The feed for those who are behind: a bounded number at once, each a message at a time, on its own threads.

    Its methods are for the event loop. While others wait for a thread, one that has read rests: calls that come behind
    a thousand followers who begin anew are answered before these have read it all.
    """

    def __init__(
        self,
        database: DatabaseSettings,
        contract: EventContract[Any],
        archive: Archive,
        reader: EntryReader,
        threads: int,
    ) -> None:
        self._engine = _engine(database, "tandem-feed-history", threads)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="feed-history")
        self._free_threads = asyncio.Semaphore(threads)
        self._rests = threads / _CATCH_UP_SHARE - 1
        self._waiting = 0
        self._contract = contract
        self._archive = archive
        self._reader = reader

    async def stop(self) -> None:
        await asyncio.to_thread(self._threads.shutdown, wait=True, cancel_futures=True)
        self._engine.dispose()

    async def compare(self, cursor: Token) -> None:
        """With the history that is there: whoever is at the head reads nothing else of the database.

        Raises Unavailable and PreconditionFailed.
        """
        await self._run(lambda connection: self._read_events(connection, cursor, 0))

    async def read(self, after: Token, selection: Selection, rows: int, show: Callable[[Entry], Entry]) -> Delivery:
        """Out of the next `rows` events, as they are to be shown. Raises as `compare`, and OutOfRange."""

        def read(connection: Connection) -> Delivery:
            part = self._read_events(connection, after, rows)
            return deliver(
                part.events, selection, after=after, head=part.head, read=lambda it: show(self._reader.entry_of(it))
            )

        return await self._run(read)

    async def _run(self, query: Callable[[Connection], T]) -> T:
        self._waiting += 1
        try:
            await self._free_threads.acquire()
        finally:
            self._waiting -= 1
        spent = 0.0

        def timed() -> T:
            nonlocal spent
            began = time.thread_time()
            try:
                return _ask(self._engine, query)
            finally:
                spent = time.thread_time() - began

        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, timed)
        finally:
            self._free_thread_after(self._rests * spent if self._waiting else 0.0)

    def _free_thread_after(self, seconds: float) -> None:
        asyncio.get_running_loop().call_later(seconds, self._free_threads.release)

    def _read_events(self, connection: Connection, after: Token, rows: int) -> FeedPart:
        return _read_or_refuse(connection, self._contract, after, rows, self._archive)


def _read_or_refuse(
    connection: Connection, contract: EventContract[Any], after: Token, rows: int, archive: Archive
) -> FeedPart:
    """As read_events, with its errors as callers are told. Raises Unavailable, PreconditionFailed and OutOfRange."""
    try:
        return read_events(
            connection, contract, after.position, rows, epoch=after.epoch, mark=after.mark, archive=archive
        )
    except BrokenOff as error:
        raise refusal_of(error, after.epoch) from error


def refusal_of(error: BrokenOff, epoch: uuid.UUID) -> TandemError:
    """What a caller is told who reads a feed of this epoch that does not go on."""
    if not isinstance(error, EventsMissing):
        return another_feed()
    oldest = error.oldest - 1
    if error.dropped:
        where = "in an archive, which is not served here" if isinstance(error, EventsArchived) else "not kept any more"
        return OutOfRange(
            f"events up to position {oldest} are {where}",
            reason="CURSOR_EXPIRED",
            metadata={"oldest_cursor": encode_token(epoch, oldest)},
        )
    return Unavailable(
        str(error),
        reason="EVENTS_MISSING",
        retry_after=_UNREADABLE_RETRY_SECONDS,
        metadata={"position": str(error.after + 1)},
    )


def _engine(database: DatabaseSettings, name: str, size: int) -> Engine:
    return create_database_engine(database, name=name, pool_size=size, by_key=True, autocommit=True)


def _ask(engine: Engine, query: Callable[[Connection], T]) -> T:
    """Raises Unavailable when the database is away."""
    try:
        return read_pooled(engine, query)
    except SQLAlchemyError as error:
        log.warning("the feed cannot be read", error=first_line(error))
        raise store_away("the write database is away") from error
