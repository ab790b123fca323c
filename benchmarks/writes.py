"""Compares group commit with a commit for each command, and how soon a write is seen: `python -m benchmarks.writes`."""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from commerce.query.v1.query_service_pb2 import GetOrderDetailsRequest
from commerce.type.v1.consistency_pb2 import Consistency
from tandem.cli.embedded import Memcached, Postgres
from tests.support.shop import Load, an_order, open_shop
from tests.support.stack import AsyncStubs, Databases, Stack

VARIANTS = {"a commit a command": 1, "group commit": 128}
# Enough for a median; each is one write and one read, alone on the machine.
LAG_SAMPLES = 200


@dataclass(frozen=True)
class Measured:
    """orders_per_second: acknowledged. seen_after: from acknowledgement to the answer of a read with the token, and
    read: of the same read once more; medians in seconds."""

    orders_per_second: float
    seen_after: float
    read: float


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.writes", description=__doc__)
    parser.add_argument("--orders", type=int, default=3000, help="orders placed with each variant")
    parser.add_argument("--in-flight", type=int, default=64, help="orders under way at once")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as folder:
        postgres, node = Postgres(Path(folder) / "data"), Memcached()
        postgres.start()
        node.start()
        try:
            results = {}
            for name, max_batch in VARIANTS.items():
                settings = {"COMMAND": {"EXECUTOR__MAX_BATCH": str(max_batch)}}
                stack = Stack(Databases(postgres), Path(folder), nodes=[node], settings=settings)
                try:
                    results[name] = asyncio.run(measure(stack.start(), arguments.orders, arguments.in_flight))
                finally:
                    stack.stop()
        finally:
            node.stop()
            postgres.stop()
    report(results)
    return 0


async def measure(stack: Stack, orders: int, in_flight: int) -> Measured:
    async with stack.async_stubs() as stubs:
        await open_shop(stubs.commands)
        warm = Load(in_flight, in_flight)
        await warm.run(stubs.commands, first=1)
        load = Load(orders, in_flight)
        started = time.perf_counter()
        await load.run(stubs.commands, first=in_flight + 1)
        seconds = time.perf_counter() - started
        first = in_flight + orders + 1
        lags, reads = zip(*[await lag(stubs, number) for number in range(first, first + LAG_SAMPLES)], strict=True)
    return Measured(orders / seconds, statistics.median(lags), statistics.median(reads))


async def lag(stubs: AsyncStubs, number: int) -> tuple[float, float]:
    """Seconds from an order's acknowledgement to the end of a read with its token, and of that read once more."""
    placed = await stubs.commands.PlaceOrder(an_order(number))
    fresh = Consistency(at_least_as_fresh=placed.receipt.consistency_token)
    request = GetOrderDetailsRequest(order_id=placed.order_id, consistency=fresh)
    acknowledged = time.perf_counter()
    await stubs.queries.GetOrderDetails(request)
    seen = time.perf_counter()
    await stubs.queries.GetOrderDetails(request)
    return seen - acknowledged, time.perf_counter() - seen


def report(results: dict[str, Measured]) -> None:
    base = next(iter(results.values()))
    lines = [
        f"{'':20}  orders/s   seen after   (orders/s: times {next(iter(results))}; seen after: times a cached read)"
    ]
    lines += [
        f"{name:20}  {it.orders_per_second / base.orders_per_second:7.2f}x  {it.seen_after / it.read:10.2f}x"
        for name, it in results.items()
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
