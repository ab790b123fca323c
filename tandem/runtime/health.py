"""Health as gRPC's health protocol has it: overall and by service, asked for or watched."""

import asyncio
from typing import Any

from grpc_health.v1 import health, health_pb2


class Health(health.aio.HealthServicer):  # type: ignore[misc]
    """The library's, whose watches a stopping server can end: it would otherwise wait for them as for calls."""

    def __init__(self) -> None:
        super().__init__()
        self._watches: set[asyncio.Task[None]] = set()

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:  # noqa: N802 - its name in the protocol
        watch = asyncio.create_task(super().Watch(request, context))
        self._watches.add(watch)
        try:
            await asyncio.wait({watch})
        finally:
            self._watches.discard(watch)
            if not watch.done():
                watch.cancel()
                await asyncio.wait({watch})
        if not watch.cancelled():
            watch.result()

    def end_watches(self) -> None:
        """Ends the streams of those who watch now; they have been told the last state."""
        for watch in self._watches:
            watch.cancel()
