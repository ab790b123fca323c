"""An empty handler on Tandem's own transport: the most that any program in Python can do on it.

`python -m benchmarks.contenders.empty --port 50071 --answer FILE` answers every call of QueryService's GetOrderDetails
with the bytes in FILE until SIGTERM: the library's server with the options that Tandem's services have, and nothing
else of them. No decoding, admission, metrics or errors. With --at-once it answers on the thread that receives the
calls, without the event loop, as Tandem answers what is cached: what is left is the transport alone.
"""

import argparse
import asyncio
import signal
import threading
from pathlib import Path
from typing import Any

import grpc
import pygrpc_native.aio
import uvloop

# The options are the runtime's own business, but then so is this.
from tandem.runtime.guards import Guards
from tandem.runtime.native import NativeTransport
from tandem.runtime.server import transport_of
from tandem.runtime.settings import ServerSettings, grpc_options

SERVICE = "commerce.query.v1.QueryService"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.contenders.empty", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--answer", type=Path, required=True, help="the file whose bytes are the answer")
    parser.add_argument("--transport", choices=("auto", "native", "grpcio"), default="auto")
    parser.add_argument("--at-once", action="store_true", help="answer on the thread that receives (native only)")
    arguments = parser.parse_args()
    settings = ServerSettings(port=arguments.port, transport=arguments.transport)
    uvloop.run(serve(settings, arguments.answer.read_bytes(), at_once=arguments.at_once))


async def serve(settings: ServerSettings, answer: bytes, *, at_once: bool) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    if at_once:
        assert transport_of(settings) == "native", "--at-once is the native transport's"
        await _answer_at_once(settings, answer, stop)
    else:
        await _answer_on_the_loop(settings, answer, stop)


async def _answer_at_once(settings: ServerSettings, answer: bytes, stop: asyncio.Event) -> None:
    front = NativeTransport(_address(settings), settings, Guards(settings)).front
    front.add_methods([(f"/{SERVICE}/GetOrderDetails", False)])
    front.start()

    def receive() -> None:
        while (events := front.recv_batch_details(256)) is not None:
            for event in events:
                if event[0] == pygrpc_native.EVENT_CALL:
                    front.respond(event[1], answer)

    threading.Thread(target=receive, daemon=True).start()
    await stop.wait()
    await asyncio.to_thread(front.close)


async def _answer_on_the_loop(settings: ServerSettings, answer: bytes, stop: asyncio.Event) -> None:
    async def get_order_details(_request: bytes, _context: Any) -> bytes:
        return answer

    options = grpc_options(settings)
    server: grpc.aio.Server = (
        grpc.aio.server(options=options)
        if transport_of(settings) == "grpcio"
        else pygrpc_native.aio.server(options=options)
    )
    # Without (de)serialisers: bytes.
    handlers: dict[str, Any] = {"GetOrderDetails": grpc.unary_unary_rpc_method_handler(get_order_details)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    # The native transport hands what is only in the line above to a server of grpcio's behind it.
    server.add_registered_method_handlers(SERVICE, handlers)
    server.add_insecure_port(_address(settings))
    await server.start()
    await stop.wait()
    await server.stop(0)


def _address(settings: ServerSettings) -> str:
    return f"{settings.host}:{settings.port}"


if __name__ == "__main__":
    main()
