"""One stack in each configuration, for all suites of this folder, and what they share."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from commerce.type.v1.consistency_pb2 import Consistency
from tandem.testing.stack import end_node
from tests.support.builders import add_product, register_customer
from tests.support.caches import new_node, require
from tests.support.stack import AsyncStubs, Databases, Stack

CONFIGURATIONS = {
    "native, no cache, two databases": {"transport": "native", "cache_nodes": 0, "lite": False},
    "native, one node, two databases": {"transport": "native", "cache_nodes": 1, "lite": False},
    "native, three nodes, one database": {"transport": "native", "cache_nodes": 3, "lite": True},
    "grpcio, CQRS lite": {"transport": "grpcio", "cache_nodes": 0, "lite": True},
    "grpcio, one node, two databases": {"transport": "grpcio", "cache_nodes": 1, "lite": False},
    "grpcio, three nodes of Valkey, two databases": {
        "transport": "grpcio",
        "cache_nodes": 3,
        "kind": "valkey",
        "lite": False,
    },
}


@pytest.fixture(scope="session", params=CONFIGURATIONS.values(), ids=list(CONFIGURATIONS))
def stack(
    request: pytest.FixtureRequest, databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    options = dict(request.param)
    count = options.pop("cache_nodes")
    kind = options.pop("kind", "memcached")
    if count:
        require(kind)
    nodes = [new_node(kind) for _ in range(count)]
    for node in nodes:
        node.start()
    stack = Stack(databases, tmp_path_factory.mktemp("stack"), nodes=nodes, **options)
    stack.start()
    yield stack
    stack.stop()
    for node in nodes:
        end_node(node)


@pytest.fixture
async def stubs(stack: Stack) -> AsyncIterator[AsyncStubs]:
    async with stack.async_stubs() as opened:
        yield opened


@pytest.fixture(scope="session")
def numbers() -> Iterator[int]:
    """Every test of the suite works on customers, products and orders of its own."""
    return iter(range(1, 100_000, 100))


def fresh(receipt: Any) -> Consistency:
    return Consistency(at_least_as_fresh=receipt.consistency_token)


def details(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    """google.rpc details by their type's short name."""
    status = rpc_status.from_call(error)
    assert status is not None
    found = {}
    for packed in status.details:
        detail = getattr(error_details_pb2, packed.TypeName().rsplit(".", 1)[1])()
        packed.Unpack(detail)
        found[type(detail).__name__] = detail
    return found


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def shop(stubs: AsyncStubs, number: int, *, stock: int = 100) -> None:
    await stubs.commands.RegisterCustomer(register_customer(number))
    for product in (number, number + 1):
        await stubs.commands.AddProduct(add_product(product, price=1000 + product, stock=stock))
