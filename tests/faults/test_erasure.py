"""An erased person is nowhere any more: not in a table, the feed, the cache or a log, nor after a rebuild."""

import base64
import re
import socket
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote_to_bytes

import psycopg
from psycopg import sql

from commerce.command.v1 import command_service_pb2 as commands
from commerce.query.v1 import query_service_pb2 as queries
from commerce.query.v1.views_pb2 import CustomerProfile
from commerce.type.v1.address_pb2 import Address
from commerce.type.v1.consistency_pb2 import Consistency
from tandem.cli.child import Child
from tandem.cli.embedded import Postgres
from tandem.testing.stack import kill, up_to
from tests.support.builders import add_product, address, identity, place_order, register_customer
from tests.support.operating import Operator
from tests.support.shop import until_answered
from tests.support.stack import AsyncStubs, Stack

CUSTOMER = identity("customer", 1)
ORDERS = [identity("order", number) for number in range(1, 6)]

SECRETS = {
    "name": "Xavier Quillfeather",
    "new name": "Zbigniew Quillfeather-Öström",
    "e-mail": "quill@feather-mail.example",
    "phone": "+49 30 5550199",
    "street": "Unmistakable Lane 12",
    "other street": "Otherwise Alley 7",
    "order's street": "Single Order Road 3",
    "changed street": "Redirected Row 44",
    "address name": "grandmother's cottage",
    "recipient": "Ottilie Wimberforce",
}


def home() -> Address:
    return address(street=SECRETS["street"], recipient=SECRETS["recipient"])


async def live_a_life(stubs: AsyncStubs) -> None:
    """Everything that can be told of a person, and orders in every status."""
    person = register_customer(1)
    person.name, person.email, person.phone = SECRETS["name"], SECRETS["e-mail"], SECRETS["phone"]
    person.address.CopyFrom(home())
    await stubs.commands.RegisterCustomer(person)
    await stubs.commands.RegisterCustomer(register_customer(2))
    await stubs.commands.AddProduct(add_product(1))
    await stubs.commands.UpdateAddress(
        commands.UpdateAddressRequest(
            customer_id=CUSTOMER,
            address=address(street=SECRETS["other street"]),
            address_name=SECRETS["address name"],
        )
    )
    for number in range(1, 6):
        await stubs.commands.PlaceOrder(place_order(number, lines={1: number}))
    await stubs.commands.RenameCustomer(commands.RenameCustomerRequest(customer_id=CUSTOMER, name=SECRETS["new name"]))
    elsewhere = place_order(6, lines={1: 1})
    elsewhere.shipping_address.CopyFrom(address(street=SECRETS["order's street"]))
    await stubs.commands.PlaceOrder(elsewhere)
    await stubs.commands.PlaceOrder(place_order(7, customer=2, lines={1: 1}))
    for order in ORDERS[1:]:
        await stubs.commands.PayOrder(commands.PayOrderRequest(order_id=order))
    await stubs.commands.ChangeShippingAddress(
        commands.ChangeShippingAddressRequest(order_id=ORDERS[1], address=address(street=SECRETS["changed street"]))
    )
    for order in ORDERS[2:]:
        await stubs.commands.ShipOrder(commands.ShipOrderRequest(order_id=order))
    await stubs.commands.DeliverOrder(commands.DeliverOrderRequest(order_id=ORDERS[3]))
    last = await stubs.commands.CancelOrder(commands.CancelOrderRequest(order_id=ORDERS[0]))
    await read(stubs, last.receipt.consistency_token)


async def read(stubs: AsyncStubs, token: str) -> tuple[CustomerProfile, list[Any], list[Any]]:
    """The customer, the orders in full, and as the customer's list: not older than the token."""
    # Where the views are made anew, a query server that was told of them before says at once that they are behind.
    fresh = Consistency(at_least_as_fresh=token)
    ids = [identity("order", number) for number in range(1, 8)]
    customer = await until_answered(
        stubs.queries.GetCustomer, queries.GetCustomerRequest(customer_id=CUSTOMER, consistency=fresh)
    )
    orders = await until_answered(
        stubs.queries.BatchGetOrderDetails, queries.BatchGetOrderDetailsRequest(order_ids=ids, consistency=fresh)
    )
    listed = await until_answered(
        stubs.queries.ListRecentOrders, queries.ListRecentOrdersRequest(customer_id=CUSTOMER, consistency=fresh)
    )
    return customer.customer, list(orders.order_details), list(listed.orders)


def spellings(secret: str) -> Iterator[bytes]:
    """How a text may stand in a table, a cache or a log."""
    plain = secret.encode()
    yield plain
    yield plain.hex().encode()
    yield base64.b64encode(plain).rstrip(b"=")[:-1]
    yield secret.encode("unicode_escape")


def found_in(haystack: bytes) -> set[str]:
    return {what for what, secret in SECRETS.items() if any(it in haystack for it in spellings(secret))}


