"""A SubscribeRequest that is wrong names every wrong field."""

import uuid
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from commerce.feed.v1.feed_service_pb2 import SubscribeRequest
from shop.events import EVENTS
from tandem.feed.service import Place, Selection, Terms, check
from tandem.feed.token import Token, encode_token
from tandem.runtime.errors import InvalidArgument

ONE, TWO = (str(uuid.UUID(int=number)) for number in (0xA, 2))
KINDS = frozenset(EVENTS.kinds)
TOKEN = Token(uuid.uuid4(), 7)


def violations(**request: Any) -> dict[str, str]:
    with pytest.raises(InvalidArgument) as raised:
        check(SubscribeRequest(**request), KINDS)
    return {it.subject: it.kind for it in raised.value.violations}


@pytest.mark.parametrize(
    ("request_", "terms"),
    [
        ({"from_beginning": True}, Terms(Place.BEGINNING, Selection(max_events=100), 15.0)),
        ({"from_now": True}, Terms(Place.NOW, Selection(max_events=100), 15.0)),
        ({"after_cursor": encode_token(TOKEN.epoch, 7)}, Terms(TOKEN, Selection(max_events=100), 15.0)),
        (
            {
                "from_now": True,
                "event_types": ["order_paid", "order_placed"],
                "aggregate_ids": [ONE.upper(), TWO],
                "correlation_ids": ["import 7", "~" * 128],
                "max_batch_events": 1000,
                "heartbeat_interval": Duration(seconds=1, nanos=500_000_000),
            },
            Terms(
                Place.NOW,
                Selection(
                    frozenset({"order_paid", "order_placed"}),
                    frozenset({ONE, TWO}),
                    frozenset({"import 7", "~" * 128}),
                    max_events=1000,
                ),
                1.5,
            ),
        ),
    ],
    ids=["beginning", "now", "cursor", "all fields"],
)
def test_a_request_is_taken_as_it_is_meant(request_: dict[str, Any], terms: Terms) -> None:
    assert check(SubscribeRequest(**request_), KINDS) == terms


def test_all_types_and_a_hundred_ids_are_taken() -> None:
    ids = [str(uuid.uuid4()) for _ in range(100)]
    terms = check(SubscribeRequest(from_now=True, event_types=EVENTS.kinds, aggregate_ids=ids), KINDS)
    assert terms.selection.kinds == set(EVENTS.kinds)
    assert terms.selection.ids == set(ids)


def test_every_wrong_field_is_named() -> None:
    assert violations(
        event_types=["order_paid", "OrderPaid", "", "order_paid"],
        aggregate_ids=[ONE, "x", ONE.upper(), ""],
        correlation_ids=["import", "Import", "", "x" * 129, "é", "a\nb", "import"],
        max_batch_events=1001,
        heartbeat_interval=Duration(seconds=61),
    ) == {
        "start": "REQUIRED",
        "event_types[1]": "MALFORMED",
        "event_types[2]": "MALFORMED",
        "event_types[3]": "DUPLICATE",
        "aggregate_ids[1]": "MALFORMED",
        "aggregate_ids[2]": "DUPLICATE",
        "aggregate_ids[3]": "MALFORMED",
        "correlation_ids[2]": "MALFORMED",
        "correlation_ids[3]": "MALFORMED",
        "correlation_ids[4]": "MALFORMED",
        "correlation_ids[5]": "MALFORMED",
        "correlation_ids[6]": "DUPLICATE",
        "max_batch_events": "OUT_OF_RANGE",
        "heartbeat_interval": "OUT_OF_RANGE",
    }


@pytest.mark.parametrize(
    ("request_", "field", "kind"),
    [
        ({"from_beginning": False}, "from_beginning", "INVALID"),
        ({"from_now": False}, "from_now", "INVALID"),
        ({"after_cursor": ""}, "after_cursor", "MALFORMED"),
        ({"after_cursor": "7"}, "after_cursor", "MALFORMED"),
        ({"from_now": True, "max_batch_events": -1}, "max_batch_events", "OUT_OF_RANGE"),
        ({"from_now": True, "heartbeat_interval": Duration()}, "heartbeat_interval", "OUT_OF_RANGE"),
        (
            {"from_now": True, "heartbeat_interval": Duration(seconds=2, nanos=-1)},
            "heartbeat_interval",
            "OUT_OF_RANGE",
        ),
        (
            {"from_now": True, "aggregate_ids": [str(uuid.UUID(int=it)) for it in range(101)]},
            "aggregate_ids",
            "OUT_OF_RANGE",
        ),
        ({"from_now": True, "correlation_ids": map(str, range(101))}, "correlation_ids", "OUT_OF_RANGE"),
    ],
)
def test_a_wrong_field_is_named(request_: dict[str, Any], field: str, kind: str) -> None:
    assert violations(**request_) == {field: kind}
