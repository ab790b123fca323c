"""Queries for rows by id: from the cache, and from the database for what the cache lacks.

    GetOrderDetails ─▶ its worker: inline, one look into the cache for all calls of a batch ─▶ answered
                            │            ▲
                            ▼ misses     │ parked until a position is there, or the feed's head is read
                       the worker that reads the database: one statement a view, and fills the cache ─▶ answered

Which queries there are is read from the contract: a request of ids and a `consistency`, and a response that holds the
rows of one view.
"""

import uuid
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple

from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor, ServiceDescriptor
from prometheus_client import Counter

from tandem.feed.token import Token
from tandem.internal.v1.stored_pb2 import CacheEntry
from tandem.queries.cache import Cache, Resting
from tandem.queries.checker import MAX_BATCH, QueryChecker
from tandem.queries.damage import RowCheck
from tandem.queries.encoding import EncodedField, as_of_text, fitting, room_for_rows, view_of
from tandem.queries.fills import Fills
from tandem.queries.freshness import NOTHING_NEEDED, Announced, Asked, Fresh, Freshness, Need
from tandem.queries.owners import RowOwner, owner_field
from tandem.queries.parked import parked_among, parked_error, parked_fields, parked_refusal
from tandem.queries.settings import CacheSettings, ReaderSettings
from tandem.queries.store import BATCH_SIZE, Store
from tandem.read_store.cache import decode_entry
from tandem.runtime import audit
from tandem.runtime.call import Call, Stage
from tandem.runtime.errors import InvalidArgument, NotFound, TandemError, Unavailable
from tandem.runtime.worker import Worker

CACHE_READS = Counter(
    "tandem_cache_reads_total",
    "Views read by key: hit, miss, or bypass where the cache could not be asked",
    ["view", "result"],
)

# The receiving thread parses no longer request: others wait for it meanwhile.
_LONGEST_REQUEST = 4096
_UUID = b"00000000-0000-0000-0000-000000000000"
# A request's field of one id: its tag and its length take a byte each.
_ID_BYTES = len(_UUID) + 2
# Makes every id look like that one.
_SHAPE = bytes.maketrans(b"123456789abcdef", b"000000000000000")
_ENTRY_VALUE = EncodedField(CacheEntry, "value")


class ById:
    """A query for rows by their ids, as the contract describes it: which view answers, and what the messages hold."""

    def __init__(self, method: MethodDescriptor, owner: str | None = None) -> None:
        """owner: the field of a row that names its owner; None where rows have none."""
        fields = _ids_and_value(method)
        assert fields is not None, f"{method.name} asks for rows by their ids"
        ids, value = fields
        request, response = map(message_factory.GetMessageClass, (method.input_type, method.output_type))
        self.name = method.name
        self.response = response
        self.view = view_of(value)
        self.id_field = ids.name
        self.value = EncodedField(response, value.name)
        assert value.message_type is not None, "a row"
        row = message_factory.GetMessageClass(value.message_type)
        self.check = RowCheck(self.view, row)
        self._owner = None if owner is None else RowOwner(row, owner)
        self._as_of = EncodedField(response, "as_of")
        # An entry is a message of one field, its value. Under the same number, that is the response's field already.
        self._as_stored = self.value.tag == _ENTRY_VALUE.tag
        # A request that holds ids and nothing else, as most do, is known by its bytes.
        self._one_id = EncodedField(request, ids.name)(_UUID)
        before_id = self._one_id.removesuffix(_UUID)
        assert len(self._one_id) == _ID_BYTES
        assert not set(before_id) & set(b"-0123456789abcdef"), f"{ids.name} looks like a part of an id"
        self._before_id = before_id.decode("ascii")

    def may_see(self, call: Call, value: bytes) -> bool:
        """Whether a call may be shown a row. value: the response's field."""
        owner = call.permission.owner
        if owner is None:
            return True
        return self._owner is not None and self._owner.is_of(value, owner, self.value.start_of(value))

    def as_of(self, token: Token) -> bytes:
        return self._as_of(as_of_text(token))

    def value_of(self, entry: bytes | None) -> bytes | None:
        """The response's field out of a cache entry; None for a placeholder, and what is not one of ours."""
        if entry is None:
            return None
        if self._as_stored and _ENTRY_VALUE.encodes(entry):
            return entry
        value = decode_entry(entry)
        return None if value is None else self.value(value)