def tables(*urls: str) -> dict[str, bytes]:
    """Everything in every column of every table of our schemas."""
    contents: dict[str, bytes] = {}
    for url in set(urls):
        with psycopg.connect(url) as connection:
            names = connection.execute(
                "SELECT table_schema, table_name FROM information_schema.tables"
                " WHERE table_schema LIKE 'tandem%' AND table_type = 'BASE TABLE'"
            ).fetchall()
            assert names
            for schema, name in names:
                rows = connection.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(schema, name))).fetchall()
                values = (value for row in rows for value in row)
                contents[f"{schema}.{name}"] = b"\0".join(
                    bytes(it) if isinstance(it, bytes) else str(it).encode() for it in values
                )
    return contents


def memory(node: Child) -> bytes:
    """All that a memcached node would still hand out."""
    host, _, port = node.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection, connection.makefile("rwb") as file:
        # By the table of keys: a walk through the lists would miss what memcached moves between them meanwhile.
        file.write(b"lru_crawler metadump hash\r\n")
        file.flush()
        keys = []
        while (line := file.readline().strip()) != b"END":
            match = re.match(rb"key=(\S+)", line)
            assert match, line
            keys.append(unquote_to_bytes(match[1]))
        values = b""
        for key in keys:
            file.write(b"get " + key + b"\r\n")
            file.flush()
            while (line := file.readline()) != b"END\r\n":
                values += line
    return values


def logs(stack: Stack, postgres: Postgres) -> bytes:
    return b"".join(path.read_bytes() for path in (*(it.log for it in stack.services), postgres.log))


async def test_an_erased_person_is_nowhere_any_more(new_stack: Callable[..., Stack], postgres: Postgres) -> None:
    stack = new_stack(cache_nodes=up_to(2))
    async with stack.async_stubs() as stubs:
        await live_a_life(stubs)
        before = await read_when_all_is_in(stubs)

        # The search finds what is there: all of it in the write and the read database, none of it in the feed.
        stored = tables(stack.write_url, stack.read_url)
        assert found_in(stored["tandem_write.event_0"]) == set()
        assert found_in(stored["tandem_write.customer"]) == set(SECRETS) - {"name", "order's street", "changed street"}
        assert found_in(stored["tandem_read.order_details"]) >= {"name", "new name", "order's street", "changed street"}
        assert found_in(stored["tandem_read.customer_profile"]) >= {"new name", "e-mail", "phone", "address name"}
        if stack.nodes:
            assert found_in(b"".join(map(memory, stack.nodes))) >= {"name", "new name", "e-mail", "changed street"}

        kill(stack.projector)
        erased = await stubs.commands.EraseCustomer(commands.EraseCustomerRequest(customer_id=CUSTOMER))
        stack.projector.start()
        after = await read(stubs, erased.receipt.consistency_token)

        for name, content in tables(stack.write_url, stack.read_url).items():
            assert found_in(content) == set(), name
        # The crash of the projector has ended the cache's epochs: what was in them is out of reach of every reader, and
        # is thrown out as memcached needs the room, at the latest when it expires.
        shown = b"".join(part.SerializeToString() for part in (after[0], *after[1], *after[2]))
        assert found_in(shown) == set()
        assert found_in(logs(stack, postgres)) == set()
        check_what_is_left(before, after, erased.receipt.version)

        # From what is left of the feed the same views are made.
        await Operator(stubs.projections).make_anew()
        assert await read(stubs, erased.receipt.consistency_token) == after


async def test_an_erased_persons_cache_entries_are_replaced(new_stack: Callable[..., Stack]) -> None:
    stack = new_stack(cache_nodes=2)
    async with stack.async_stubs() as stubs:
        await live_a_life(stubs)
        assert found_in(b"".join(map(memory, stack.nodes)))
        erased = await stubs.commands.EraseCustomer(commands.EraseCustomerRequest(customer_id=CUSTOMER))
        await read(stubs, erased.receipt.consistency_token)
        assert found_in(b"".join(map(memory, stack.nodes))) == set()


async def read_when_all_is_in(stubs: AsyncStubs) -> tuple[CustomerProfile, list[Any], list[Any]]:
    """What is read when all is in the views, so that it is in the cache too."""
    probe = await stubs.commands.AddProduct(add_product(2))
    return await read(stubs, probe.receipt.consistency_token)


def check_what_is_left(before: Any, after: Any, version: int) -> None:
    """Amounts, counts and statuses, and everything of anybody else."""
    profile, orders, listed = after
    assert profile == CustomerProfile(
        customer_id=CUSTOMER, registered_at=before[0].registered_at, erased_at=profile.erased_at, version=version
    )
    assert profile.HasField("erased_at")
    assert listed == before[2]
    for was, it in zip(before[1], orders, strict=True):
        if was.customer_id == CUSTOMER:
            was.ClearField("customer_name")
            was.ClearField("shipping_address")
        assert it == was
