"""A connection to NATS does not wait for a server that takes nothing more, and ends also where that is gone."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tandem.relay.jetstream import NatsConnection
from tandem.relay.settings import NatsSettings
from tandem.relay.sink import SinkAway
from tandem.testing.stack import pause, resume, until
from tests.support.nats import NatsServer

# More than the connection and the kernel keep of what is not taken.
_MESSAGES, _BYTES = 60, 500_000


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[dict[int, NatsServer]]:
    """Two that know nothing of each other, by port."""
    started = [NatsServer(tmp_path, name) for name in ("one", "other")]
    for it in started:
        it.start()
    yield {it.port: it for it in started}
    for it in started:
        it.end()


async def test_a_server_that_takes_nothing_more_is_left_for_another(servers: dict[int, NatsServer]) -> None:
    connection = NatsConnection(NatsSettings(servers=tuple(it.url for it in servers.values())), "test")

    async def port() -> int:
        with contextlib.suppress(SinkAway):
            client = (await connection.jetstream())._nc
            assert client.connected_url is not None
            return int(client.connected_url.port or 0)
        return 0

    first = await port()
    pause(servers[first])
    try:
        acks = await connection.acks()

        async def fill() -> None:
            for _ in range(_MESSAGES):
                (await acks.publish("subject", bytes(_BYTES), {}, 1)).cancel()

        with pytest.raises(TimeoutError):
            await fill()
        connection.note_silence()

        async def is_at_the_other() -> bool:
            return await port() not in {0, first}

        await until(is_at_the_other, "the other server is there", 20)
        await connection.close()
    finally:
        resume(servers[first])


async def test_a_connection_ends_whatever_a_server_that_is_gone_was_still_to_be_told(
    servers: dict[int, NatsServer],
) -> None:
    before = asyncio.all_tasks()
    [server, _] = servers.values()
    connection = NatsConnection(NatsSettings(servers=(server.url,)), "test")
    acks = await connection.acks()
    client = (await connection.jetstream())._nc
    server.end()

    async def is_gone() -> bool:
        return not client.is_connected

    await until(is_gone, "the connection is known to be broken")
    # It is kept for when the server is back.
    (await acks.publish("subject", b"", {}, 1)).cancel()
    await connection.close()
    assert client.is_closed

    async def are_over() -> bool:
        return asyncio.all_tasks() == before

    await until(are_over, "nothing of it runs on")