class OneRow(ById):
    def keys_alone(self, request: bytes) -> list[str] | None:
        """The id in a request that holds nothing else, in hexadecimal digits; None for others, which are parsed."""
        if len(request) != _ID_BYTES or request.translate(_SHAPE) != self._one_id:
            return None
        return [request[-len(_UUID) :].replace(b"-", b"").decode("ascii")]

    def keys(self, request: Any, check: QueryChecker) -> list[str]:
        """The id in any request; `check` collects what is wrong."""
        key: str = getattr(request, self.id_field)
        check.uuid(self.id_field, key)
        return [key.replace("-", "").lower()]

    def respond(
        self, call: Call, keys: Sequence[str], values: Mapping[str, bytes], as_of: Token, parked: Mapping[str, int]
    ) -> None:
        """values: the response's fields of the rows that exist, by key. parked: since when, by key."""
        [key] = keys
        if key in values:
            call.reply(values[key] + self.as_of(as_of) + parked_fields(self.response, parked_among(keys, parked)))
        elif key in parked:
            call.fail(parked_error(self.view, parked_among(keys, parked), key))
        else:
            resource = self.id_field.removesuffix("_id")
            call.fail(NotFound(resource, f"{resource}s/{uuid.UUID(key)}"))


class ManyRows(ById):
    def __init__(self, method: MethodDescriptor, owner: str | None = None) -> None:
        super().__init__(method, owner)
        self._missing = EncodedField(self.response, f"missing_{self.id_field}")
        self._parked = EncodedField(self.response, f"parked_{self.id_field}")
        self._remaining = EncodedField(self.response, f"remaining_{self.id_field}")

    def keys_alone(self, request: bytes) -> list[str] | None:
        """The ids in a request that holds nothing else, as OneRow has it; none of them twice, and not too many."""
        count = len(request) // _ID_BYTES
        if not 1 <= count <= MAX_BATCH or request.translate(_SHAPE) != self._one_id * count:
            return None
        keys = request.replace(b"-", b"").decode("ascii").split(self._before_id)[1:]
        return keys if len(set(keys)) == count else None

    def keys(self, request: Any, check: QueryChecker) -> list[str]:
        """As OneRow has it."""
        return [key.hex for key in check.keys(self.id_field, getattr(request, self.id_field))]

    def respond(
        self, call: Call, keys: Sequence[str], values: Mapping[str, bytes], as_of: Token, parked: Mapping[str, int]
    ) -> None:
        """As OneRow has it. Rows that the answer has no room for are named, with all that the request names behind."""
        shown = fitting([len(values.get(key, b"")) for key in keys], room_for_rows(call.method.max_response_bytes))
        found = [values[key] for key in keys[:shown] if key in values]
        if parked or len(found) < len(keys):
            # As the caller wrote them.
            ids = list(zip(getattr(call.request, self.id_field), keys, strict=True))
            answered = ids[:shown]
            found += [self._missing(it.encode()) for it, key in answered if key not in values and key not in parked]
            found += [self._parked(it.encode()) for it, key in answered if key in parked]
            found += [self._remaining(it.encode()) for it, _ in ids[shown:]]
            found.append(parked_fields(self.response, parked_among(keys[:shown], parked)))
        call.reply(b"".join([*found, self.as_of(as_of)]))


def queries_by_id(
    service: ServiceDescriptor, views: Collection[str], owners: Mapping[str, str] = MappingProxyType({})
) -> list[OneRow | ManyRows]:
    """The queries of a service that ask for rows of some views by their ids, and for nothing else.

    owners: the field of a row that names its owner, by view.
    """
    return [
        (ManyRows if fields.ids.is_repeated else OneRow)(method, owner_field(method, owners))
        for method in service.methods
        if (fields := _ids_and_value(method)) is not None and view_of(fields.value) in views
    ]


class _Fields(NamedTuple):
    ids: FieldDescriptor
    value: FieldDescriptor


