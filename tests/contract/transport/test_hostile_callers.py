"""Callers that do half of what a call is, on connections of their own: others do not notice."""

import contextlib

import pytest
from prometheus_client import REGISTRY

from commerce.projection.v1.projection_service_pb2 import ListProjectionsResponse, Projection
from tandem.runtime.call import Call
from tandem.runtime.worker import one_by_one
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
    monkeypatch.setattr("tandem.runtime.grpcio_requests._MAX_UNFINISHED", 20)
    served = await serve()
    caller = RawConnection(served.running.port, reads=True)
    for _ in range(50):
        caller.open(METHOD)

    async def most_are_refused() -> bool:
        return len(caller.ended_streams) == 40

    await until(most_are_refused, "the calls past half of the room have ended")
    assert (await served.call()).feed_head == 7
    caller.close()


MIB = 2**20
LARGE = ListProjectionsResponse(projections=[Projection(error="x" * MIB)]).SerializeToString()


@one_by_one
def much(call: Call) -> bytes:
    return LARGE if call.payload else b""


def closed() -> float:
    return REGISTRY.get_sample_value("tandem_connections_closed_total") or 0.0


async def until_closed(connections: float) -> None:
    async def are_closed() -> bool:
        return closed() == connections

    await until(are_closed, f"{connections} connections are closed")


# The server closes a connection when it holds too much, which may be before the caller has sent all that it means to.
MAY_BE_CLOSED = contextlib.suppress(ConnectionError)
# A field that nobody knows.
ASKS_MUCH = b"\x78\x01"


async def test_a_caller_that_does_not_take_its_answers_is_cut_off(serve: Serve) -> None:
    before = closed()
    served = await serve(much, max_held_bytes_per_connection=8 * MIB)
    caller = RawConnection(served.running.port, reads=False)
    with MAY_BE_CLOSED:
        for _ in range(30):
            caller.call(METHOD, ASKS_MUCH)
    await until_closed(before + 1)
    assert (await served.call()).feed_head == 0
    caller.close()


async def test_of_callers_that_together_do_not_take_too_much_one_is_cut_off(serve: Serve) -> None:
    before = closed()
    served = await serve(much, max_held_bytes=8 * MIB)
    callers = [RawConnection(served.running.port, reads=False) for _ in range(3)]
    for caller in callers:
        with MAY_BE_CLOSED:
            for _ in range(4):
                caller.call(METHOD, ASKS_MUCH)
    await until_closed(before + 1)
    assert (await served.call()).feed_head == 0
    for caller in callers:
        caller.close()


async def test_a_caller_whose_requests_do_not_end_is_cut_off(serve: Serve) -> None:
    before = closed()
    served = await serve(much, max_held_bytes_per_connection=4 * MIB)
    caller = RawConnection(served.running.port, reads=True)
    with MAY_BE_CLOSED:
        for _ in range(16):
            stream = caller.open(METHOD)
            caller.send(stream, message(b"x" * MIB)[: MIB // 2])
    await until_closed(before + 1)
    assert (await served.call()).feed_head == 0
    caller.close()


async def test_a_caller_that_takes_what_it_asks_for_is_not_cut_off(serve: Serve) -> None:
    before = closed()
    served = await serve(much, max_held_bytes_per_connection=3 * MIB, max_request_bytes=2 * MIB)
    for _ in range(60):
        assert len((await served.call(ASKS_MUCH)).projections[0].error) == MIB
        await served.call(LARGE)
        await served.call()
    assert closed() == before
