"""What followers of the feed cost the projector, and how fast one catches up: `python -m benchmarks.feed`."""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
from grpc import aio
from pydantic import SecretStr

from benchmarks.processor import cpu_seconds
from commerce.feed.v1.feed_service_pb2 import GetHeadRequest, SubscribeRequest, SubscribeResponse
from commerce.feed.v1.feed_service_pb2_grpc import FeedServiceStub
from commerce.projection.v1.projection_service_pb2 import ListProjectionsRequest
from shop.events import EVENTS
from tandem.cli.embedded import Postgres
from tandem.feed.reader import read_events
from tandem.runtime.database import create_database_engine
from tandem.runtime.settings import DatabaseSettings
from tandem.testing.ports import free_port
from tandem.testing.stack import wait_until
from tests.support.shop import Load, an_order, open_shop
from tests.support.stack import Databases, Stack

METHOD = "/commerce.feed.v1.FeedService/Subscribe"
TRANSPORTS = ("grpcio", "native")
BATCH = 1000
# Each way to read is repeated for so long: a try that is served from memory takes less processor time than the clock of
# processor time can tell.
SECONDS = 4.0
# Orders that are placed, one after the other, while all subscribers look on.
NEWS = 20
PATIENCE = 120.0


@dataclass(frozen=True)
class Subscribers:
    bytes_each: float
    message_cpu_seconds: float
    """Of the projector, for one event to one subscriber that had them all."""


@dataclass(frozen=True)
class Rate:
    events_per_second: float
    cpu_seconds: float
    """Of the process that serves the events or, where there is none, of the one that reads them; for one event."""


@dataclass(frozen=True)
class Rates:
    table: Rate
    """The table, read and opened by the one who wants the events."""
    database: Rate
    """A follower that began far behind."""
    memory: Rate
    """A follower whose events are all in the ring."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.feed", description=__doc__)
    parser.add_argument("--subscribers", type=int, default=2000, help="streams open at once")
    parser.add_argument("--connections", type=int, default=4, help="connections that they share")
    parser.add_argument("--events", type=int, default=8000, help="events to catch up with; at most what the ring holds")
    arguments = parser.parse_args()
    subscribers, rates = {}, {}
    settings = {"PROJECTOR": {"FEED_SERVICE__MAX_SUBSCRIBERS": str(arguments.subscribers)}}
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as folder:
        postgres = Postgres(Path(folder) / "data", free_port())
        postgres.start()
        try:
            for transport in TRANSPORTS:
                # A stack each: memory that catching up has used and given back would hide what subscribers take.
                stack = Stack(Databases(postgres), Path(folder), transport=transport, settings=settings)
                try:
                    stack.start()
                    subscribers[transport] = asyncio.run(watch(stack, arguments.subscribers, arguments.connections))
                finally:
                    stack.stop()
                stack = Stack(Databases(postgres), Path(folder), transport=transport)
                try:
                    rates[transport] = catch_up(stack.start(), arguments.events)
                finally:
                    stack.stop()
        finally:
            postgres.stop()
    report(subscribers, rates)
    return 0


def report(subscribers: dict[str, Subscribers], rates: dict[str, Rates]) -> None:
    """Memory as it is; the rest as multiples of what the same transport's run took to read the table directly."""
    sys.stdout.write(f"{'':10}{'KiB/subscriber':>16}{'events/s, behind':>19}{'in memory':>12}")
    sys.stdout.write(f"{'CPU, behind':>14}{'in memory':>12}{'one each':>11}\n")
    for transport in TRANSPORTS:
        it, rate = subscribers[transport], rates[transport]
        sys.stdout.write(
            f"{transport:10}{it.bytes_each / 1024:>16.1f}"
            f"{rate.database.events_per_second / rate.table.events_per_second:>18.2f}x"
            f"{rate.memory.events_per_second / rate.table.events_per_second:>11.2f}x"
            f"{rate.database.cpu_seconds / rate.table.cpu_seconds:>13.2f}x"
            f"{rate.memory.cpu_seconds / rate.table.cpu_seconds:>11.2f}x"
            f"{it.message_cpu_seconds / rate.table.cpu_seconds:>10.2f}x\n"
        )


async def watch(stack: Stack, count: int, connections: int) -> Subscribers:
    """Subscribers with nothing to do, and then with one event at a time."""
    server = psutil.Process(stack.projector.pid)
    async with stack.async_stubs() as stubs, AsyncExitStack() as exits:
        await open_shop(stubs.commands)
        channels = [
            await exits.enter_async_context(
                aio.insecure_channel(stack.projector.address, [("grpc.use_local_subchannel_pool", 1)])
            )
            for _ in range(connections)
        ]
        # What the process needs once, whoever follows, is not a subscriber's.
        warm = await subscribe(channels, connections)
        memory = server.memory_info().rss
        streams = warm + await subscribe(channels, count - connections)
        bytes_each = (server.memory_info().rss - memory) / (count - connections)
        cpu = cpu_seconds([server])
        for number in range(NEWS):
            await stubs.commands.PlaceOrder(an_order(number))
            await each(streams, lambda message: len(message.events) == 1)
        return Subscribers(bytes_each, (cpu_seconds([server]) - cpu) / NEWS / count)