def _ids_and_value(method: MethodDescriptor) -> _Fields | None:
    """The request's ids and the response's rows; None for another kind of query."""
    asked = [it for it in method.input_type.fields if it.name != "consistency"]
    values = [it for it in method.output_type.fields if it.message_type is not None]
    if len(asked) != 1 or len(values) != 1 or method.server_streaming:
        return None
    [ids], [value] = asked, values
    is_by_id = ids.name.endswith("_ids" if value.is_repeated else "_id") and ids.is_repeated == value.is_repeated
    return _Fields(ids, value) if is_by_id else None


class _AskedRows(Asked):
    """keys: of the rows that are wanted, in hexadecimal digits. cached: the response's fields of some of them, which
    include `cached_at`.
    """

    __slots__ = ("cached", "cached_at", "keys", "query")

    def __init__(self, home: Stage, query: OneRow | ManyRows, keys: list[str], need: Need) -> None:
        super().__init__(home, query.view, need)
        self.query = query
        self.keys = keys
        self.cached: Mapping[str, bytes] = {}
        self.cached_at: Token | None = None


class RowQueries:
    """Answers queries by id. `start` and `stop` make it a Component."""

    def __init__(
        self,
        queries: Sequence[OneRow | ManyRows],
        store: Store,
        freshness: Freshness,
        reader: ReaderSettings,
        cache: CacheSettings,
        *,
        primary: Store | None = None,
    ) -> None:
        """store: with a connection for each of the reader's threads. primary: where the store is a replica, which takes
        one more, as the primary does.
        """
        resting = Resting(cache.rest_seconds)
        self._caches: list[Cache] = []

        def new_cache() -> Cache:
            # A cache's connections are a thread's own.
            self._caches.append(Cache(cache, resting))
            return self._caches[-1]

        self._fills: Fills | None = None
        if primary is not None:
            together = max(1, cache.max_fills)
            self._fills = Fills(store, primary, Cache(cache, resting), freshness, together=together)
        stored = Worker(
            "rows",
            [_StoredRows(store, new_cache(), freshness, self._fills) for _ in range(reader.threads)],
            max_batch=reader.max_batch,
            max_waiting=reader.max_waiting,
            # One call may ask for many rows: the bytes of their ids count them.
            max_waiting_bytes=reader.max_waiting * _ID_BYTES,
        )
        self.workers: dict[str, Worker] = {}
        """By RPC."""
        for query in queries:
            kind = _CachedRow if isinstance(query, OneRow) else _CachedBatch
            made = [kind(query, new_cache(), freshness, stored) for _ in range(reader.threads + 1)]
            inline, *queued = made
            inline.is_inline = True
            worker = self.workers[query.name] = Worker(
                query.name, queued, max_batch=reader.max_batch, max_waiting=reader.max_waiting, inline=inline
            )
            for handler in made:
                handler.home = worker
        self._all = [stored, *self.workers.values()]

    async def start(self) -> None:
        if self._fills is not None:
            await self._fills.start()
        for worker in self._all:
            await worker.start()

    async def stop(self) -> None:
        for worker in reversed(self._all):
            await worker.stop()
        if self._fills is not None:
            await self._fills.stop()
        for it in self._caches:
            it.close()


