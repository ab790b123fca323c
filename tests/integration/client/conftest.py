"""One stack for the client library's tests, with customers and products; each test places orders of its own numbers."""

from collections.abc import AsyncIterator, Iterator
from typing import TypedDict

import pytest

from shop.client import AsyncClient, Client
from tests.support.builders import add_product, register_customer
from tests.support.stack import Databases, Stack

PLENTY = 9
"""The product that never runs out."""


@pytest.fixture(scope="package")
def stack(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(databases, tmp_path_factory.mktemp("stack"))
    stack.start()
    for number in range(1, 10):
        stack.commands.RegisterCustomer(register_customer(number))
        stack.commands.AddProduct(add_product(number, stock=1_000_000 if number == PLENTY else 100))
    yield stack
    stack.stop()


class Addresses(TypedDict, total=False):
    commands: str
    queries: str
    feed: str


def addresses(stack: Stack) -> Addresses:
    return {
        "commands": stack.command_server.address,
        "queries": stack.query_server.address,
        "feed": stack.projector.address,
    }


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    with Client(**addresses(stack)) as client:
        yield client


@pytest.fixture
async def async_client(stack: Stack) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(**addresses(stack)) as client:
        yield client
