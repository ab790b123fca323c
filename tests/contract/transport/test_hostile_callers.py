"""Callers that do half of what a call is, on connections of their own: others do not notice."""

import pytest

from tests.contract.transport.conftest import METHOD, Serve, Transport
from tests.support.http2 import RawConnection, message
from tests.support.stack import until


@pytest.fixture(params=["queued"])
def inline() -> bool:
    return False


async def test_calls_that_end_without_a_message_are_answered(serve: Serve) -> None:
    served = await serve()
    caller = RawConnection(served.running.port, reads=True)
    for _ in range(500):
        caller.open(METHOD, end=True)

    async def all_are_answered() -> bool:
        return len(caller.ended_streams) == 500

    await until(all_are_answered, "each call has ended")
    assert (await served.call()).feed_head == 7
    caller.close()


@pytest.mark.parametrize("transport", ["grpcio"])
async def test_a_request_that_does_not_end_is_given_up(serve: Serve, transport: Transport) -> None:
    served = await serve(request_seconds=0.2)
    caller = RawConnection(served.running.port, reads=True)
    stream = caller.open(METHOD)
    caller.send(stream, message(b"x" * 100)[:50])

    async def is_given_up() -> bool:
        return stream in caller.ended_streams

    await until(is_given_up, "the call has ended")
    assert (await served.call()).feed_head == 7
    caller.close()


@pytest.mark.parametrize("transport", ["grpcio"])
async def test_one_connections_requests_that_do_not_end_leave_room_for_others(
    serve: Serve, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tandem.runtime.grpcio._MAX_UNFINISHED", 20)
    served = await serve()
    caller = RawConnection(served.running.port, reads=True)
    for _ in range(50):
        caller.open(METHOD)

    async def most_are_refused() -> bool:
        return len(caller.ended_streams) == 40

    await until(most_are_refused, "the calls past half of the room have ended")
    assert (await served.call()).feed_head == 7
    caller.close()
