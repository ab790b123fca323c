"""Each answer that the contract allows has a size, and that is one that servers send and gRPC's clients take.

Rows are as large as the largest commands make them (tests/support/longest.py). All else of an answer is added up from
the descriptors: a field without a limit here is a test that fails.
"""

import html
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

import query_server.app
from command_server.app import DOMAIN
from commerce.projection.v1.projection_service_pb2 import ListParkedKeysResponse
from commerce.query.v1.query_service_pb2 import GetSalesSummaryResponse, SearchBoost, SearchProductsRequest
from query_server.sales import MAX_CURRENCIES, MAX_DAYS, MAX_TOP_PRODUCTS
from query_server.search.highlight import _SNIPPET
from query_server.search.page import MAX_SHOWN_ATTRIBUTES, MAX_SHOWN_VALUES
from query_server.search.request import _MAX_TOKEN, MAX_WORDS
from query_server.search.statements import MAX_FACETS, STEPS
from query_server.search.suggestions import MAX_SUGGESTIONS
from query_server.search.synonyms import MAX_SYNONYMS
from query_server.search.synonyms import MAX_WORDS as MAX_PHRASE
from shop.views import CACHED_VIEWS
from shop.words import MAX_WORD
from tandem.projection.changes import _LONGEST_ERROR
from tandem.projection.parked_keys import _MOST_ON_PAGE
from tandem.queries.checker import MAX_BATCH, MAX_PAGE_SIZE
from tandem.queries.encoding import room_for_rows
from tandem.queries.rows import ManyRows, queries_by_id
from tandem.runtime.settings import ServerSettings
from tests.support.longest import long_views, rule

RECEIVED_BYTES = 4 * 2**20
"""What gRPC's clients take, unless they are told otherwise."""
QUERIES = query_server.app.SERVICE
SENT_BYTES = ServerSettings(port=0).max_response_bytes
# The tag of a field, the length of one that has one (under two megabytes), and a number; a character in UTF-8.
TAG, LENGTH, NUMBER, CHARACTER = 2, 3, 10, 4
UUID = 36
MAX_QUERY = rule(SearchProductsRequest(), "query").max_length
NAME = 200 * CHARACTER
# Every second character is a word that is found, or every character is one that HTML escapes.
MARKS = max(len("<em></em>") // 2 + CHARACTER, len(html.escape("'"))) + 1
TEXTS = {
    "as_of": 100, "consistency_token": 100, "next_page_token": _MAX_TOKEN, "currency_code": 3, "date": 10, "key": UUID,
    "product_name": NAME, "category": 100 * CHARACTER, "corrected_query": 10 * MAX_QUERY * CHARACTER,
    "highlighted_name": NAME // CHARACTER * MARKS, "highlighted_description": _SNIPPET * MARKS + 8,
    "view": 63, "error": _LONGEST_ERROR * CHARACTER, "did_you_mean": 10 * MAX_QUERY * CHARACTER, "name": NAME,
    "value": NAME, "completed_queries": 2 * MAX_QUERY * CHARACTER, "word": MAX_WORD * CHARACTER,
    "taken_for": MAX_WORD * CHARACTER, "words": MAX_PHRASE * MAX_WORD * CHARACTER,
    "synonyms": MAX_PHRASE * MAX_WORD * CHARACTER,
}  # fmt: skip
"""The longest text of a field, in bytes. A view has the name of its table, which PostgreSQL keeps below 64."""
COUNTS = {
    "summaries": MAX_CURRENCIES, "days": MAX_DAYS, "top_products": MAX_TOP_PRODUCTS, "categories": MAX_FACETS,
    "prices": MAX_FACETS, "hits": MAX_PAGE_SIZE, "orders": MAX_PAGE_SIZE, "subscriptions": MAX_PAGE_SIZE,
    "customers": MAX_PAGE_SIZE,
    "order_details": MAX_BATCH, "products": MAX_BATCH, "parked_keys": _MOST_ON_PAGE,
    "attributes": MAX_SHOWN_ATTRIBUTES, "values": MAX_SHOWN_VALUES, "steps": len(STEPS),
    "parts": len(SearchBoost.keys()),
    "completed_queries": MAX_SUGGESTIONS, "words": MAX_WORDS, "taken_for": 20, "synonyms": MAX_SYNONYMS,
    **{f"{it}_order_ids": MAX_BATCH for it in ("missing", "parked", "remaining")},
    **{f"{it}_product_ids": MAX_BATCH for it in ("missing", "parked", "remaining")},
}  # fmt: skip
"""The most elements of a repeated field."""
# Those that end early are as large as the room that their rows have.
ENDS_EARLY = {"ListCustomers", "ListProducts", "ListOrders", "SearchProducts"}
END_EARLY = {it.name for it in queries_by_id(QUERIES, CACHED_VIEWS) if isinstance(it, ManyRows)} | ENDS_EARLY


@pytest.fixture(scope="module")
def rows() -> dict[str, int]:
    """By the name of the message that is a view's row."""
    views = {"ProductCard": "product_card", "OrderDetails": "order_details", "CustomerProfile": "customer_profile",
             "SubscriptionDetails": "subscription_details", "OrderSummary": "order_summary"}  # fmt: skip
    found = long_views(views.values())
    return {name: max(len(row.value) for row in found[view].values()) for name, view in views.items()}


def most_bytes(message: Descriptor, rows: dict[str, int]) -> int:
    size = 0
    for field in message.fields:
        count = COUNTS[field.name] if field.is_repeated else 1
        size += count * (TAG + most_of(field, rows))
    return size


def most_of(field: FieldDescriptor, rows: dict[str, int]) -> int:
    message = field.message_type
    if message is not None:
        return LENGTH + (rows[message.name] if message.name in rows else most_bytes(message, rows))
    if field.cpp_type != FieldDescriptor.CPPTYPE_STRING:
        return NUMBER
    return LENGTH + (UUID if field.name.endswith(("_id", "_ids")) else TEXTS[field.name])


@pytest.mark.parametrize(
    "method",
    [it for service in (DOMAIN.service, QUERIES) for it in service.methods if not it.server_streaming],
    ids=lambda it: it.name,
)
def test_what_the_contract_allows_is_sent_and_received(method: Any, rows: dict[str, int]) -> None:
    assert SENT_BYTES <= RECEIVED_BYTES
    if method.name not in END_EARLY:
        assert most_bytes(method.output_type, rows) < SENT_BYTES
    else:
        # The first row is sent whatever its size.
        assert max(rows.values()) < room_for_rows(SENT_BYTES)
        rest = most_bytes(method.output_type, rows | dict.fromkeys(rows, 0))
        assert room_for_rows(SENT_BYTES) + rest < SENT_BYTES


def test_the_limits_are_no_lower_than_they_must_be(rows: dict[str, int]) -> None:
    summary = most_bytes(GetSalesSummaryResponse.DESCRIPTOR, rows) / MAX_CURRENCIES
    assert summary * (MAX_CURRENCIES + 5) > SENT_BYTES
    assert max(rows.values()) * MAX_BATCH > SENT_BYTES, "else nothing would have to end early"


def test_a_page_of_rows_that_are_parked_is_sent_and_received(rows: dict[str, int]) -> None:
    assert most_bytes(ListParkedKeysResponse.DESCRIPTOR, rows) < SENT_BYTES
