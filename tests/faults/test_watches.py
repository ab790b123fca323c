"""G8: watchers only move forward and end at the latest state: through cuts, a projector's failover, a server's stop."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from typing import TYPE_CHECKING

import grpc
import pytest

from commerce.command.v1 import command_service_pb2 as commands
from commerce.query.v1 import query_service_pb2 as queries
from commerce.query.v1.query_service_pb2_grpc import QueryServiceStub
from commerce.query.v1.views_pb2 import OrderDetails
from commerce.type.v1.consistency_pb2 import Consistency
from tandem.feed.token import decode_token
from tandem.testing.stack import kill, wait_until
from tests.support.builders import add_product, address, identity, place_order, register_customer
from tests.support.proxy import CuttingProxy
from tests.support.stack import Stack

if TYPE_CHECKING:
    # The stubs alone know it.
    from commerce.query.v1.query_service_pb2_grpc import QueryServiceAsyncStub

ORDERS = 5
WATCHERS = 60
CUTS = 12
PATIENCE = 60.0


class Watcher:
    """One order's watcher, who comes back with what it was told last; checks that each message goes on from there.

    shown: the versions, over all streams. ends: of streams that broke.
    """

    def __init__(self, order_id: str, token: str) -> None:
        self._request = queries.WatchOrderDetailsRequest(
            order_id=order_id, consistency=Consistency(at_least_as_fresh=token)
        )
        self._request.heartbeat_interval.FromSeconds(1)
        self.order_id = order_id
        self.position = 0
        self.shown: list[int] = []
        self.ends: list[str] = []
        self.messages = 0
        self.last = OrderDetails()

    @property
    def as_of(self) -> str:
        """The token of the last message."""
        return self._request.resume_from

    async def follow(self, stub: "QueryServiceAsyncStub") -> None:
        """One stream, until it breaks."""
        version = 0
        try:
            async for message in stub.WatchOrderDetails(self._request, timeout=PATIENCE):
                version = self._take(message, version)
        except grpc.aio.AioRpcError as error:
            self.ends.append(str(error.details()))
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise

    def _take(self, message: queries.WatchOrderDetailsResponse, version: int) -> int:
        """version: of the state before in this stream, 0 for none; returns the same after the message."""
        position = decode_token(message.as_of).position
        assert position >= self.position
        self.position = position
        self._request.ClearField("consistency")
        self._request.resume_from = message.as_of
        self.messages += 1
        if message.WhichOneof("event") == "heartbeat":
            return version
        shown = message.order_details.version
        assert not self.shown or shown > self.shown[-1], "a state was repeated, or an older one came"
        assert message.skipped_versions == (shown - version - 1 if version else 0)
        self.shown.append(shown)
        self.last = message.order_details
        return shown


class Crowd:
    """Watchers of a few orders in a thread's event loop; `address` is where those whose stream broke come back."""

    def __init__(self, order_ids: list[str], token: str, address: str) -> None:
        self.watchers = [Watcher(order_ids[number % len(order_ids)], token) for number in range(WATCHERS)]
        self.address = address
        self._leave = threading.Event()

    @contextmanager
    def watching(self) -> Iterator["Crowd"]:
        with ThreadPoolExecutor(1) as pool:
            watching: Future[None] = pool.submit(asyncio.run, self._watch())
            try:
                yield self
            finally:
                self._leave.set()
                watching.result(timeout=PATIENCE)

    async def _watch(self) -> None:
        async with AsyncExitStack() as exits:
            stubs: dict[str, QueryServiceAsyncStub] = {}
            options = [("grpc.initial_reconnect_backoff_ms", 20), ("grpc.max_reconnect_backoff_ms", 100)]

            async def watch(watcher: Watcher) -> None:
                while True:
                    if self.address not in stubs:
                        channel = await exits.enter_async_context(grpc.aio.insecure_channel(self.address, options))
                        stubs[self.address] = QueryServiceStub(channel)
                    await watcher.follow(stubs[self.address])
                    await asyncio.sleep(0.01)

            tasks = [asyncio.create_task(watch(watcher)) for watcher in self.watchers]
            leaving = asyncio.create_task(asyncio.to_thread(self._leave.wait))
            await asyncio.wait([leaving, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            for ended in await asyncio.gather(*tasks, return_exceptions=True):
                if not isinstance(ended, asyncio.CancelledError):
                    raise AssertionError("a watcher gave up") from ended

    @property
    def ends(self) -> list[str]:
        """Why streams broke so far."""
        return [end for watcher in self.watchers for end in watcher.ends]

    def wait_for(self, versions: dict[str, int], what: str) -> None:
        wait_until(
            lambda: all(it.shown and it.shown[-1] == versions[it.order_id] for it in self.watchers), what, PATIENCE
        )

    def wait_for_a_message(self, what: str) -> None:
        before = [it.messages for it in self.watchers]
        wait_until(lambda: all(it.messages > was for it, was in zip(self.watchers, before, strict=True)), what)


class Shop:
    """A few orders that change their address again and again; `versions` are the ones acknowledged."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._changes = 0
        stack.commands.RegisterCustomer(register_customer())
        stack.commands.AddProduct(add_product())
        placed = [stack.commands.PlaceOrder(place_order(number, lines={1: 1})) for number in range(ORDERS)]
        self.token = placed[-1].receipt.consistency_token
        self.versions = {it.order_id: it.receipt.version for it in placed}

    def change(self, times: int, then: Callable[[], None] = lambda: None) -> None:
        """Changes each order `times`; calls `then` after each round."""
        for _ in range(times):
            self._changes += 1
            for order_id in self.versions:
                request = commands.ChangeShippingAddressRequest(
                    request_id=identity("change", order_id, self._changes),
                    order_id=order_id,
                    address=address(street=f"Obere Str. {self._changes}"),
                )
                self.versions[order_id] = self._stack.commands.ChangeShippingAddress(request).receipt.version
            then()

    def check(self, crowd: Crowd) -> None:
        """That the queries answer what the watchers were shown last."""
        for watcher in crowd.watchers:
            request = queries.GetOrderDetailsRequest(order_id=watcher.order_id)
            request.consistency.at_least_as_fresh = watcher.as_of
            assert self._stack.queries.GetOrderDetails(request).order_details == watcher.last


@pytest.mark.parametrize("transport", ["native", "grpcio"])
def test_watchers_end_at_the_latest_state_whatever_breaks(new_stack: Callable[..., Stack], transport: str) -> None:
    stack = new_stack(transport=transport)
    standby, second = stack.new_projector(), stack.new_query_server()
    for service in (standby, second):
        service.start()
    shop = Shop(stack)
    proxy = CuttingProxy(("127.0.0.1", stack.query_server.port))
    with Crowd(list(shop.versions), shop.token, f"127.0.0.1:{proxy.port}").watching() as crowd:
        crowd.wait_for(shop.versions, "everybody was shown the order as it is")

        # All connections are cut, again and again, while the orders change.
        shop.change(CUTS, proxy.cut_all)
        # Nobody sees one more change before its stream of the last cut has ended.
        shop.change(1)
        crowd.wait_for(shop.versions, "everybody who was cut off is back and up to date")
        assert all(len(it.ends) >= 2 for it in crowd.watchers)

        # The projector is killed and another takes over. No watch ends, and all of them go on.
        ends = len(crowd.ends)
        shop.change(2)
        kill(stack.projector)
        shop.change(5)
        crowd.wait_for(shop.versions, "the standby's work is seen")
        assert len(crowd.ends) == ends
        shop.check(crowd)

        # The server stops: each watch has a last message and ends, and goes on at another server.
        crowd.address = second.address
        shop.change(2)
        stopping = ThreadPoolExecutor(1).submit(stack.query_server.stop)
        shop.change(5)
        assert stopping.result(timeout=PATIENCE) == 0
        crowd.wait_for(shop.versions, "everybody goes on at the other server")
        assert {it.ends[-1] for it in crowd.watchers} == {"the server is stopping"}
        crowd.wait_for_a_message("watches stay alive while nothing changes")
    proxy.close()
    stack.query_server.start()
    shop.check(crowd)
