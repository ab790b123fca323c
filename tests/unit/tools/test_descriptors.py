"""The comments of the contract are read strictly."""

import pytest

from tools.descriptors import ContractError, Failure, parse_errors


def test_codes_and_reasons_are_read_with_what_explains_them() -> None:
    text = (
        "NOT_FOUND when the order is not known; FAILED_PRECONDITION (OUT_OF_STOCK when fewer than 1,000 are left, "
        "STOCK_LIMIT); INTERNAL."
    )
    assert parse_errors("here", text) == (
        Failure("NOT_FOUND", "NOT_FOUND", "the order is not known"),
        Failure("FAILED_PRECONDITION", "OUT_OF_STOCK", "fewer than 1,000 are left"),
        Failure("FAILED_PRECONDITION", "STOCK_LIMIT"),
        Failure("INTERNAL", "INTERNAL"),
    )


def test_an_rpc_may_have_no_errors_of_its_own() -> None:
    assert parse_errors("here", "none of its own.") == ()


@pytest.mark.parametrize(
    "text",
    [
        "NOT_FOUND",
        "",
        "none.",
        "OK.",
        "not found.",
        "NO_SUCH_CODE.",
        "NOT_FOUND, INTERNAL.",
        "NOT_FOUND if the order is not known.",
        "FAILED_PRECONDITION ().",
        "FAILED_PRECONDITION (order not paid).",
        "FAILED_PRECONDITION (ORDER_NOT_PAID or so).",
        "FAILED_PRECONDITION (ORDER_NOT_PAID), see above.",
        "FAILED_PRECONDITION: ORDER_NOT_PAID.",
    ],
)
def test_what_is_not_as_the_rule_says_is_refused_with_the_rule(text: str) -> None:
    with pytest.raises(ContractError, match=r"(?s)^PayOrder: .+The comment of an RPC ends with"):
        parse_errors("PayOrder", text)