class _CachedRows(ABC):
    """A handler: answers from the cache, with connections of its own, and sends on what it cannot answer."""

    is_inline = False
    """Whether it runs on the thread that receives calls."""
    home: Stage

    def __init__(self, query: OneRow | ManyRows, cache: Cache, freshness: Freshness, stored: Stage) -> None:
        self._query = query
        self._view = query.view
        self._cache = cache
        self._freshness = freshness
        self._stored = stored
        self._announced: Announced | None = None
        self._as_of = b""

    def __call__(self, calls: Sequence[Call]) -> None:
        # After the calls came and before the cache is read: what is announced by now is in the entries.
        announced = self._freshness.announced(self._view)
        if announced is not None and announced.cache_epochs:
            if announced is not self._announced:
                self._announced, self._as_of = announced, self._query.as_of(announced.token)
            wanted: list[tuple[Call, list[str]]] = []
            for call in calls:
                keys = self._query.keys_alone(call.payload) or self._keys_of(call, announced)
                if keys is not None:
                    wanted.append((call, keys))
            self._look_up(wanted, announced)
            return
        for call in calls:
            keys = self._keys_of(call, announced)
            if keys is not None:
                self._read_stored(call, keys)

    @abstractmethod
    def _look_up(self, wanted: Sequence[tuple[Call, list[str]]], announced: Announced) -> None:
        """wanted: calls that may be answered from the cache, each with its keys."""

    def _keys_of(self, call: Call, announced: Announced | None) -> list[str] | None:
        """What may be answered from the cache; None for a call that goes elsewhere, or is refused."""
        asked: _AskedRows | None = call.asked
        if asked is None:
            if self.is_inline and len(call.payload) > _LONGEST_REQUEST:
                call.next = self.home
                return None
            check = QueryChecker(self._freshness.default_max_wait)
            try:
                keys = self._query.keys(call.request, check)
                need = check.consistency(call.request.consistency)
                check.finish()
            except InvalidArgument as error:
                call.fail(error)
                return None
            call.asked = asked = _AskedRows(self.home, self._query, keys, need)
        verdict = self._freshness.admit(call, self._view, None if announced is None else announced.token)
        if verdict is Fresh.DATABASE:
            self._read_stored(call, asked.keys)
        return asked.keys if verdict is Fresh.NOW else None

    def _read_stored(self, call: Call, keys: Sequence[str]) -> None:
        """Sends a call to the database for all of its rows."""
        _count_reads(self._view, bypass=len(keys))
        self._send_on(call, keys, {}, None)

    def _send_on(self, call: Call, keys: Sequence[str], cached: Mapping[str, bytes], cached_at: Token | None) -> None:
        """Sends a call to the database for those of its rows that are not `cached`."""
        if call.asked is None:
            call.asked = _AskedRows(self.home, self._query, list(keys), NOTHING_NEEDED)
        call.asked.cached, call.asked.cached_at = cached, cached_at
        call.next = self._stored


class _CachedRow(_CachedRows):
    """One look into the cache for all calls."""

    def _look_up(self, wanted: Sequence[tuple[Call, list[str]]], announced: Announced) -> None:
        query, as_of = self._query, self._as_of
        rows = {key for _, [key] in wanted}
        entries, asked = self._cache.look_up(self._view, announced.cache_epochs, rows)
        hits = 0
        missed: set[str] = set()
        for call, [key] in wanted:
            value = query.value_of(entries.get(key))
            # Somebody else's is a miss: it takes the way, and the time, of what is not there.
            if value is not None and query.may_see(call, value):
                hits += 1
                call.reply(value + as_of)
            else:
                missed.add(key)
                self._send_on(call, [key], {}, None)
        bypassed = len(rows) - asked
        _count_reads(self._view, hit=hits, miss=len(missed) - bypassed, bypass=bypassed)


class _CachedBatch(_CachedRows):
    """A look into the cache for each call, which is answered before the next."""

    def _look_up(self, wanted: Sequence[tuple[Call, list[str]]], announced: Announced) -> None:
        query, as_of = self._query, self._as_of
        found = self._cache.look_up_each(self._view, announced.cache_epochs, [keys for _, keys in wanted])
        for (call, keys), (entries, asked) in zip(wanted, found, strict=True):
            cached = {
                key: value
                for key in keys
                if (value := query.value_of(entries.get(key))) is not None and query.may_see(call, value)
            }
            if len(cached) == len(keys):
                answer = b"".join([*cached.values(), as_of])
                if len(answer) <= room_for_rows(call.method.max_response_bytes):
                    call.reply(answer)
                else:
                    query.respond(call, keys, cached, announced.token, {})
            else:
                self._send_on(call, keys, cached, announced.token if cached else None)
            _count_reads(self._view, hit=len(cached), miss=asked - len(cached), bypass=len(keys) - asked)


