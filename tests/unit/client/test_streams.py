import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any

import grpc
import pytest

from commerce.feed.v1 import feed_service_pb2 as feed
from commerce.feed.v1.feed_service_pb2 import SubscribeRequest, SubscribeResponse
from commerce.query.v1 import query_service_pb2 as queries
from commerce.query.v1.query_service_pb2 import WatchOrderDetailsRequest, WatchOrderDetailsResponse
from tandem.client import streams
from tandem.client.errors import (
    CallFailed,
    CursorExpired,
    DeadlineExceeded,
    Details,
    EventUnreadable,
    InvalidRequest,
    NotFound,
    Overloaded,
    ServerBug,
    TokenExpired,
    TokenOutdated,
    Unavailable,
)
from tandem.client.streams import RESUMPTIONS, async_resuming, resuming
from tools.descriptors import load_contract

EXPIRED = TokenExpired(grpc.StatusCode.UNAUTHENTICATED, details=Details(reason="TOKEN_EXPIRED"))
STOPPING = Unavailable(grpc.StatusCode.UNAVAILABLE, details=Details(reason="STOPPING"))


def message(cursor: str) -> SubscribeResponse:
    return SubscribeResponse(cursor=cursor)


class Stream:
    """Gives its messages, then raises its error, or ends well without one."""

    def __init__(self, *messages: Any, error: CallFailed | None = None) -> None:
        self._messages = list(messages)
        self._error = error
        self.cancelled = False

    def __iter__(self) -> Iterator[Any]:
        yield from self._messages
        if self._error:
            raise self._error

    async def __aiter__(self) -> AsyncIterator[Any]:
        for it in self:
            yield it

    def cancel(self) -> None:
        self.cancelled = True


