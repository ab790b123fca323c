"""A TCP proxy that makes a line longer: `python -m tests.support.delaying HOST PORT TARGET_PORT SECONDS`.

It listens at HOST and PORT and forwards to TARGET_PORT of loopback. What comes is passed on SECONDS later, each way:
half of a round trip. What is on its way waits in a queue with the time when it is due, so nothing takes longer because
much is under way. A process of its own: the program that measures does not run while this has something to pass on.
"""

import asyncio
import socket
import sys
from collections import deque
from contextlib import suppress
from pathlib import Path

from tandem.cli.child import HOST, Child

# Of a direction, on its way. More is not read: a line holds no more than its ends let it.
_MOST_BYTES = 64 * 2**20
_PIECE = 2**16


class DelayingProxy(Child):
    """host, port: where it listens. target: a port of loopback. seconds: that each piece takes longer, each way."""

    def __init__(self, host: str, port: int, target: int, seconds: float, log: Path) -> None:
        super().__init__("delaying proxy", port, log)
        self.host = host
        self._target = target
        self._seconds = seconds

    def launch(self) -> None:
        words = [self.host, str(self.port), str(self._target), str(self._seconds)]
        self._spawn([sys.executable, "-m", __name__, *words], folder=Path(__file__).parents[2])

    def serves(self) -> bool:
        try:
            socket.create_connection((self.host, self.port), 1).close()
        except OSError:
            return False
        return True


class _Direction:
    """Passes on what comes from one end to the other."""

    def __init__(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, seconds: float) -> None:
        self._source = source
        self._target = target
        self._seconds = seconds
        # The end of it is an empty piece.
        self._due: deque[tuple[float, bytes]] = deque()
        self._bytes = 0
        self._changed = asyncio.Condition()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._take())
            tasks.create_task(self._pass_on())

    async def _take(self) -> None:
        piece = b"?"
        while piece:
            try:
                piece = await self._source.read(_PIECE)
            except OSError:
                piece = b""
            async with self._changed:
                await self._changed.wait_for(lambda: self._bytes < _MOST_BYTES)
                self._due.append((asyncio.get_running_loop().time() + self._seconds, piece))
                self._bytes += len(piece)
                self._changed.notify_all()

    async def _pass_on(self) -> None:
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: bool(self._due))
            at, piece = self._due[0]
            if (seconds := at - asyncio.get_running_loop().time()) > 0:
                await asyncio.sleep(seconds)
            if not piece:
                break
            try:
                self._target.write(piece)
                await self._target.drain()
            except OSError:
                break
            async with self._changed:
                self._due.popleft()
                self._bytes -= len(piece)
                self._changed.notify_all()
        self._target.close()
        with suppress(OSError):
            await self._target.wait_closed()


async def _serve(host: str, port: int, target: int, seconds: float) -> None:
    async def take(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        try:
            server, to_server = await asyncio.open_connection(HOST, target)
        except OSError:
            to_client.close()
            return
        for it in (to_client, to_server):
            it.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.gather(_Direction(client, to_server, seconds).run(), _Direction(server, to_client, seconds).run())

    server = await asyncio.start_server(take, host, port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
