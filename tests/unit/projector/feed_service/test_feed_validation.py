"""A SubscribeRequest that is wrong names every wrong field."""

import uuid
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from commerce.feed.v1.feed_service_pb2 import SubscribeRequest
from projector.feed_service.batch import Selection
from projector.feed_service.validation import Place, Wish, check
from shop.events import EVENTS
from tandem.feed.token import Token, encode_token
from tandem.runtime.errors import InvalidArgument

ONE, TWO = (str(uuid.UUID(int=number)) for number in (0xA, 2))
TOKEN = Token(uuid.uuid4(), 7)


def violations(**request: Any) -> dict[str, str]:
    with pytest.raises(InvalidArgument) as raised:
        check(SubscribeRequest(**request))
    return {it.subject: it.kind for it in raised.value.violations}


@pytest.mark.parametrize(
    ("request_", "wish"),
    [
        ({"from_beginning": True}, Wish(Place.BEGINNING, Selection(max_events=100), 15.0)),
        ({"from_now": True}, Wish(Place.NOW, Selection(max_events=100), 15.0)),
        ({"after_cursor": encode_token(TOKEN.epoch, 7)}, Wish(TOKEN, Selection(max_events=100), 15.0)),
        (
            {
                "from_now": True,
                "event_types": ["order_paid", "order_placed"],
                "aggregate_ids": [ONE.upper(), TWO],
                "max_batch_events": 1000,
                "heartbeat_interval": Duration(seconds=1, nanos=500_000_000),
            },
            Wish(Place.NOW, Selection(frozenset({"order_paid", "order_placed"}), frozenset({ONE, TWO}), 1000), 1.5),
        ),
    ],
    ids=["beginning", "now", "cursor", "all fields"],
)
def test_a_request_is_taken_as_it_is_meant(request_: dict[str, Any], wish: Wish) -> None:
    assert check(SubscribeRequest(**request_)) == wish


def test_all_types_and_a_hundred_ids_are_taken() -> None:
    ids = [str(uuid.uuid4()) for _ in range(100)]
    wish = check(SubscribeRequest(from_now=True, event_types=EVENTS.kinds, aggregate_ids=ids))
    assert wish.selection.kinds == set(EVENTS.kinds)
    assert wish.selection.ids == set(ids)


def test_every_wrong_field_is_named() -> None:
    assert violations(
        event_types=["order_paid", "OrderPaid", "", "order_paid"],
        aggregate_ids=[ONE, "x", ONE.upper(), ""],
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
    ],
)
def test_a_wrong_field_is_named(request_: dict[str, Any], field: str, kind: str) -> None:
    assert violations(**request_) == {field: kind}
