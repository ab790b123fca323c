"""The feed's latest events, in memory, for all who follow the feed's end: they are read once for everybody.

`EntryReader` makes of a stored event what followers get. `LatestEntries` keeps the last of these, within bounds. `Live`
knows who follows, and reads for them.
"""

import asyncio
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from prometheus_client import Gauge

from tandem.feed.events import EventContract, FeedEvent
from tandem.feed.reader import BrokenOff, OtherEpoch
from tandem.feed.source import FeedSource
from tandem.internal.v1.stored_pb2 import Envelope
from tandem.runtime.errors import Overloaded, PreconditionFailed, Unavailable, Violation
from tandem.runtime.supervised import supervise
from tandem.runtime.telemetry import log

IN_MEMORY = Gauge("tandem_feed_events_in_memory", "Events of the feed that are kept in memory for those who follow it")

# What an entry takes beside its bytes: the objects, and some ids.
_ENTRY_BYTES = 600
# A follower whose connection breaks is back within seconds, and finds in memory what it missed.
_LINGER_SECONDS = 10.0
_TAIL_EVENTS = 500
# How often it is asked whether the feed is still the one that it was; and after a failure, whether it is back.
_LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Entry:
    """An event as followers get it.

    mark: its commit's, see FeedEvent.
    ids: what the event is about. item: the field `events` of a SubscribeResponse with this event, serialised.
    correlation_id: of its envelope, empty without one; None when the envelope cannot be read.
    personal_of: whose personal data is in it, empty for none. erases: whose personal data is erased with it.
    unreadable: why it cannot be sent; empty when it can.
    """

    position: int
    kind: str
    ids: frozenset[str] = frozenset()
    item: bytes = b""
    correlation_id: str | None = ""
    personal_of: str = ""
    erases: str = ""
    unreadable: str = ""
    mark: int = 0


class EntryReader:
    """Makes entries of stored events. What there is to know of the domain's events comes from their descriptors."""

    def __init__(self, contract: EventContract[Any], response: Descriptor, *, erased_kind: str) -> None:
        """response: SubscribeResponse. erased_kind: of the event with which a data subject is erased.

        Raises ValueError when that names no data subject.
        """
        if not contract.names_subject(erased_kind):
            raise ValueError(f"{erased_kind} is no event that names a data subject")
        self._contract = contract
        self._erased_kind = erased_kind
        self._response: Any = GetMessageClass(response)
        events = response.fields_by_name["events"].message_type
        assert events is not None, "a repeated message"
        self._item: Any = GetMessageClass(events)
        envelope = events.fields_by_name["envelope"].message_type
        assert envelope is not None, "a message"
        self._envelope_fields = [it.name for it in Envelope.DESCRIPTOR.fields if it.name in envelope.fields_by_name]
        self._id_fields = {kind: _id_fields(message) for kind, message in contract.messages.items()}

    def entry_of(self, stored: FeedEvent) -> Entry:
        """Never raises: an event that cannot be read concerns those alone who ask for it."""
        try:
            event, envelope = stored.event, stored.envelope
        except (DecodeError, ValueError) as error:
            problem = str(error) or type(error).__name__
            return self._unreadable(stored, problem)
        if self._contract.kind_in(event) != stored.kind:
            # A newer command server stored it. Where its personal data would be, if it has any, is not known here.
            problem = f"{stored.kind} is not known to this program"
            return self._unreadable(stored, problem)
        item = self._item(position=stored.position, type=stored.kind, event=event)
        if envelope is not None:
            for name in self._envelope_fields:
                setattr(item.envelope, name, getattr(envelope, name))
        return Entry(
            stored.position,
            stored.kind,
            self.ids_of(event),
            self._serialised(item),
            stored.correlation_id,
            personal_of=self._contract.subject_of(event) or "",
            erases=self._contract.subject_named_by(event) if stored.kind == self._erased_kind else "",
            mark=stored.mark,
        )

    def _unreadable(self, stored: FeedEvent, problem: str) -> Entry:
        correlation_id = stored.correlation_id
        return Entry(stored.position, stored.kind, correlation_id=correlation_id, unreadable=problem, mark=stored.mark)

    def without_personal_data(self, entry: Entry) -> Entry:
        [item] = self._response.FromString(entry.item).events
        self._contract.clear_personal(item.event)
        return replace(entry, item=self._serialised(item), personal_of="")

    def ids_of(self, event: Any) -> frozenset[str]:
        """The ids of all aggregates that the event names."""
        kind = self._contract.kind_in(event)
        if kind is None:
            return frozenset()
        message = getattr(event, kind)
        found: set[str] = set()
        for name, inner in self._id_fields[kind]:
            value = getattr(message, name)
            if inner:
                found.update([getattr(line, inner) for line in value])
            elif isinstance(value, str):
                found.add(value)
            else:
                found.update(value)
        return frozenset(found)

    def _serialised(self, item: Any) -> bytes:
        serialised: bytes = self._response(events=[item]).SerializeToString()
        return serialised


