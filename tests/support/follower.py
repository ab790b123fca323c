"""A service that follows the feed, as docs/feed.md says that one should."""

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc

from commerce.feed.v1.feed_service_pb2 import FeedItem, SubscribeRequest, SubscribeResponse
from commerce.feed.v1.feed_service_pb2_grpc import FeedServiceStub

if TYPE_CHECKING:
    # The stubs alone know it.
    from commerce.feed.v1.feed_service_pb2_grpc import FeedServiceAsyncStub

PATIENCE = 60.0
"""Seconds until a stream that does not bring what is waited for is given up."""


class Follower:
    """Keeps what it got and the cursor after it; checks that each message goes on where the one before ended.

    request: from_beginning, event_types and so on. ends: of streams that broke. caught_up: how often it was told so.
    """

    def __init__(self, **request: Any) -> None:
        self._request = SubscribeRequest(**request)
        self.items: list[FeedItem] = []
        self.sizes: list[int] = []
        self.cursor = ""
        self.position = 0
        self.head = 0
        self.caught_up = 0
        self.ends: list[str] = []
        self.heartbeats = 0

    @property
    def positions(self) -> list[int]:
        return [item.position for item in self.items]

    def request(self) -> SubscribeRequest:
        """Where it begins, and after the first message where it goes on."""
        request = SubscribeRequest()
        request.CopyFrom(self._request)
        if self.cursor:
            request.after_cursor = self.cursor
        return request

    def take(self, response: SubscribeResponse) -> None:
        positions = [item.position for item in response.events]
        assert response.cursor
        assert positions == sorted(set(positions))
        assert not positions or self.position < positions[0] <= positions[-1] <= response.position
        assert self.position <= response.position <= response.head_position
        self.items += response.events
        self.sizes.append(len(response.events))
        self.cursor, self.position, self.head = response.cursor, response.position, response.head_position
        self.caught_up += response.caught_up
        self.heartbeats += not response.events

    async def follow(self, stub: "FeedServiceAsyncStub", until: Callable[["Follower"], bool]) -> "Follower":
        """One stream, until the follower is content. Raises AioRpcError when it ends before."""
        call = stub.Subscribe(self.request(), timeout=PATIENCE)
        try:
            async for response in call:
                self.take(response)
                if until(self):
                    return self
        finally:
            call.cancel()
        raise AssertionError("the stream ended well, and never does")

    async def follow_through(self, until: Callable[["Follower"], bool], *stubs: "FeedServiceAsyncStub") -> "Follower":
        """As `follow`, and whenever the stream breaks again with the cursor, at the next one of the servers."""
        for stub in itertools.cycle(stubs):
            try:
                return await self.follow(stub, until)
            except grpc.aio.AioRpcError as error:
                self.ends.append(str(error.details()))
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    raise
        raise AssertionError("no server to follow")


def caught_up(follower: Follower) -> bool:
    return follower.caught_up > 0


def at(position: int) -> Callable[[Follower], bool]:
    return lambda follower: follower.position >= position


def feed_stub(channel: grpc.aio.Channel) -> "FeedServiceAsyncStub":
    stub: FeedServiceAsyncStub = FeedServiceStub(channel)
    return stub
