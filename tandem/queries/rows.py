"""Queries for rows by id: what they are made of, and how most of them are answered at once, from the cache.

On the native transport such a query rarely sees the event loop: a shortcut answers a batch of calls with one look into
the cache, on the thread that received them. `QueryServicer` answers whatever has to wait, is not cached, or is wrong.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from google.protobuf.message import DecodeError, Message

from commerce.query.v1 import query_service_pb2 as queries
from query_server.cache import Cache, entry_value
from query_server.encoding import EncodedField
from query_server.freshness import Announced, Freshness
from query_server.reader import count_reads
from query_server.validation import MAX_BATCH, Checker
from query_server.views import as_of_text
from shop.views import customer_profile, order_details, product_card, subscription_details
from tandem.feed.token import Token
from tandem.internal.v1.stored_pb2 import CacheEntry
from tandem.runtime.errors import InvalidArgument

# Longer requests are for the method: what they hold must be looked at in peace.
_LONGEST_REQUEST = 4096
_UUID = b"00000000-0000-0000-0000-000000000000"
# Makes every id look like that one.
_SHAPE = bytes.maketrans(b"123456789abcdef", b"000000000000000")
_ENTRY_VALUE = EncodedField(CacheEntry, "value")


class ById(ABC):
    """A query for rows by their ids: which view answers it, and how the request and the response are put together."""

    def __init__(self, view: str, request: type[Message], response: type[Message], id_field: str, field: str) -> None:
        self.view = view
        self.request = request
        self.id_field = id_field
        self.value = EncodedField(response, field)
        self._as_of = EncodedField(response, "as_of")
        # An entry is a message of one field, its value. Under the same number, that is the response's field already.
        self._as_stored = self.value.tag == _ENTRY_VALUE.tag
        # A request that holds ids and nothing else, as most do, is known by its bytes.
        self._one_id = EncodedField(request, id_field)(_UUID)
        before_id = self._one_id.removesuffix(_UUID)
        assert not set(before_id) & set(b"-0123456789abcdef"), f"{id_field} looks like a part of an id"
        self._before_id = before_id.decode("ascii")

    def as_of(self, token: Token) -> bytes:
        return self._as_of(as_of_text(token))

    def value_of(self, entry: bytes | None) -> bytes | None:
        """The response's field out of a cache entry; None for a placeholder, and what is not one of ours."""
        if entry is None:
            return None
        if self._as_stored and _ENTRY_VALUE.encodes(entry):
            return entry
        value = entry_value(entry)
        return None if value is None else self.value(value)

    def ids_alone(self, request: bytes) -> list[str] | None:
        """The ids in a request that holds nothing else, in hexadecimal digits; None for others."""
        if not request or request.translate(_SHAPE) != self._one_id * (len(request) // len(self._one_id)):
            return None
        return request.replace(b"-", b"").decode("ascii").split(self._before_id)[1:]

    @abstractmethod
    def check_ids(self, message: Any, check: Checker) -> list[str]:
        """The ids of any request, in hexadecimal digits; `check` is told what is wrong."""


class OneRow(ById):
    def __init__(self, view: str, request: type[Message], response: type[Message], resource: str, field: str) -> None:
        super().__init__(view, request, response, f"{resource}_id", field)
        self.resource = resource

    def check_ids(self, message: Any, check: Checker) -> list[str]:
        return [check.uuid(self.id_field, getattr(message, self.id_field)).hex]


class ManyRows(ById):
    def __init__(self, view: str, request: type[Message], response: type[Message], ids_field: str, field: str) -> None:
        super().__init__(view, request, response, ids_field, field)
        self.missing = EncodedField(response, f"missing_{ids_field}")

    def check_ids(self, message: Any, check: Checker) -> list[str]:
        return [key.hex for key in check.uuids(self.id_field, getattr(message, self.id_field))]


ONE_ROW = {
    "GetOrderDetails": OneRow(
        order_details.name, queries.GetOrderDetailsRequest, queries.GetOrderDetailsResponse, "order", "order_details"
    ),
    "GetProduct": OneRow(
        product_card.name, queries.GetProductRequest, queries.GetProductResponse, "product", "product"
    ),
    "GetCustomer": OneRow(
        customer_profile.name, queries.GetCustomerRequest, queries.GetCustomerResponse, "customer", "customer"
    ),
    "GetSubscription": OneRow(
        subscription_details.name,
        queries.GetSubscriptionRequest,
        queries.GetSubscriptionResponse,
        "subscription",
        "subscription",
    ),
}
MANY_ROWS = {
    "BatchGetOrderDetails": ManyRows(
        order_details.name,
        queries.BatchGetOrderDetailsRequest,
        queries.BatchGetOrderDetailsResponse,
        "order_ids",
        "order_details",
    ),
    "BatchGetProducts": ManyRows(
        product_card.name,
        queries.BatchGetProductsRequest,
        queries.BatchGetProductsResponse,
        "product_ids",
        "products",
    ),
}
"""By RPC, as ONE_ROW."""

Q = TypeVar("Q", bound=ById)


class _AtOnce(ABC, Generic[Q]):
    """A shortcut (tandem.runtime.calls.AnswerAtOnce). For one thread at a time."""

    def __init__(self, query: Q, cache: Cache, freshness: Freshness) -> None:
        self._query = query
        self._cache = cache
        self._freshness = freshness
        self._announced: Announced | None = None
        self._as_of = b""

    def __call__(self, requests: Sequence[bytes]) -> Iterator[bytes | None]:
        # After the calls came and before the cache is read, as for every cached answer.
        announced = self._freshness.announced(self._query.view)
        if announced is None or not announced.cache_epochs:
            return iter([None] * len(requests))
        if announced is not self._announced:
            self._announced, self._as_of = announced, self._query.as_of(announced.token)
        return self._answers(requests, announced)

    @abstractmethod
    def _answers(self, requests: Sequence[bytes], announced: Announced) -> Iterator[bytes | None]: ...

    def _ids(self, request: bytes, announced: Announced) -> list[str] | None:
        """The ids in hexadecimal digits, where the request is right and need not wait."""
        if len(request) > _LONGEST_REQUEST:
            return None
        try:
            message: Any = self._query.request.FromString(request)
            check = Checker(default_max_wait=0)
            rows = self._query.check_ids(message, check)
            need = check.consistency(message.consistency)
            check.finish()
        except (DecodeError, InvalidArgument):
            return None
        waits = need.fully_consistent or (need.token is not None and not announced.token.includes(need.token))
        return None if waits else rows


class OneAtOnce(_AtOnce[OneRow]):
    """One look into the cache for all calls."""

    def _answers(self, requests: Sequence[bytes], announced: Announced) -> Iterator[bytes | None]:
        query, as_of = self._query, self._as_of
        rows = []
        for request in requests:
            ids = query.ids_alone(request) or self._ids(request, announced)
            # Several times the same field is right, and the last one counts.
            rows.append(ids[-1] if ids else None)
        wanted = {row for row in rows if row is not None}
        entries = self._cache.look_up(query.view, announced.cache_epochs, wanted).entries
        hits = 0
        for row in rows:
            value = query.value_of(entries.get(row)) if row is not None else None
            hits += value is not None
            yield None if value is None else value + as_of
        # What is missing is counted when the method looks for it.
        count_reads(query.view, hit=hits)


class ManyAtOnce(_AtOnce[ManyRows]):
    """A look into the cache for each call, which is answered before the next. The method looks for missing rows."""

    def _answers(self, requests: Sequence[bytes], announced: Announced) -> Iterator[bytes | None]:
        wanted = [self._rows(it, announced) for it in requests]
        asked = [rows for rows in wanted if rows is not None]
        found = self._cache.look_up_each(self._query.view, announced.cache_epochs, asked)
        for rows in wanted:
            yield None if rows is None else self._answer(rows, next(found).entries)

    def _rows(self, request: bytes, announced: Announced) -> list[str] | None:
        """As `_ids`; none of them twice."""
        rows = self._query.ids_alone(request)
        if rows is None or len(set(rows)) != len(rows) or len(rows) > MAX_BATCH:
            # More than ids, or wrong.
            rows = self._ids(request, announced)
        return rows

    def _answer(self, rows: Sequence[str], entries: Mapping[str, bytes]) -> bytes | None:
        values = [value for row in rows if (value := self._query.value_of(entries.get(row))) is not None]
        if len(values) < len(rows):
            return None
        count_reads(self._query.view, hit=len(values))
        return b"".join([*values, self._as_of])
