"""Queries for one row by its id: what they are made of, and how most of them are answered at once, from the cache.

On the native transport such a query rarely sees the event loop: `AtOnce` answers a batch of calls with one look into
the cache, on the thread that received them. `QueryServicer` answers whatever has to wait, is not cached, or is wrong.
"""

import re
from collections.abc import Sequence
from typing import Any

from google.protobuf.message import DecodeError, Message

from commerce.query.v1 import query_service_pb2 as queries
from query_server.cache import Cache
from query_server.encoding import EncodedField
from query_server.freshness import Announced, Freshness
from query_server.reader import count_reads
from query_server.validation import Checker
from query_server.views import as_of_text
from tandem.feed.token import Token
from tandem.read_store.tables import customer_profile, order_details, product_card, subscription_details
from tandem.runtime.errors import InvalidArgument

# Longer requests are for the method: what they hold must be looked at in peace.
_LONGEST_REQUEST = 512
_UUID = rb"([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"


class OneRow:
    """A query for one row: which view answers it, and how the response is put together."""

    def __init__(self, view: str, request: type[Message], response: type[Message], resource: str, field: str) -> None:
        self.view = view
        self.request = request
        self.resource = resource
        self.id_field = f"{resource}_id"
        self._value = EncodedField(response, field)
        self._as_of = EncodedField(response, "as_of")
        # A request that holds an id and nothing else, as most do, is known by its bytes.
        self._id_alone = re.compile(re.escape(EncodedField(request, self.id_field)(b"-" * 36)[:-36]) + _UUID)

    def response(self, value: bytes, as_of: bytes) -> bytes:
        """as_of: as `as_of` encodes it."""
        return self._value(value) + as_of

    def as_of(self, token: Token) -> bytes:
        return self._as_of(as_of_text(token))

    def id_alone(self, request: bytes) -> str | None:
        """The id in a request that holds nothing else, in hexadecimal digits; None for others."""
        found = self._id_alone.fullmatch(request)
        return found[1].decode().replace("-", "") if found else None


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
"""By RPC."""


class AtOnce:
    """The shortcut of a query for one row (tandem.runtime.rpc.AnswerAtOnce). For one thread at a time."""

    def __init__(self, query: OneRow, cache: Cache, freshness: Freshness) -> None:
        self._query = query
        self._cache = cache
        self._freshness = freshness
        self._announced: Announced | None = None
        self._as_of = b""

    def __call__(self, requests: Sequence[bytes]) -> list[bytes | None]:
        query = self._query
        # After the calls came and before the cache is read, as every cached answer.
        announced = self._freshness.announced(query.view)
        if announced is None or not announced.cache_epochs:
            return [None] * len(requests)
        rows = [query.id_alone(request) or self._id(request, announced) for request in requests]
        values = self._cache.look_up(
            query.view, announced.cache_epochs, {row for row in rows if row is not None}
        ).values
        if announced is not self._announced:
            self._announced, self._as_of = announced, query.as_of(announced.token)
        answers = [query.response(values[row], self._as_of) if row in values else None for row in rows]
        # What is missing is counted when the method looks for it.
        count_reads(query.view, hit=len(answers) - answers.count(None))
        return answers

    def _id(self, request: bytes, announced: Announced) -> str | None:
        """The id in hexadecimal digits, where the request is right and need not wait."""
        if len(request) > _LONGEST_REQUEST:
            return None
        try:
            message: Any = self._query.request.FromString(request)
            check = Checker(default_max_wait=0)
            key = check.uuid(self._query.id_field, getattr(message, self._query.id_field))
            need = check.consistency(message.consistency)
            check.finish()
        except (DecodeError, InvalidArgument):
            return None
        waits = need.fully_consistent or (need.token is not None and not announced.token.includes(need.token))
        return None if waits else key.hex
