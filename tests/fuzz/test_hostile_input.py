"""Whatever callers send: an answer that says what is wrong, no crash, all or nothing, and others are answered.

A run prints its seed; `pytest tests/fuzz --seed=N` sends the same again.
"""

import asyncio
import contextlib
import gzip
import itertools
import random
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import grpc
import psutil
import psycopg
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status

from commerce.command.v1.command_service_pb2 import DESCRIPTOR as COMMANDS
from commerce.command.v1.command_service_pb2 import PayOrderRequest
from commerce.feed.v1.feed_service_pb2 import DESCRIPTOR as FEED
from commerce.projection.v1.projection_service_pb2 import DESCRIPTOR as PROJECTION
from commerce.query.v1.query_service_pb2 import DESCRIPTOR as QUERIES
from commerce.query.v1.query_service_pb2 import BatchGetOrderDetailsRequest, GetOrderDetailsRequest
from commerce.type.v1.consistency_pb2 import Consistency
from shop.views import VIEWS
from tandem.cli.services import Service
from tandem.testing.stack import up_to, wait_until
from tests.support.builders import add_product, identity, place_order, register_customer
from tests.support.hostile import Input, hostile_input
from tests.support.http2 import RawConnection, broken_connections, broken_frames, message
from tests.support.shop import Load, open_shop
from tests.support.stack import Stack

INPUTS = 10_000
IN_FLIGHT = 128
LARGEST_HANDED_OVER = 4 * 2**20
"""Bytes of a request that grpcio hands over, so that we refuse it: docs/adr/0047."""
SECONDS = 60.0
"""After which a call has hung. Streams are given up after a part of one."""
STREAM_SECONDS = 0.3
# Of the caller that is no fuzz: nobody else knows these.
APART = 900
MOST_GROWN_BYTES = 256 * 2**20

# Those of the transport's own: also health and reflection, which each service has.
SHARED = (
    health_pb2.DESCRIPTOR.services_by_name["Health"],
    reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
)
OWN_CODES = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
"""Which a client gives itself, too: without details."""


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    given: int | None = request.config.getoption("--seed")
    return random.randrange(10**9) if given is None else given


@pytest.mark.parametrize("transport", ["native", "grpcio"])
async def test_no_input_is_answered_with_a_bug_or_does_half_of_something(
    new_stack: Callable[..., Stack], transport: str, seed: int
) -> None:
    stack = new_stack(cache_nodes=up_to(1), transport=transport)
    async with stack.async_stubs() as stubs:
        tokens = [await open_shop(stubs.commands)]
        load = Load(20)
        await load.run(stubs.commands)
        tokens.append(load.last.consistency_token)
        await stubs.commands.RegisterCustomer(register_customer(APART))
        await stubs.commands.AddProduct(add_product(APART, stock=1_000_000))
        async with caller_apart(stubs) as answered:
            wrong = await Fuzz(stack, tokens, seed).run(INPUTS)
            assert wrong == [], f"--seed={seed}"
            before = answered()
            memory = {it.name: memory_of(it) for it in stack.services}
            for service in stack.services:
                await asyncio.to_thread(break_connections, service, random.Random(seed), transport)
            await asyncio.to_thread(wait_until, lambda: answered() > before + 3, "others are answered")
        grown = {it.name: memory_of(it) - memory[it.name] for it in stack.services}
        assert max(grown.values()) < MOST_GROWN_BYTES, grown
        assert {it.name: it.exit_code() for it in stack.services} == {it.name: None for it in stack.services}
        compare_stores(stack)
        await hostile_rows(stack, stubs, random.Random(seed))


class Fuzz:
    """Sends inputs, many at once, and tells which answers are wrong."""

    def __init__(self, stack: Stack, tokens: list[str], seed: int) -> None:
        self._tokens = tokens
        self._seed = seed
        services = (
            (stack.command_server, COMMANDS),
            (stack.query_server, QUERIES),
            (stack.projector, FEED),
            (stack.projector, PROJECTION),
        )
        self._routes: list[tuple[Service, MethodDescriptor]] = [
            (service, method)
            for service, file in services
            for descriptor in (*file.services_by_name.values(), *SHARED)
            for method in descriptor.methods
        ]

    async def run(self, inputs: int) -> list[str]:
        numbers = iter(range(inputs))
        wrong: list[str] = []
        async with contextlib.AsyncExitStack() as exits:
            channels = {
                it.port: await exits.enter_async_context(grpc.aio.insecure_channel(it.address))
                for it, _ in self._routes
            }

            async def send() -> None:
                for number in numbers:
                    service, method = self._routes[number % len(self._routes)]
                    made = hostile_input([method], self._seed, number, self._tokens)
                    if problem := await problem_of(channels[service.port], method, made):
                        wrong.append(f"{problem}: input {number}, {made}")

            await asyncio.gather(*(send() for _ in range(IN_FLIGHT)))
        return wrong[:10]