def _id_fields(message: Any) -> list[tuple[str, str]]:
    """What holds the ids in an event of a kind: its fields `…_id` and `…_ids`, with "", and those `…_id` of its lines.

    Each is a field and the field within its lines.
    """
    found: list[tuple[str, str]] = []
    for field in message.fields:
        if field.name.endswith(("_id", "_ids")):
            found.append((field.name, ""))
        elif field.message_type is not None and field.is_repeated:
            found += [(field.name, it.name) for it in field.message_type.fields if it.name.endswith("_id")]
    return found


class LatestEntries:
    """Entries `first` to `last` of a feed, without a gap, at most so many and so many bytes. For one thread.

    epoch: the feed's; None while nothing is known of it. last: the last position that was put in, or where it began.
    last_mark: of the event there.
    """

    def __init__(self, reader: EntryReader, max_events: int, max_bytes: int) -> None:
        self._reader = reader
        self._max_events = max_events
        self._max_bytes = max_bytes
        self.drop()

    def drop(self) -> None:
        self._entries: dict[int, Entry] = {}
        self._bytes = 0
        self.epoch: uuid.UUID | None = None
        self.first, self.last, self.last_mark = 1, 0, 0
        self._mark_before = 0

    def __len__(self) -> int:
        return len(self._entries)

    def covers(self, position: int) -> bool:
        """Whether all events after the position that are known are here."""
        return self.epoch is not None and position >= self.first - 1

    def mark_at(self, position: int) -> int:
        """Of the event at a position that is covered; 0 where it is not known."""
        if position == self.first - 1:
            return self._mark_before
        entry = self._entries.get(position)
        return 0 if entry is None else entry.mark

    def after(self, position: int, most: int) -> Iterator[Entry]:
        """At most so many of those that follow a position that is covered."""
        for wanted in range(position + 1, min(self.last, position + most) + 1):
            yield self._entries[wanted]

    def advance(self, epoch: uuid.UUID, after: int, entries: Sequence[Entry], *, mark: int = 0) -> None:
        """Puts in what follows position `after`, whose event has the mark. What does not end there is dropped."""
        if epoch != self.epoch or after != self.last:
            self.drop()
            self.epoch, self.first, self.last = epoch, after + 1, after
            self.last_mark = self._mark_before = mark
        for entry in entries:
            self._entries[entry.position] = entry
            self._bytes += _size(entry)
            self.last, self.last_mark = entry.position, entry.mark
        while len(self) > self._max_events or self._bytes > self._max_bytes:
            oldest = self._entries.pop(self.first)
            self._bytes -= _size(oldest)
            self._mark_before = oldest.mark
            self.first += 1
        if erased := {entry.erases for entry in entries if entry.erases}:
            self._erase(erased)

    def _erase(self, subjects: set[str]) -> None:
        """Whoever reads these events later must find what the database has of them."""
        for position, entry in self._entries.items():
            if entry.personal_of in subjects:
                blank = self._entries[position] = self._reader.without_personal_data(entry)
                self._bytes += _size(blank) - _size(entry)


def _size(entry: Entry) -> int:
    return len(entry.item) + _ENTRY_BYTES


