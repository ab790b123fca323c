"""Each repeated field and each text of a request has a limit, so that each request has.

A refusal of too many elements looks at none past the limit.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

import query_server.app
from command_server.app import DOMAIN
from commerce.audit.v1.audit_service_pb2 import DESCRIPTOR as AUDIT
from commerce.feed.v1.feed_service_pb2 import DESCRIPTOR as FEED
from commerce.projection.v1.projection_service_pb2 import DESCRIPTOR as PROJECTION
from query_server.app import LISTS
from query_server.sales import SalesQuery
from query_server.search.explanation import ExplainQuery
from query_server.search.query import SearchQuery
from query_server.search.request import search_key
from query_server.search.suggestions import suggest_key
from shop.events import EVENTS
from shop.views import CACHED_VIEWS
from tandem.feed.service import check as check_subscribe
from tandem.feed.verification import check as check_verify
from tandem.queries.checker import QueryChecker
from tandem.queries.freshness import NOTHING_NEEDED
from tandem.queries.pages import lists_of
from tandem.queries.rows import queries_by_id
from tandem.runtime.checker import MAX_VIOLATIONS
from tandem.runtime.errors import InvalidArgument, Violation
from tandem.runtime.field_checks import field_checks
from tandem.runtime.settings import ServerSettings
from tests.support.builders import command

MANY = 100_000
QUERIES = query_server.app.SERVICE
SERVICES = (
    DOMAIN.service,
    QUERIES,
    *FEED.services_by_name.values(),
    *PROJECTION.services_by_name.values(),
    *AUDIT.services_by_name.values(),
)
BY_ID = {it.name: it.keys for it in queries_by_id(QUERIES, CACHED_VIEWS)}
WANTED: dict[str, Callable[[Any, QueryChecker], object]] = {
    **BY_ID,
    **lists_of(QUERIES, LISTS),
    "SearchProducts": search_key,
    "SuggestProducts": suggest_key,
    "ExplainSearch": ExplainQuery(SearchQuery(Mock(), Mock(), Mock(), 1)).wanted,
    "GetSalesSummary": partial(SalesQuery.wanted, Mock()),
}


def repeated_in(message: Descriptor, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all repeated fields in a message and those that it holds."""
    for field in message.fields:
        path = (*above, field.name)
        if field.is_repeated:
            yield path
        if field.message_type is not None:
            yield from repeated_in(field.message_type, path)


FIELDS = [
    pytest.param(method, path, id=f"{method.name}.{'.'.join(path)}")
    for service in SERVICES
    for method in service.methods
    for path in repeated_in(method.input_type)
]


def check(service: str, method: str, request: Any) -> None:
    """As the service that takes the request does. Raises InvalidArgument."""
    if service == DOMAIN.service.name:
        command(request)
    elif service == QUERIES.name:
        checker = QueryChecker(2)
        field_checks(request.DESCRIPTOR).check(request, checker)
        if method in WANTED:
            WANTED[method](request, checker)
        else:
            assert method == "WatchOrderDetails"
            checker.key("order_id", request.order_id)
            checker.resume_from(NOTHING_NEEDED, request.resume_from)
        checker.consistency(request.consistency)
        checker.finish()
    elif method == "Verify":
        check_verify(request)
    else:
        assert method == "Subscribe", "whose requests are checked by"
        check_subscribe(request, frozenset(EVENTS.kinds))


@pytest.mark.parametrize(("method", "path"), FIELDS)
def test_each_repeated_field_has_a_limit(method: Any, path: tuple[str, ...]) -> None:
    request: Message = GetMessageClass(method.input_type)()
    *above, last = path
    holder: Any = request
    subject = ""
    for name in above:
        holder = getattr(holder, name)
        subject += f"{name}."
        if hasattr(holder, "add"):
            holder = holder.add()
            subject = f"{subject.removesuffix('.')}[0]."
    field = holder.DESCRIPTOR.fields_by_name[last]
    element: Any = "" if field.enum_type is None else 1
    if field.message_type is not None:
        element = GetMessageClass(field.message_type)()
    getattr(holder, last).extend([element] * MANY)
    with pytest.raises(InvalidArgument) as refused:
        check(method.containing_service.name, method.name, request)
    found = refused.value.violations
    assert (subject + last, "OUT_OF_RANGE") in {(it.subject, it.kind) for it in found}, "no limit is checked"
    assert len(found) <= MAX_VIOLATIONS + 1


def test_the_fields_are_found() -> None:
    assert len(FIELDS) > 15


# Texts that are of a form and have no length: ids, codes, tokens; and page tokens, the longest of which are a search's.
FORMED, PAGE_TOKEN = 100, 10_000
# A tag takes two bytes, a number ten, a length three. A character takes up to four.
TAG, NUMBER, LENGTH, CHARACTER = 2, 10, 3, 4


def violation_of(method: Any, path: tuple[FieldDescriptor, ...], values: Any) -> Violation:
    """Of the last field of the path, with this value, in an empty request."""
    holder: Any = GetMessageClass(method.input_type)()
    request, subject = holder, ""
    for field in path[:-1]:
        holder = getattr(holder, field.name)
        holder = holder.add() if field.is_repeated else holder
        subject += f"{field.name}[0]." if field.is_repeated else f"{field.name}."
    last = path[-1]
    if not last.is_repeated:
        setattr(holder, last.name, values[0])
    elif last.message_type is not None:
        getattr(holder, last.name).extend([GetMessageClass(last.message_type)()] * len(values))
    else:
        getattr(holder, last.name).extend(values)
    subjects = {subject + last.name, f"{subject}{last.name}[0]"}
    with pytest.raises(InvalidArgument) as refused:
        check(method.containing_service.name, method.name, request)
    found = [it for it in refused.value.violations if it.subject in subjects]
    assert found, f"{subject}{last.name} of {method.name} has no limit"
    return found[0]


def limit_in(violation: Violation) -> int:
    """What a refusal says that the most is."""
    return int(re.findall(r"(?:at most|to) ([0-9]+)", violation.description)[-1])


def most_bytes(method: Any, message: Descriptor, above: tuple[FieldDescriptor, ...] = ()) -> int:
    """Of a message in a request that is not refused."""
    size = 0
    for field in message.fields:
        path = (*above, field)
        if field.message_type is not None:
            one = LENGTH + most_bytes(method, field.message_type, path)
        elif field.name == "page_token":
            one = LENGTH + PAGE_TOKEN
        elif field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            refused = violation_of(method, path, ["x" * MANY])
            one = LENGTH + (CHARACTER * limit_in(refused) if refused.kind == "TOO_LONG" else FORMED)
        else:
            one = NUMBER
        count = limit_in(violation_of(method, path, [1 if one == NUMBER else ""] * MANY)) if field.is_repeated else 1
        size += count * (TAG + one)
    return size


def test_the_largest_request_of_the_contract_but_one_is_less_than_half_of_what_servers_take() -> None:
    sizes = {
        method.name: most_bytes(method, method.input_type)
        for service in SERVICES
        for method in service.methods
        if service.name != "ProjectionService"
    }
    most = ServerSettings(port=0).max_request_bytes
    # Ids and codes are counted as if they were of a hundred characters, which makes most of the difference.
    assert sizes.pop("ImportOrder") < most
    assert 2 * max(sizes.values()) < most, sizes
    assert max(sizes.values()) == sizes["AddProduct"] > sizes["SearchProducts"] > 100_000, sizes