async def problem_of(channel: grpc.aio.Channel, method: MethodDescriptor, made: Input) -> str:
    """What is wrong with the answer; empty where nothing is."""
    options: dict[str, Any] = {"request_serializer": bytes, "response_deserializer": bytes}
    try:
        if method.server_streaming:
            call: Any = channel.unary_stream(made.path, **options)
            call = call(made.payload, metadata=made.metadata, timeout=STREAM_SECONDS)
            await call.read()
            call.cancel()
        else:
            await channel.unary_unary(made.path, **options)(made.payload, metadata=made.metadata, timeout=SECONDS)
    except grpc.aio.AioRpcError as error:
        if len(made.payload) > LARGEST_HANDED_OVER and error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            # grpcio refuses it by itself, without details.
            return ""
        return problem_of_error(error, streaming=method.server_streaming)
    return ""


def problem_of_error(error: grpc.aio.AioRpcError, *, streaming: bool) -> str:
    code = error.code()
    if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
        return f"{code.name} ({error.details()})"
    if code in OWN_CODES:
        return "" if streaming else f"not answered within {SECONDS:g} s"
    status = rpc_status.from_call(error)
    if status is None or not any(it.Is(error_details_pb2.ErrorInfo.DESCRIPTOR) for it in status.details):
        return f"{code.name} without ErrorInfo ({error.details()})"
    return ""


@contextlib.asynccontextmanager
async def caller_apart(stubs: Any) -> AsyncIterator[Callable[[], int]]:
    """Places orders and reads them, one after the other, while others do what they do; how many so far."""
    numbers = itertools.count(1)
    done = 0
    stopped = asyncio.Event()

    async def call() -> None:
        nonlocal done
        while not stopped.is_set():
            order = place_order(APART + next(numbers), customer=APART, lines={APART: 1})
            placed = await stubs.commands.PlaceOrder(order, timeout=SECONDS)
            fresh = Consistency(at_least_as_fresh=placed.receipt.consistency_token)
            wanted = GetOrderDetailsRequest(order_id=placed.order_id, consistency=fresh)
            answer = await stubs.queries.GetOrderDetails(wanted, timeout=SECONDS)
            assert answer.order_details.order_id == placed.order_id
            done += 1
            await asyncio.sleep(0.02)

    task = asyncio.create_task(call())
    yield lambda: done
    stopped.set()
    await task


# Connections that are none.

METHODS = {
    "command_server": "/commerce.command.v1.CommandService/PlaceOrder",
    "query_server": "/commerce.query.v1.QueryService/GetOrderDetails",
    "projector": "/commerce.feed.v1.FeedService/GetHead",
}


def break_connections(service: Service, chance: random.Random, transport: str) -> None:
    """Garbage, half a preface, floods of frames, headers past each limit, resets, bombs: all open at once."""
    path = METHODS[service.name]
    pieces = (*broken_connections(chance).values(), *(broken_frames(chance) for _ in range(20)))
    with contextlib.ExitStack() as open_ones:
        for piece in pieces:
            opened = open_ones.enter_context(socket.create_connection(("127.0.0.1", service.port)))
            # It may be closed before all of that is sent.
            with contextlib.suppress(OSError):
                opened.settimeout(5)
                opened.sendall(piece)
        reset, packed, long = (RawConnection(service.port, reads=True) for _ in range(3))
        open_ones.callback(reset.close)
        open_ones.callback(packed.close)
        open_ones.callback(long.close)
        with contextlib.suppress(OSError):
            for _ in range(2000):
                reset.reset(reset.open(path))
        # The native transport unpacks before it measures: a bomb takes there what it comes to.
        bomb = gzip.compress(bytes(2**28 if transport == "grpcio" else 2**24))
        stream = packed.open(path, headers=[("grpc-encoding", "gzip")])
        with contextlib.suppress(OSError):
            packed.send(stream, message(bomb, compressed=True), end=True)
        wait_until(lambda: stream in packed.ended_streams or packed.ended.is_set(), "the bomb is answered")
        with contextlib.suppress(OSError):
            stream = long.open(path, headers=[(f"x-{number}", "x" * 120) for number in range(200)], end=True)
        wait_until(lambda: stream in long.ended_streams or long.ended.is_set(), "long headers are answered")


def memory_of(service: Service) -> int:
    process = psutil.Process(service.pid)
    return sum(int(it.memory_info().rss) for it in (process, *process.children(recursive=True)))


# What is stored.