class Live:
    """Who follows the feed's end, and the task that reads it for them into `latest`.

    All of it belongs to the event loop, and what waits for the database to a thread of its own. While nobody follows,
    nothing is read and there is no connection.
    """

    def __init__(self, source: FeedSource, reader: EntryReader, latest: LatestEntries, max_followers: int) -> None:
        self.latest = latest
        self._source = source
        self._reader = reader
        self._max_followers = max_followers
        self._wakes: set[asyncio.Event] = set()
        self._problem = ""
        self._task: asyncio.Task[None] | None = None
        self._ending: asyncio.TimerHandle | None = None
        self._thread = ThreadPoolExecutor(1, "feed-tail")
        self._stop = threading.Event()

    async def stop(self) -> None:
        self._stop.set()
        self._end()
        await asyncio.to_thread(self._thread.shutdown)

    def add(self, wake: asyncio.Event) -> None:
        """A follower comes; `wake` is set whenever there is more. Raises Overloaded."""
        if len(self._wakes) >= self._max_followers:
            raise Overloaded(f"more than {self._max_followers} subscribers", retry_after=1.0)
        self._wakes.add(wake)
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
        if self._task is None:
            self._task = asyncio.create_task(supervise("feed-tail", self._run))

    def remove(self, wake: asyncio.Event) -> None:
        self._wakes.discard(wake)
        if not self._wakes:
            self._ending = asyncio.get_running_loop().call_later(_LINGER_SECONDS, self._end)

    def check(self, epoch: uuid.UUID | None = None) -> None:
        """Raises Unavailable while the feed cannot be read, PreconditionFailed when it is not `epoch`'s any more."""
        if self._problem:
            raise store_away(self._problem)
        if epoch is not None and self.latest.epoch is not None and self.latest.epoch != epoch:
            raise another_feed()

    def _end(self) -> None:
        if self._task is None:
            return
        self._task.cancel()
        self._task = None
        # A connection that listens and is not read would fill PostgreSQL's queue of notifications.
        self._thread.submit(self._source.close)
        self.latest.drop()
        self._problem = ""
        IN_MEMORY.set(0)

    async def _run(self) -> None:
        while True:
            try:
                problem = await self._follow()
            except Exception:
                log.exception("following the feed failed, starting over")
                problem = "the feed could not be followed"
            # Those who follow are better off at another server.
            self._problem = problem
            self.latest.drop()
            self._wake_all()
            await asyncio.sleep(_LOOK_SECONDS)

    async def _follow(self) -> str:
        """Until the feed cannot be read; returns why."""
        on_thread = partial(asyncio.get_running_loop().run_in_executor, self._thread)
        more = True
        while (head := await on_thread(self._source.marked_head)) is not None:
            if head.epoch != self.latest.epoch:
                self._advance(head.epoch, head.position, (), mark=head.mark)
            look_at = time.monotonic() + _LOOK_SECONDS
            while time.monotonic() < look_at:
                try:
                    entries = await on_thread(self._read, head.epoch, self.latest.last, self.latest.last_mark, more)
                except OtherEpoch:
                    break
                except BrokenOff as error:
                    # What is in memory may be of a history that was lost. Those who follow come back with their
                    # cursors, and each cursor is compared with the feed.
                    log.error("the feed broke off", error=str(error))
                    return str(error)
                if entries is None:
                    return self._source.problem
                if more := bool(entries):
                    self._advance(head.epoch, self.latest.last, entries)
        return self._source.problem

    def _read(self, epoch: uuid.UUID, after: int, mark: int, at_once: bool) -> list[Entry] | None:
        """What follows a position, perhaps nothing; None while the feed cannot be read. Raises BrokenOff."""
        if not at_once:
            self._source.wait(self._stop)
        part = self._source.events(after, _TAIL_EVENTS, epoch, mark)
        return None if part is None else [self._reader.entry_of(it) for it in part.events]

    def _advance(self, epoch: uuid.UUID, after: int, entries: Sequence[Entry], *, mark: int = 0) -> None:
        self._problem = ""
        self.latest.advance(epoch, after, entries, mark=mark)
        IN_MEMORY.set(len(self.latest))
        self._wake_all()

    def _wake_all(self) -> None:
        for wake in self._wakes:
            wake.set()


def store_away(problem: str) -> Unavailable:
    return Unavailable(problem, reason="STORE_UNAVAILABLE")


def another_feed() -> PreconditionFailed:
    description = (
        "the cursor is of a history that the write database lost, in a failover or a restore: begin anew, with what"
        " is there now"
    )
    return PreconditionFailed([Violation("after_cursor", description, "TOKEN_EPOCH_MISMATCH")])