class Server:
    """A stub's method that opens these streams, one after the other."""

    def __init__(self, *streams: Stream) -> None:
        self.streams = streams
        self.requests: list[Any] = []

    def __call__(self, request: Any) -> Any:
        copy = type(request)()
        copy.CopyFrom(request)
        self.requests.append(copy)
        return self.streams[len(self.requests) - 1]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The longest that each pause could have been; none is waited for."""
    drawn: list[float] = []

    def draw(_: float, longest: float) -> float:
        drawn.append(longest)
        return 0.0

    monkeypatch.setattr("random.uniform", draw)
    return drawn


def collect(server: Server, request: Any, count: int) -> list[Any]:
    iterator = resuming(server, request)
    received = [next(iterator) for _ in range(count)]
    iterator.close()  # type: ignore[attr-defined]
    return received


async def collect_async(server: Server, request: Any, count: int) -> list[Any]:
    received = []
    async with aclosing(async_resuming(server, request)) as messages:  # type: ignore[type-var]
        async for it in messages:
            received.append(it)
            if len(received) == count:
                break
    return received


def in_asyncio(server: Server, request: Any, count: int) -> list[Any]:
    return asyncio.run(collect_async(server, request, count))


both = pytest.mark.parametrize("follow", [collect, in_asyncio], ids=["threads", "asyncio"])
Follow = Callable[[Server, Any, int], list[Any]]


def test_every_stream_of_the_contract_can_be_resumed() -> None:
    found = {
        method.name: [
            (asked, told)
            for asked, told in RESUMPTIONS.items()
            if asked in method.input_type.fields_by_name and told in method.output_type.fields_by_name
        ]
        for file in (feed, queries)
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if method.server_streaming
    }
    in_contract = {rpc.name for service in load_contract().services for rpc in service.rpcs if rpc.streams}
    # Operators', which end by themselves.
    assert found.keys() == in_contract - {"GetHistory", "Verify"}
    assert [name for name, fields in found.items() if len(fields) != 1] == []


@both
def test_a_stream_that_ended_with_its_token_goes_on_with_the_next_one(follow: Follow, pauses: list[float]) -> None:
    server = Server(Stream(message("1a"), error=EXPIRED), Stream(message("1b"), error=EXPIRED), Stream(error=EXPIRED))
    with pytest.raises(TokenExpired):
        follow(server, SubscribeRequest(from_beginning=True), 3)
    assert [it.after_cursor for it in server.requests] == ["", "1a", "1b"]


@both
def test_a_stream_goes_on_after_its_last_message_however_it_ended(follow: Follow, pauses: list[float]) -> None:
    server = Server(
        Stream(message("1a"), message("1b"), error=STOPPING),
        Stream(error=Overloaded(grpc.StatusCode.RESOURCE_EXHAUSTED)),
        Stream(message("1c"), error=DeadlineExceeded(grpc.StatusCode.DEADLINE_EXCEEDED)),
        Stream(error=CallFailed(grpc.StatusCode.INTERNAL, "RST_STREAM")),
        Stream(message("1d")),
        Stream(message("1e"), message("1f")),
    )
    request = SubscribeRequest(from_beginning=True, event_types=["order_placed"])
    received = follow(server, request, 5)
    assert [it.cursor for it in received] == ["1a", "1b", "1c", "1d", "1e"]
    assert [(it.from_beginning, it.after_cursor) for it in server.requests] == [
        (True, ""),
        (False, "1b"),
        (False, "1b"),
        (False, "1c"),
        (False, "1c"),
        (False, "1d"),
    ]
    assert all(list(it.event_types) == ["order_placed"] for it in server.requests)
    assert all(it.cancelled for it in server.streams)
    assert request.from_beginning, "the caller's request is not changed"


@both
def test_a_watch_goes_on_from_its_as_of(follow: Follow, pauses: list[float]) -> None:
    first, second = (WatchOrderDetailsResponse(as_of=as_of) for as_of in ("1a", "1b"))
    server = Server(Stream(first, error=STOPPING), Stream(second))
    assert follow(server, WatchOrderDetailsRequest(order_id="7"), 2) == [first, second]
    assert [(it.order_id, it.resume_from) for it in server.requests] == [("7", ""), ("7", "1a")]


@both
@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest(grpc.StatusCode.INVALID_ARGUMENT),
        NotFound(grpc.StatusCode.NOT_FOUND),
        TokenOutdated(grpc.StatusCode.FAILED_PRECONDITION),
        CursorExpired(grpc.StatusCode.OUT_OF_RANGE),
        EventUnreadable(grpc.StatusCode.UNAVAILABLE),
        ServerBug(grpc.StatusCode.INTERNAL, details=Details(reason="INTERNAL")),
        CallFailed(grpc.StatusCode.UNIMPLEMENTED),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_another_stream_would_end_with_too_is_raised(
    follow: Follow, error: CallFailed, pauses: list[float]
) -> None:
    server = Server(Stream(message("1a"), error=STOPPING), Stream(error=error))
    with pytest.raises(type(error)):
        follow(server, SubscribeRequest(from_now=True), 2)
    assert all(it.cancelled for it in server.streams)


@both
def test_pauses_grow_while_nothing_comes_and_a_message_makes_them_short_again(
    follow: Follow, pauses: list[float]
) -> None:
    broken = [Stream(error=STOPPING) for _ in range(8)]
    follow(Server(*broken, Stream(message("1a")), Stream(message("1b"))), SubscribeRequest(), 2)
    assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 0.2]


class Silent(Stream):
    """Says nothing until it is cancelled."""

    def __iter__(self) -> Iterator[Any]:
        while not self.cancelled:
            time.sleep(0.001)
        raise CallFailed(grpc.StatusCode.CANCELLED)
        yield

    async def __aiter__(self) -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield


@both
def test_a_stream_that_misses_its_heartbeats_is_left_for_another(
    follow: Follow, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_HEARTBEATS_MISSED", 0.05)
    request = SubscribeRequest(after_cursor="1a")
    request.heartbeat_interval.FromSeconds(1)
    server = Server(Silent(), Stream(message("1b")))
    assert follow(server, request, 1) == [message("1b")]
    assert server.streams[0].cancelled
    assert server.requests[1].after_cursor == "1a"