async def subscribe(channels: Sequence[aio.Channel], count: int) -> list[AsyncIterator[bytes]]:
    """So many streams, over all channels in turn; all are caught up, and what follows is their next message."""
    request = SubscribeRequest(from_now=True)
    request.heartbeat_interval.FromSeconds(60)
    streams: list[AsyncIterator[bytes]] = []
    for number in range(count):
        call: aio.UnaryStreamMultiCallable[bytes, bytes] = channels[number % len(channels)].unary_stream(METHOD)
        streams.append(aiter(call(request.SerializeToString())))
    await each(streams, lambda message: message.caught_up)
    return streams


async def each(streams: Sequence[AsyncIterator[bytes]], awaited: Callable[[SubscribeResponse], bool]) -> None:
    """Waits for a message like this on each of the streams."""

    async def one(messages: AsyncIterator[bytes]) -> None:
        while not awaited(SubscribeResponse.FromString(await anext(messages))):
            pass

    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(one(messages) for messages in streams))


def catch_up(stack: Stack, events: int) -> Rates:
    """Reads the same number of events in each of three ways, from a projector that has nothing else to do."""
    server = psutil.Process(stack.projector.pid)
    stub = FeedServiceStub(stack.channel(stack.projector))
    start = asyncio.run(place_orders(stack, events, first=1))
    beginning = SubscribeRequest(from_beginning=True, max_batch_events=BATCH)
    table = repeat(lambda: read_table(stack.write_url), start, psutil.Process())
    database = repeat(lambda: follow(stub, beginning), start, server)
    # One that looks on while they are placed has them kept in memory.
    looker_on = stub.Subscribe(SubscribeRequest(from_now=True), timeout=PATIENCE)
    middle = next(looker_on)
    assert middle.position == start
    asyncio.run(place_orders(stack, events, first=events + 1))
    latest = SubscribeRequest(after_cursor=middle.cursor, max_batch_events=BATCH)
    memory = repeat(lambda: follow(stub, latest), events, server)
    looker_on.cancel()
    return Rates(table, database, memory)


async def place_orders(stack: Stack, count: int, *, first: int) -> int:
    """Opens the shop with the first one. Returns the feed's head, when all views have come there."""
    async with stack.async_stubs() as stubs:
        if first == 1:
            await open_shop(stubs.commands)
        await Load(count, buyers=64).run(stubs.commands, first=first)
    head: int = FeedServiceStub(stack.channel(stack.projector)).GetHead(GetHeadRequest(), timeout=10).position

    def projected() -> bool:
        views = stack.projections.ListProjections(ListProjectionsRequest(), timeout=10).projections
        return all(view.position == head for view in views)

    wait_until(projected, "the views are at the head", PATIENCE)
    return head


def repeat(read: Callable[[], int], events: int, process: psutil.Process) -> Rate:
    """`read` returns how many events it read: so many, else what is compared is not the same."""
    read()  # warm: connections, statements, pages
    count = 0
    started, cpu = time.perf_counter(), cpu_seconds_of(process)
    while (elapsed := time.perf_counter() - started) < SECONDS:
        found = read()
        assert found == events, f"{found} events were read of {events}"
        count += found
    return Rate(count / elapsed, (cpu_seconds_of(process) - cpu) / count)


def cpu_seconds_of(process: psutil.Process) -> float:
    """Its own alone: this process has the stores for children."""
    times = process.cpu_times()
    return times.user + times.system


def read_table(url: str) -> int:
    """As the projector's own loop reads it, in batches of the same size."""
    engine = create_database_engine(DatabaseSettings(url=SecretStr(url)), name="bench", pool_size=1, autocommit=True)
    count = position = 0
    with engine.connect() as connection:
        while events := read_events(connection, EVENTS, position, BATCH).events:
            for it in events:
                assert it.event.WhichOneof("kind")
            count += len(events)
            position = events[-1].position
    engine.dispose()
    return count


def follow(stub: FeedServiceStub, request: SubscribeRequest) -> int:
    """To the head, as a follower that looks at each event."""
    count = 0
    call = stub.Subscribe(request, timeout=PATIENCE)
    try:
        for message in call:
            for item in message.events:
                assert item.event.WhichOneof("kind")
                count += 1
            if message.caught_up:
                break
    except grpc.RpcError as error:
        raise SystemExit(f"the follower's stream ended: {error}") from error
    call.cancel()
    return count


if __name__ == "__main__":
    sys.exit(main())
