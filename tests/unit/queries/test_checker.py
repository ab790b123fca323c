"""Every violated field is named; what is right comes back in the form that is used."""

import uuid
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from commerce.type.v1.consistency_pb2 import Consistency
from tandem.feed.token import Token, encode_token
from tandem.queries.checker import QueryChecker
from tandem.queries.freshness import Need, Wanted
from tandem.queries.page_token import FIRST_PAGE, decode_page_token, encode_page_token
from tandem.runtime.errors import InvalidArgument

ID = uuid.UUID("0190b5a2-7c1e-7d30-8a44-1f2e3d4c5b6a")
TOKEN = Token(ID, 42)


def violations(check: QueryChecker) -> dict[str, str]:
    with pytest.raises(InvalidArgument) as raised:
        check.finish()
    return {it.subject: it.kind for it in raised.value.violations}


@pytest.mark.parametrize("text", [str(ID), str(ID).upper()])
def test_a_uuid_is_taken_in_either_case(text: str) -> None:
    check = QueryChecker(2)

    assert check.key("order_id", text) == ID
    check.finish()


@pytest.mark.parametrize(
    "text", [ID.hex, f"{{{ID}}}", f"urn:uuid:{ID}", f"{ID}\n", "x", str(ID).replace("0", "\u0660")]
)
def test_other_forms_of_a_uuid_are_refused(text: str) -> None:
    check = QueryChecker(2)
    check.key("order_id", text)

    assert violations(check) == {"order_id": "MALFORMED"}


def test_every_bad_id_of_a_batch_is_named() -> None:
    check = QueryChecker(2)
    check.keys("order_ids", [str(ID), "x", "", str(ID).upper()])

    assert violations(check) == {
        "order_ids[1]": "MALFORMED",
        "order_ids[2]": "REQUIRED",
        "order_ids[3]": "DUPLICATE",
    }


@pytest.mark.parametrize("count", [0, 101])
def test_a_batch_holds_one_to_a_hundred_ids(count: int) -> None:
    check = QueryChecker(2)
    check.keys("order_ids", [str(uuid.UUID(int=number + 1)) for number in range(count)])

    assert violations(check) == {"order_ids": "OUT_OF_RANGE"}


def test_the_violations_of_all_fields_are_named_together() -> None:
    check = QueryChecker(2)
    check.key("customer_id", "")
    check.page_size(-1)
    check.page_token("nonsense", decode_page_token, "ListRecentOrders", "x")
    check.consistency(Consistency(at_least_as_fresh="nonsense", max_wait=Duration(seconds=61)))

    assert violations(check) == {
        "customer_id": "REQUIRED",
        "page_size": "OUT_OF_RANGE",
        "page_token": "MALFORMED",
        "consistency.at_least_as_fresh": "MALFORMED",
        "consistency.max_wait": "OUT_OF_RANGE",
    }


@pytest.mark.parametrize(("size", "rows"), [(0, 20), (1, 1), (100, 100)])
def test_a_page_is_twenty_rows_unless_told(size: int, rows: int) -> None:
    assert QueryChecker(2).page_size(size) == rows


def test_a_page_size_past_a_hundred_is_refused() -> None:
    check = QueryChecker(2)
    check.page_size(101)

    assert violations(check) == {"page_size": "OUT_OF_RANGE"}


def test_a_page_token_of_another_customer_is_refused() -> None:
    check = QueryChecker(2)
    theirs = encode_page_token(FIRST_PAGE, "ListRecentOrders", "theirs")
    check.page_token(theirs, decode_page_token, "ListRecentOrders", "mine")

    assert violations(check) == {"page_token": "MALFORMED"}


@pytest.mark.parametrize("consistency", [Consistency(), Consistency(minimize_latency=True)])
def test_nothing_is_needed_unless_told(consistency: Consistency) -> None:
    assert QueryChecker(2).consistency(consistency) == Need((), 2)


