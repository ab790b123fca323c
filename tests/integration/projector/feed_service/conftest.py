"""FeedService of a projector in this process, on both transports. The read database is not there: it needs none."""

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from google.rpc import error_details_pb2
from grpc import aio
from grpc_status import rpc_status
from pydantic import SecretStr

from commerce.event.v1.event_pb2 import Event
from projector.app import build
from projector.settings import Settings
from tandem.feed.archive import ArchiveSettings
from tandem.feed.service import FeedServiceSettings
from tandem.runtime.server import RunningApplication
from tandem.runtime.settings import DatabaseSettings, ServerSettings
from tests.integration.projector.conftest import Stores
from tests.support import events
from tests.support.follower import feed_stub

if TYPE_CHECKING:
    from commerce.feed.v1.feed_service_pb2_grpc import FeedServiceAsyncStub


@dataclass
class FeedServer:
    """A running projector, and a channel to it."""

    running: RunningApplication
    channel: aio.Channel

    @property
    def stub(self) -> "FeedServiceAsyncStub":
        return feed_stub(self.channel)

    def another_channel(self) -> aio.Channel:
        """On a connection of its own, which takes no more ahead than HTTP/2 says."""
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]
        return aio.insecure_channel(f"127.0.0.1:{self.running.port}", options)


ServeFeed = Callable[..., Coroutine[Any, Any, FeedServer]]


@pytest.fixture(params=["native", "grpcio"])
def transport(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture
async def serve_feed(stores: Stores, transport: str) -> AsyncIterator[ServeFeed]:
    """Starts a projector; takes the archive's folder, and FeedServiceSettings by name."""
    async with AsyncExitStack() as exits:

        async def start(archive: Path | None = None, **feed_service: Any) -> FeedServer:
            settings = Settings(
                feed_database=DatabaseSettings(url=SecretStr(stores.write_url)),
                read_database=DatabaseSettings(url=SecretStr(f"{stores.read_url}_absent")),
                server=ServerSettings(port=0, transport=transport, drain_seconds=5),
                archive=ArchiveSettings(folder=archive),
                feed_service=FeedServiceSettings(**feed_service),
            )
            running = RunningApplication(build(settings))
            await running.start()
            exits.push_async_callback(running.stop)
            channel = await exits.enter_async_context(aio.insecure_channel(f"127.0.0.1:{running.port}"))
            return FeedServer(running, channel)

        yield start


def prices(count: int, first: int = 1) -> list[Event]:
    """Small events, each another one."""
    numbers = range(first, first + count)
    return [events.price_changed(1 + number % 7, version=number, price=number) for number in numbers]


@dataclass(frozen=True)
class Refusal:
    """How a stream ended."""

    code: str
    reason: str
    metadata: dict[str, str]


async def refused(ending: Coroutine[Any, Any, Any]) -> Refusal:
    """The end of a follower's `follow`, or of another call."""
    with pytest.raises(aio.AioRpcError) as raised:
        await ending
    status = rpc_status.from_call(raised.value)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return Refusal(raised.value.code().name, info.reason, dict(info.metadata))
