"""Compares ways to serve GetOrderDetails. See README.md for the method: `python -m benchmarks.reads`."""

import argparse
import asyncio
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from grpc import aio

from commerce.query.v1.query_service_pb2 import GetOrderDetailsRequest, GetOrderDetailsResponse
from tandem.cli.embedded import Memcached, Postgres
from tests.support.builders import add_product, identity, place_order, register_customer
from tests.support.stack import Databases, Stack

METHOD = "/commerce.query.v1.QueryService/GetOrderDetails"
ORDERS = 200
LINES = 4


@dataclass(frozen=True)
class Variant:
    transport: str
    cached: bool

    @property
    def name(self) -> str:
        return f"{self.transport}, {'cached' if self.cached else 'database'}"


@dataclass(frozen=True)
class Measured:
    calls_per_second: float
    server_seconds_per_call: float
    store_seconds_per_call: float


VARIANTS = [Variant(transport, cached) for transport in ("grpcio", "native") for cached in (False, True)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reads", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each variant is measured")
    parser.add_argument("--in-flight", type=int, default=64, help="calls under way at once")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as folder:
        postgres, node = Postgres(Path(folder) / "data"), Memcached()
        postgres.start()
        node.start()
        try:
            results = {}
            for variant in VARIANTS:
                settings = {"QUERY": {"CACHE__ENABLED": str(variant.cached).lower()}}
                databases = Databases(postgres)
                stack = Stack(databases, Path(folder), nodes=[node], transport=variant.transport, settings=settings)
                stores = [psutil.Process(postgres.pid), psutil.Process(node.pid)]
                results[variant] = measure(stack, stores, arguments.seconds, arguments.in_flight)
        finally:
            node.stop()
            postgres.stop()
    report(results)
    return 0


def measure(stack: Stack, stores: list[psutil.Process], seconds: float, in_flight: int) -> Measured:
    try:
        last = place_orders(stack.start())
        server = [psutil.Process(stack.query_server.pid)]
        address = stack.query_server.address
        return asyncio.run(load(address, last, server=server, stores=stores, seconds=seconds, in_flight=in_flight))
    finally:
        stack.stop()


def place_orders(stack: Stack) -> str:
    """Returns the token of the last one."""
    stack.commands.RegisterCustomer(register_customer())
    for number in range(LINES):
        stack.commands.AddProduct(add_product(number, stock=ORDERS))
    lines = dict.fromkeys(range(LINES), 1)
    receipts = [stack.commands.PlaceOrder(place_order(number, lines=lines)).receipt for number in range(ORDERS)]
    return receipts[-1].consistency_token


async def load(
    address: str,
    token: str,
    *,
    server: list[psutil.Process],
    stores: list[psutil.Process],
    seconds: float,
    in_flight: int,
) -> Measured:
    """Closed loop: `in_flight` callers, each asking again as soon as it is answered."""
    requests = [GetOrderDetailsRequest(order_id=identity("order", number)) for number in range(ORDERS)]
    async with aio.insecure_channel(address) as channel:
        call: aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
        first = GetOrderDetailsRequest(order_id=requests[-1].order_id)
        first.consistency.at_least_as_fresh = token
        answer = GetOrderDetailsResponse.FromString(await call(first.SerializeToString(), timeout=10))
        assert len(answer.order_details.lines) == LINES
        payloads = [request.SerializeToString() for request in requests]
        count = 0

        async def caller(number: int, until: float) -> None:
            nonlocal count
            while time.perf_counter() < until:
                await call(payloads[number % ORDERS], timeout=10)
                number += in_flight
                count += 1

        async def run(duration: float) -> None:
            until = time.perf_counter() + duration
            await asyncio.gather(*(caller(number, until) for number in range(in_flight)))

        await run(1.0)  # warm: connections, prepared statements, the cache
        count = 0
        started, server_before, stores_before = time.perf_counter(), cpu_seconds(server), cpu_seconds(stores)
        await run(seconds)
        elapsed = time.perf_counter() - started
    return Measured(
        calls_per_second=count / elapsed,
        server_seconds_per_call=(cpu_seconds(server) - server_before) / count,
        store_seconds_per_call=(cpu_seconds(stores) - stores_before) / count,
    )


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """What they and their children have used."""
    family = [it for process in processes for it in (process, *process.children(recursive=True))]
    return sum(it.cpu_times().user + it.cpu_times().system for it in family)


def report(results: dict[Variant, Measured]) -> None:
    base = results[VARIANTS[0]]
    sys.stdout.write(
        f"{'':20}{'calls/s':>10}{'server CPU':>13}{'stores CPU':>13}   (a call, times {VARIANTS[0].name})\n"
    )
    for variant, it in results.items():
        rate = it.calls_per_second / base.calls_per_second
        server = it.server_seconds_per_call / base.server_seconds_per_call
        stores = it.store_seconds_per_call / base.store_seconds_per_call
        sys.stdout.write(f"{variant.name:20}{rate:>9.2f}x{server:>12.2f}x{stores:>12.2f}x\n")


if __name__ == "__main__":
    sys.exit(main())