def test_a_token_and_a_wait_are_taken() -> None:
    text = encode_token(TOKEN.epoch, TOKEN.position)
    wait = Duration(seconds=1, nanos=500_000_000)

    assert QueryChecker(2).consistency(Consistency(at_least_as_fresh=text, max_wait=wait)) == Need(
        (Wanted(TOKEN, "consistency.at_least_as_fresh"),), 1.5
    )


@pytest.mark.parametrize(
    "wait", [Duration(seconds=-1), Duration(nanos=-1), Duration(seconds=60, nanos=1), Duration(nanos=1_000_000_000)]
)
def test_a_wait_outside_its_range_is_refused(wait: Duration) -> None:
    check = QueryChecker(2)
    check.consistency(Consistency(max_wait=wait))

    assert violations(check) == {"consistency.max_wait": "OUT_OF_RANGE"}


def test_fully_consistent_asks_for_all_writes_and_names_no_token() -> None:
    check = QueryChecker(2)

    assert check.consistency(Consistency(fully_consistent=True)) == Need((), 2, fully_consistent=True)
    check.finish()


@pytest.mark.parametrize("requirement", ["minimize_latency", "fully_consistent"])
def test_a_requirement_that_is_set_must_be_true(requirement: str) -> None:
    check = QueryChecker(2)
    check.consistency(Consistency(**{requirement: False}))  # type: ignore[arg-type]

    assert violations(check) == {f"consistency.{requirement}": "INVALID"}


OTHER_FEED = Token(uuid.UUID(int=7), 1)


def text_of(token: Token) -> str:
    return encode_token(token.epoch, token.position)


def needed(**fields: Any) -> Need:
    check = QueryChecker(2)
    need = check.consistency(Consistency(**fields))
    check.finish()
    return need


def test_of_several_tokens_of_one_feed_the_latest_is_wanted_and_known_by_its_field() -> None:
    tokens = [text_of(Token(ID, position)) for position in (7, 99, 98)]

    assert needed(tokens=tokens).wanted == (Wanted(Token(ID, 99), "consistency.tokens[1]"),)
    assert needed(at_least_as_fresh=text_of(TOKEN), tokens=tokens[:1]).wanted == (
        Wanted(TOKEN, "consistency.at_least_as_fresh"),
    )


def test_tokens_of_several_feeds_are_all_wanted() -> None:
    need = needed(at_least_as_fresh=text_of(TOKEN), tokens=[text_of(OTHER_FEED), text_of(TOKEN)])

    assert need.wanted == (
        Wanted(TOKEN, "consistency.at_least_as_fresh"),
        Wanted(OTHER_FEED, "consistency.tokens[0]"),
    )


def test_each_malformed_token_is_named() -> None:
    check = QueryChecker(2)
    check.consistency(Consistency(tokens=[text_of(TOKEN), "", "x"]))

    assert violations(check) == {"consistency.tokens[1]": "MALFORMED", "consistency.tokens[2]": "MALFORMED"}


def test_more_than_twenty_tokens_are_refused() -> None:
    assert len(needed(tokens=[text_of(TOKEN)] * 20).wanted) == 1
    check = QueryChecker(2)
    check.consistency(Consistency(tokens=[text_of(TOKEN)] * 21))

    assert violations(check) == {"consistency.tokens": "OUT_OF_RANGE"}


@pytest.mark.parametrize("requirement", ["minimize_latency", "fully_consistent"])
def test_tokens_beside_another_requirement_are_refused(requirement: str) -> None:
    check = QueryChecker(2)
    check.consistency(Consistency(**{requirement: True}, tokens=[text_of(TOKEN)]))  # type: ignore[arg-type]

    assert violations(check) == {"consistency.tokens": "INVALID"}


def test_a_watch_that_resumes_wants_what_it_has_shown_too() -> None:
    check = QueryChecker(2)

    assert check.resume_from(Need((), 2), "") == (Need((), 2), None)
    assert check.resume_from(Need((), 2), text_of(TOKEN)) == (Need((Wanted(TOKEN, "resume_from"),), 2), TOKEN)
    check.finish()
    check.resume_from(Need((), 2), "x")
    assert violations(check) == {"resume_from": "MALFORMED"}
