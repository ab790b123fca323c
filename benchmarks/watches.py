"""What a watcher costs the query server, on each transport: `python -m benchmarks.watches`."""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
from grpc import aio

from benchmarks.processor import cpu_seconds
from commerce.command.v1 import command_service_pb2 as commands
from commerce.query.v1.query_service_pb2 import WatchOrderDetailsRequest, WatchOrderDetailsResponse
from tandem.cli.embedded import Postgres
from tandem.testing.ports import free_port
from tests.support.builders import add_product, identity, place_order, register_customer
from tests.support.stack import Databases, Stack

METHOD = "/commerce.query.v1.QueryService/WatchOrderDetails"
ORDERS = 100
LINES = 4
PATIENCE = 120.0


@dataclass(frozen=True)
class Measured:
    bytes_per_watcher: float
    open_cpu_seconds: float
    """Of the query server, for one watch from its opening to its first message."""
    message_cpu_seconds: float
    """For one message after that."""
    seconds_until_all_know: float
    """From the first of the commands that change all orders to the last watcher's message."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.watches", description=__doc__)
    parser.add_argument("--watchers", type=int, default=2000, help=f"watches open at once, of {ORDERS} orders")
    parser.add_argument("--connections", type=int, default=4, help="connections that they share")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as folder:
        postgres = Postgres(Path(folder) / "data", free_port())
        postgres.start()
        try:
            results = {}
            for transport in ("grpcio", "native"):
                stack = Stack(Databases(postgres), Path(folder), transport=transport)
                try:
                    stack.start()
                    results[transport] = asyncio.run(measure(stack, arguments.watchers, arguments.connections))
                finally:
                    stack.stop()
        finally:
            postgres.stop()
    report(results)
    return 0


def report(results: dict[str, Measured]) -> None:
    """Memory as it is; times as multiples of the first transport's."""
    base = results["grpcio"]
    sys.stdout.write(f"{'':10}{'KiB/watcher':>13}{'CPU, open':>12}{'CPU, message':>15}{'all know after':>17}\n")
    for transport, it in results.items():
        sys.stdout.write(
            f"{transport:10}{it.bytes_per_watcher / 1024:>13.1f}"
            f"{it.open_cpu_seconds / base.open_cpu_seconds:>11.2f}x"
            f"{it.message_cpu_seconds / base.open_cpu_seconds:>14.2f}x"
            f"{it.seconds_until_all_know / base.seconds_until_all_know:>16.2f}x\n"
        )


async def measure(stack: Stack, watchers: int, connections: int) -> Measured:
    server = psutil.Process(stack.query_server.pid)
    async with stack.async_stubs() as stubs, AsyncExitStack() as exits:
        await stubs.commands.RegisterCustomer(register_customer())
        for number in range(LINES):
            await stubs.commands.AddProduct(add_product(number, stock=ORDERS))
        lines = dict.fromkeys(range(LINES), 1)
        orders = [await stubs.commands.PlaceOrder(place_order(number, lines=lines)) for number in range(ORDERS)]
        channels = [
            await exits.enter_async_context(
                aio.insecure_channel(stack.query_server.address, [("grpc.use_local_subchannel_pool", 1)])
            )
            for _ in range(connections)
        ]
        token = orders[-1].receipt.consistency_token
        # What the process needs once, whoever watches, is not a watcher's.
        await first_messages(open_watches(channels, connections, token))
        memory, cpu = server.memory_info().rss, cpu_seconds([server])
        watches = open_watches(channels, watchers, token)
        await first_messages(watches)
        opened, cpu_opened = server.memory_info().rss, cpu_seconds([server])
        started = time.perf_counter()
        news = asyncio.create_task(first_messages(watches))
        for order in orders:
            await stubs.commands.PayOrder(commands.PayOrderRequest(order_id=order.order_id))
        await news
        elapsed, cpu_told = time.perf_counter() - started, cpu_seconds([server])
    return Measured(
        bytes_per_watcher=(opened - memory) / watchers,
        open_cpu_seconds=(cpu_opened - cpu) / watchers,
        message_cpu_seconds=(cpu_told - cpu_opened) / watchers,
        seconds_until_all_know=elapsed,
    )


def open_watches(channels: Sequence[aio.Channel], count: int, token: str) -> list[AsyncIterator[bytes]]:
    """Watches of all orders in turn, over all channels in turn; their messages."""
    watches: list[AsyncIterator[bytes]] = []
    for number in range(count):
        request = WatchOrderDetailsRequest(order_id=identity("order", number % ORDERS))
        request.consistency.at_least_as_fresh = token
        request.heartbeat_interval.FromSeconds(60)
        call: aio.UnaryStreamMultiCallable[bytes, bytes] = channels[number % len(channels)].unary_stream(METHOD)
        watches.append(aiter(call(request.SerializeToString())))
    return watches


async def first_messages(watches: Sequence[AsyncIterator[bytes]]) -> None:
    """Waits for the next state of each."""

    async def next_state(messages: AsyncIterator[bytes]) -> None:
        while not WatchOrderDetailsResponse.FromString(await anext(messages)).HasField("order_details"):
            pass

    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(next_state(messages) for messages in watches))


if __name__ == "__main__":
    sys.exit(main())
