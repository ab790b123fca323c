"""Connections of grpcio end in peace when they are old, so that servers that come later get their share."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any

import grpc
from google.protobuf.message import Message

from commerce.query.v1 import query_service_pb2 as queries
from tandem.client.channel import options_for
from tandem.runtime.call import Call, StreamCall
from tandem.runtime.server import Application, RunningApplication, Service
from tandem.runtime.settings import ServerSettings
from tandem.runtime.worker import one_by_one
from tandem.testing.ports import free_port
from tests.contract.transport.conftest import PATIENCE, worker
from tests.support.names import naming

SERVICE = queries.DESCRIPTOR.services_by_name["QueryService"]
GET, WATCH = "GetProduct", "WatchOrderDetails"


class Server:
    """Its answers name it, and its watch sends a message for each that `next` lets through."""

    def __init__(self, host: str, port: int, age: float) -> None:
        self.settings = ServerSettings(
            host=host, port=port, transport="grpcio", drain_seconds=0, max_connection_age_seconds=age
        )
        self.next = asyncio.Semaphore(0)

        @one_by_one
        def answer(call: Call) -> Message:
            return queries.GetProductResponse(as_of=host)

        async def ready() -> bool:
            return True

        others = worker(answer)
        workers = {it.name: others for it in SERVICE.methods if it.name != WATCH}
        service = Service(SERVICE, workers, {WATCH: self._watch})
        self.running = RunningApplication(Application("test_server", self.settings, (service,), ready, (others,)))

    async def _watch(self, request: Any, call: StreamCall) -> AsyncGenerator[Any, None]:
        while True:
            await self.next.acquire()
            yield queries.WatchOrderDetailsResponse(as_of=self.settings.host)


def of(channel: grpc.aio.Channel, method: str, response: Any) -> Any:
    make = channel.unary_stream if method == WATCH else channel.unary_unary
    return make(f"/{SERVICE.full_name}/{method}", bytes, response.FromString)


async def test_a_client_with_one_channel_comes_to_a_server_that_was_added_and_none_of_its_calls_fails() -> None:
    first, second = "127.0.0.1", "127.0.0.2"
    port = free_port()
    async with AsyncExitStack() as exits:
        names = exits.enter_context(naming(first))
        # The library sends a call that met the end of its connection once more, and no second time: a connection lives
        # longer than a call takes, on a busy machine too.
        server, late = Server(first, port, age=2), Server(second, port, age=2)
        await server.running.start()
        exits.push_async_callback(server.running.stop)
        target = names.target(port)
        # The library asks for a name twice a minute at most. A call that meets the end of its connection before the
        # server has seen it is sent anew: by the library as it comes, by our sessions, which switch that off in it.
        options = options_for(target, [("grpc.dns_min_time_between_resolutions_ms", 100), ("grpc.enable_retries", 1)])
        channel = await exits.enter_async_context(grpc.aio.insecure_channel(target, options))
        get, watch = of(channel, GET, queries.GetProductResponse), of(channel, WATCH, queries.WatchOrderDetailsResponse)
        watching = watch(b"", timeout=PATIENCE)
        server.next.release()
        assert (await watching.read()).as_of == first

        await late.running.start()
        exits.push_async_callback(late.running.stop)
        names.addresses = first, second
        answered: set[str] = set()

        async def call() -> None:
            # A call that was on its way when its connection ended would fail here.
            while second not in answered:
                answered.add((await get(b"", timeout=PATIENCE)).as_of)

        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(call() for _ in range(8)))
        assert answered == {first, second}
        server.next.release()
        assert (await watching.read()).as_of == first, "the watch that was begun before goes on"
        watching.cancel()
