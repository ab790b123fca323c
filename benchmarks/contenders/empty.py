"""An empty handler on Tandem's own transport: the most that any program in Python can do on it.

`python -m benchmarks.contenders.empty --port 50071 --answer FILE` answers every call of QueryService's GetOrderDetails
with the bytes in FILE until SIGTERM: the server with the options that Tandem's services have, and nothing else of them.
No decoding, admission, metrics or errors.
"""

import argparse
import asyncio
import signal
from pathlib import Path
from typing import Any

import grpc
import uvloop

# The server with its options, as the services have it. It is the runtime's own business, but then so is this.
from tandem.runtime.process import _new_server
from tandem.runtime.settings import ServerSettings

SERVICE = "commerce.query.v1.QueryService"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.contenders.empty", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--answer", type=Path, required=True, help="the file whose bytes are the answer")
    parser.add_argument("--transport", choices=("auto", "native", "grpcio"), default="auto")
    arguments = parser.parse_args()
    settings = ServerSettings(port=arguments.port, transport=arguments.transport)
    uvloop.run(serve(settings, arguments.answer.read_bytes()))


async def serve(settings: ServerSettings, answer: bytes) -> None:
    async def get_order_details(_request: bytes, _context: Any) -> bytes:
        return answer

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    server = _new_server(settings)
    # Without (de)serialisers: bytes.
    handlers: dict[str, Any] = {"GetOrderDetails": grpc.unary_unary_rpc_method_handler(get_order_details)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    # The native transport takes these alone; what is only in the line above it would leave to grpcio, behind itself.
    server.add_registered_method_handlers(SERVICE, handlers)
    server.add_insecure_port(f"{settings.host}:{settings.port}")
    await server.start()
    await stop.wait()
    await server.stop(0)


if __name__ == "__main__":
    main()