class _StoredRows:
    """A handler: reads what the cache lacks from the database, and fills the cache, on connections of its own."""

    def __init__(self, store: Store, cache: Cache, freshness: Freshness, fills: Fills | None) -> None:
        """fills: fills the cache instead, where the store is a replica."""
        self._store = store
        self._cache = cache
        self._freshness = freshness
        self._fills = fills
        self._sizes = BATCH_SIZE.labels("database")

    def __call__(self, calls: Sequence[Call]) -> None:
        by_view: dict[str, list[Call]] = {}
        for call in calls:
            by_view.setdefault(call.asked.query.view, []).append(call)
        for view, of_view in by_view.items():
            try:
                self._answer(view, of_view)
            except TandemError as error:
                for call in of_view:
                    if call.code is None and call.next is None:
                        call.fail(error)

    def _answer(self, view: str, calls: Sequence[Call]) -> None:
        """Raises Unavailable."""
        wanted = dict.fromkeys([key for call in calls for key in call.asked.keys if key not in call.asked.cached])
        self._sizes.observe(len(wanted))
        rows, damaged, parked, as_of = self._read(view, list(wanted), calls[0].asked.query.check)
        again: list[Call] = []
        for_all = rows, damaged, parked
        for call in calls:
            asked: _AskedRows = call.asked
            if self._freshness.admit(call, view, as_of, final=True) is None:
                continue
            rows, damaged, parked = for_all if call.owner is None else _own(call, *for_all)
            failures = [damaged[key] for key in asked.keys if key in damaged]
            if failures:
                call.fail(failures[0])
                continue
            cached_at = asked.cached_at
            if cached_at is not None and (cached_at.epoch != as_of.epoch or as_of.is_made_anew_since(cached_at)):
                # No position includes both: of another feed, or of another generation of the view.
                asked.cached, asked.cached_at = {}, None
                again.append(call)
                continue
            values = {**asked.cached, **{key: asked.query.value(rows[key]) for key in asked.keys if key in rows}}
            includes_all = cached_at if cached_at is not None and as_of.includes(cached_at) else as_of
            of_call = parked_among(asked.keys, parked)
            if of_call.rows:
                first = min((key for key in asked.keys if key in parked), key=parked.__getitem__)
                refusal = parked_refusal(view, asked.need, as_of, of_call, first)
                if refusal is not None:
                    call.fail(refusal)
                    continue
                if of_call.since <= includes_all.position:
                    includes_all = of_call.shown_at(as_of)
            asked.query.respond(call, asked.keys, values, includes_all, parked)
        if again:
            self._answer(view, again)

    def _read(
        self, view: str, keys: list[str], check: RowCheck
    ) -> tuple[dict[str, bytes], dict[str, Unavailable], dict[str, int], Token]:
        """The rows that exist, by key; what to tell who wants one that is damaged; since when a row is parked; and the
        view's position.
        """
        announced = self._freshness.announced(view)
        epochs = announced.cache_epochs if announced is not None else {}
        # The leases first: a row that is written after it was read here ends its lease.
        leases = self._cache.lease(view, epochs, keys) if epochs and self._fills is None else {}
        rows, parked, as_of = self._store.rows(view, keys)
        damaged = {key: failure for key, value in rows.items() if (failure := check.failure(value, key)) is not None}
        for key in damaged:
            del rows[key]
        if self._fills is not None:
            if epochs:
                self._fills.want(view, [key for key in rows if key not in parked], check)
        # A database that lost commits in a failover is behind what was announced, and must not fill.
        elif announced is not None and as_of.includes(announced.token):
            # A row that is parked is never cached: who reads the cache could not tell.
            self._cache.fill(leases, {key: row for key, row in rows.items() if key not in parked} if parked else rows)
        return rows, damaged, parked, as_of


def _own(
    call: Call, rows: Mapping[str, bytes], damaged: Mapping[str, Unavailable], parked: Mapping[str, int]
) -> tuple[dict[str, bytes], dict[str, Unavailable], dict[str, int]]:
    """What of the rows is known to be the caller's: of all else nothing is said, as if it was not there."""
    query: OneRow | ManyRows = call.asked.query
    own = {key: rows[key] for key in call.asked.keys if key in rows and query.may_see(call, query.value(rows[key]))}
    for key in call.asked.keys:
        if (key in rows and key not in own) or key in damaged:
            audit.somebody_elses(call, query.name, f"the row {key}")
    known = own.keys() | call.asked.cached.keys()
    return own, {}, {key: since for key, since in parked.items() if key in known}


def _count_reads(view: str, **results: int) -> None:
    """results: how many keys were a hit, a miss, or a bypass."""
    for result, number in results.items():
        if number:
            _reads(view, result).inc(number)


@cache
def _reads(view: str, result: str) -> Counter:
    return CACHE_READS.labels(view, result)
