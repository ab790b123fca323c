"""What the shop's client adds to the engine's: the types of the contract's lists, and its reasons."""

import inspect
import typing
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor

from commerce.query.v1 import query_service_pb2 as queries
from commerce.type.v1.error_reason_pb2 import ErrorReason
from shop import client
from shop.client import AsyncSession, Reason, Session, async_rows, rows
from tandem.client import errors
from tandem.client.errors import BY_CODE, BY_REASON, RuleBroken
from tools.descriptors import load_contract

IN_CONTRACT = {name.removeprefix("ERROR_REASON_") for name in dict(ErrorReason.items())} - {"UNSPECIFIED"}
LISTS = {
    method.name: (method.input_type.name, method.output_type.name, method.output_type.fields_by_number[1])
    for method in queries.DESCRIPTOR.services_by_name["QueryService"].methods
    if "page_token" in method.input_type.fields_by_name or method.name.startswith("BatchGet")
}


def test_every_reason_of_the_contract_is_known() -> None:
    assert {reason.value for reason in Reason} == IN_CONTRACT
    assert set(BY_REASON) <= IN_CONTRACT


@pytest.mark.parametrize("reason", sorted(IN_CONTRACT))
def test_a_reasons_error_is_the_one_of_the_codes_that_the_contract_gives_it(reason: str) -> None:
    codes = load_contract().codes_of(reason)
    assert codes
    for code in codes:
        general = BY_CODE.get(grpc.StatusCode[code])
        kind = BY_REASON.get(reason) or BY_CODE[grpc.StatusCode[code]]
        # What is no business rule stands beside RuleBroken, not below it.
        if general not in (None, RuleBroken):
            assert issubclass(kind, general)
        assert f"{code} " in (errors.__doc__ or "").split(kind.__name__, 1)[1].split("\n", 1)[0]


@pytest.mark.parametrize("function", [rows, async_rows], ids=["rows", "async_rows"])
def test_every_list_of_the_contract_has_rows_with_a_type(function: Callable[..., Any]) -> None:
    assert len(LISTS) >= 5
    found = {}
    for overload in typing.get_overloads(function):
        signature = inspect.signature(overload)
        [asked], answered = typing.get_args(signature.parameters["call"].annotation)
        response = typing.get_args(answered)[0] if function is async_rows else answered
        assert signature.parameters["request"].annotation is asked
        iterator = signature.return_annotation
        assert typing.get_origin(iterator) is (AsyncIterator if function is async_rows else Iterator)
        found[asked.DESCRIPTOR.name] = (response.DESCRIPTOR.name, typing.get_args(iterator)[0].DESCRIPTOR.name)
    assert found == {request: (response, row_of(first)) for request, response, first in LISTS.values()}


def row_of(field: FieldDescriptor) -> str:
    assert field.message_type is not None
    return field.message_type.name


def test_the_first_field_of_every_page_is_its_list() -> None:
    assert [name for name, (_, _, first) in LISTS.items() if not first.is_repeated] == []


def test_the_modules_own_example_names_what_there_is() -> None:
    assert "rows(session.queries.ListRecentOrders, ListRecentOrdersRequest(" in (client.__doc__ or "")
    assert "ListRecentOrders" in LISTS


@pytest.mark.parametrize("kind", [Session, AsyncSession])
def test_a_session_has_the_services_that_its_class_declares_and_no_other(kind: type[Any]) -> None:
    assert kind.services() == {"commands": "CommandService", "queries": "QueryService", "feed": "FeedService"}
    with pytest.raises(TypeError, match="no service orders"):
        kind(orders=None)