ALL_OR_NOTHING = {
    "a receipt without its event": """
        SELECT count(*) FROM tandem_write.receipt AS it LEFT JOIN tandem_write.event USING (position)
        WHERE refusal IS NULL AND kind IS NULL""",
    "positions that nobody has": "SELECT max(position) - count(*) FROM tandem_write.event",
    "positions past the head": """
        SELECT count(*) FROM tandem_write.event
        WHERE position > (SELECT max(position) FROM tandem_write.feed_head)""",
    "commands of which a part is done": "SELECT count(*) FROM tandem_write.unfinished",
}
# The write table, the event that makes a row of it, and the view that has one for each.
ROWS = (
    ("customer", "customer_registered", "customer_profile"),
    ("product", "product_added", "product_card"),
    ("customer_order", "order_placed", "order_details"),
    ("subscription", "subscription_started", "subscription_details"),
)


def compare_stores(stack: Stack) -> None:
    """Rows, events, receipts and views say the same, each has its counterpart."""
    with (
        psycopg.connect(stack.write_url, autocommit=True) as write,
        psycopg.connect(stack.read_url, autocommit=True) as read,
    ):
        (head,) = one_row(write, "SELECT max(position) FROM tandem_write.feed_head")
        positions = "SELECT position, error FROM tandem_read.projection"
        wait_until(lambda: {*read.execute(positions)} == {(head, None)}, f"all {len(VIEWS)} views are at {head}")
        found = {what: one_row(write, counting)[0] for what, counting in ALL_OR_NOTHING.items()}
        assert found == dict.fromkeys(ALL_OR_NOTHING, 0)
        for table, kind, view in ROWS:
            (rows,) = one_row(write, f"SELECT count(*) FROM tandem_write.{table}")
            (events,) = one_row(write, "SELECT count(*) FROM tandem_write.event WHERE kind = %s", kind)
            (viewed,) = one_row(read, f"SELECT count(*) FROM tandem_read.{view}")
            assert (table, rows, rows) == (table, events, viewed)


def one_row(connection: psycopg.Connection[Any], statement: Any, *values: Any) -> Any:
    row = connection.execute(statement, values).fetchone()
    assert row is not None
    return row


async def hostile_rows(stack: Stack, stubs: Any, chance: random.Random) -> None:
    """What is stored wrong, in the cache and then in the view, too: nobody gets it, and nobody a bug."""
    orders = [identity("order", number) for number in range(1, 21)]
    batch = BatchGetOrderDetailsRequest(order_ids=orders)
    right = await stubs.queries.BatchGetOrderDetails(batch, timeout=SECONDS)
    for node in stack.nodes:
        await asyncio.to_thread(spoil_cache, node.address, chance)
    spoiled = await stubs.queries.BatchGetOrderDetails(batch, timeout=SECONDS)
    assert spoiled.order_details == right.order_details, "none of the cache's is shown"
    with psycopg.connect(stack.read_url, autocommit=True) as read:
        select = "SELECT value FROM tandem_read.order_details WHERE key = %s"
        for order in orders:
            (content,) = one_row(read, select, order)
            changed = bytearray(content)
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
            hurt = chance.choice((bytes(changed), content[: chance.randrange(len(content))], chance.randbytes(50), b""))
            read.execute("UPDATE tandem_read.order_details SET value = %s WHERE key = %s", (hurt, order))
    for node in stack.nodes:
        await asyncio.to_thread(spoil_cache, node.address, chance)
    wrong = [await problem_of_row(stubs, order) for order in orders]
    assert wrong == [""] * len(orders)
    # What comes for such rows stops nobody.
    for order in orders[:5]:
        with contextlib.suppress(grpc.aio.AioRpcError):
            await stubs.commands.PayOrder(PayOrderRequest(order_id=order), timeout=SECONDS)
    apart = await stubs.queries.GetOrderDetails(
        GetOrderDetailsRequest(order_id=identity("order", APART + 1)), timeout=SECONDS
    )
    assert apart.order_details.order_id


async def problem_of_row(stubs: Any, order: str) -> str:
    try:
        answer = await stubs.queries.GetOrderDetails(GetOrderDetailsRequest(order_id=order), timeout=SECONDS)
    except grpc.aio.AioRpcError as error:
        return "" if error.code() == grpc.StatusCode.UNAVAILABLE else problem_of_error(error, streaming=False)
    return "" if answer.order_details.order_id == order else f"{order} is answered with {answer}"


def spoil_cache(address: str, chance: random.Random) -> None:
    """Replaces each entry of a memcached node by bytes that nobody stored: a bit, the end or all of it is another."""
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port))) as node, node.makefile("rb") as answers:
        node.sendall(b"lru_crawler metadump all\r\n")
        keys = [line.split()[0].removeprefix(b"key=") for line in until_end(answers)]
        for key in keys:
            node.sendall(b"set " + key + b" 0 0 50 noreply\r\n" + chance.randbytes(50) + b"\r\n")
        node.sendall(b"version\r\n")
        answers.readline()


def until_end(answers: Iterable[bytes]) -> Iterator[bytes]:
    for line in answers:
        if line.startswith(b"END"):
            return
        yield line
