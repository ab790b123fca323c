"""Callers that do half of what a call is, on connections of their own: others do not notice."""

import contextlib
import random
import socket
from pathlib import Path

import grpc
import pytest

from commerce.projection.v1.projection_service_pb2 import ListProjectionsResponse, Projection
from tandem.runtime.call import Call
from tandem.runtime.worker import one_by_one
from tandem.testing.stack import until, wait_until
from tests.contract.transport.conftest import METHOD, Serve, Transport
from tests.support.http2 import RawConnection, broken_connections, message
from tests.support.metrics import sample

# The server closes a connection that floods it or makes it hold too much, maybe before the caller has sent all of that.
MAY_BE_CLOSED = contextlib.suppress(ConnectionError)


@pytest.fixture(params=["queued"])
def inline() -> bool:
    return False


@pytest.mark.parametrize("sent", broken_connections(random.Random(1)))
async def test_a_connection_that_is_no_grpc_holds_nobody_up(serve: Serve, sent: str) -> None:
    served = await serve()
    with socket.create_connection(("127.0.0.1", served.running.port)) as opened:
        # It may be closed before all of that is sent.
        with contextlib.suppress(OSError):
            opened.settimeout(5)
            opened.sendall(broken_connections(random.Random(1))[sent])
        assert (await served.call()).feed_head == 7
    assert (await served.call()).feed_head == 7


async def test_long_headers_are_answered_or_end_their_own_connection_alone(serve: Serve) -> None:
    served = await serve()
    caller = RawConnection(served.running.port, reads=True)
    with MAY_BE_CLOSED:
        caller.open(METHOD, headers=[(f"x-{number}", "x" * 120) for number in range(200)], end=True)

    async def is_over() -> bool:
        return bool(caller.ended_streams) or caller.ended.is_set()

    await until(is_over, "the call, or the connection, has ended")
    assert (await served.call()).feed_head == 7
    caller.close()


async def test_calls_that_are_taken_back_at_once_end_their_own_connection_at_most(serve: Serve) -> None:
    served = await serve()
    caller = RawConnection(served.running.port, reads=True)
    with MAY_BE_CLOSED:
        for _ in range(1_000):
            caller.reset(caller.open(METHOD))
    assert (await served.call()).feed_head == 7
    caller.close()


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
    served = await serve(request_seconds=1.0)
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


@pytest.mark.parametrize("transport", ["grpcio"])
async def test_calls_that_are_taken_back_at_once_wait_up_to_a_limit_and_a_burst_of_others_is_answered(
    serve: Serve, transport: Transport
) -> None:
    served = await serve(max_concurrent_calls=4_000)
    legal, hostile, third = callers = [RawConnection(served.running.port, reads=True) for _ in range(3)]
    # Until the next `await` nothing of ours looks at a call: all that come wait in grpcio, 4,000 at most.
    burst = {legal.call(METHOD) for _ in range(3_500)}
    wait_until(legal.ping().is_set, "the burst has come")
    for _ in range(3_000):
        hostile.reset(hostile.open(METHOD))
    wait_until(hostile.ping().is_set, "the calls that are taken back have come")
    refused = {third.open(METHOD) for _ in range(100)}
    wait_until(lambda: third.ended_streams == refused, "what is past the limit is refused")
    assert not legal.ended_streams

    async def the_burst_is_answered() -> bool:
        return legal.ended_streams == burst

    await until(the_burst_is_answered, "each call of the burst has ended")
    assert {legal.headers[it]["grpc-status"] for it in burst} == {"0"}
    assert (await served.call()).feed_head == 7
    for it in callers:
        it.close()


MIB = 2**20
LARGE = ListProjectionsResponse(projections=[Projection(error="x" * MIB)]).SerializeToString()


@one_by_one
def much(call: Call) -> bytes:
    return LARGE if call.payload else b""


def closed() -> float:
    return sample("tandem_connections_closed_total") or 0.0


async def until_closed(connections: float) -> None:
    async def are_closed() -> bool:
        return closed() == connections

    await until(are_closed, f"{connections} connections are closed")


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


@pytest.mark.parametrize("transport", ["native"])
async def test_callers_of_a_unix_socket_that_together_do_not_take_too_much_are_all_cut_off(
    serve: Serve, transport: Transport, tmp_path: Path
) -> None:
    before = closed()
    path = tmp_path / "server.sock"
    served = await serve(much, host=f"unix:{path}", max_held_bytes=8 * MIB)
    for _ in range(30):
        assert len((await served.call(ASKS_MUCH)).projections[0].error) == MIB
    assert closed() == before, "who takes what it asks for"
    callers = [RawConnection(path, reads=False) for _ in range(3)]
    for caller in callers:
        with MAY_BE_CLOSED:
            for _ in range(10):
                caller.call(METHOD, ASKS_MUCH)
    await until_closed(before + len(callers) + 1)

    async def is_answered() -> bool:
        try:
            return len((await served.call(ASKS_MUCH)).projections[0].error) == MIB
        except grpc.aio.AioRpcError as error:
            # The channel has not seen yet that its connection was closed too.
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False

    await until(is_answered, "the others are answered on a new connection")
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
