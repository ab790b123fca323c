"""Each repeated field of a request has a limit, and a refusal of too many elements looks at none past it."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

import query_server.app
from command_server.app import DOMAIN
from commerce.audit.v1.audit_service_pb2 import DESCRIPTOR as AUDIT
from commerce.feed.v1.feed_service_pb2 import DESCRIPTOR as FEED
from commerce.projection.v1.projection_service_pb2 import DESCRIPTOR as PROJECTION
from query_server.app import LISTS
from query_server.sales import SalesQuery
from query_server.search.request import search_key
from shop.events import EVENTS
from shop.views import CACHED_VIEWS
from tandem.feed.service import check as check_subscribe
from tandem.feed.verification import check as check_verify
from tandem.queries.checker import QueryChecker
from tandem.queries.rows import queries_by_id
from tandem.runtime.checker import MAX_VIOLATIONS
from tandem.runtime.errors import InvalidArgument
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
    **LISTS,
    "SearchProducts": search_key,
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
        if method in WANTED:
            WANTED[method](request, checker)
        else:
            assert method == "WatchOrderDetails"
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
    for name in above:
        holder = getattr(holder, name)
        if hasattr(holder, "add"):
            holder = holder.add()
    elements = getattr(holder, last)
    for _ in range(MANY):
        if hasattr(elements, "add"):
            elements.add()
        else:
            elements.append("" if holder.DESCRIPTOR.fields_by_name[last].enum_type is None else 1)
    with pytest.raises(InvalidArgument) as refused:
        check(method.containing_service.name, method.name, request)
    found = refused.value.violations
    assert (".".join(path), "OUT_OF_RANGE") in {(it.subject, it.kind) for it in found}, "no limit is checked"
    assert len(found) <= MAX_VIOLATIONS + 1


def test_the_fields_are_found() -> None:
    assert len(FIELDS) > 15
