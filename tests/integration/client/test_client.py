"""The client library at real servers, through a projector that stands still, cut connections and a rolling restart."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from typing import Any

import pytest

from commerce.command.v1 import command_service_pb2 as commands
from commerce.feed.v1.feed_service_pb2 import SubscribeRequest
from commerce.query.v1 import query_service_pb2 as queries
from commerce.query.v1.views_pb2 import OrderDetails
from commerce.type.v1.order_status_pb2 import OrderStatus
from shop.client import AsyncClient, Client, Reason, async_rows, rows
from tandem.client.channel import CallDefaults
from tandem.client.errors import NotFound, RuleBroken, ViewBehind
from tandem.client.horizon import MOST_TOKENS
from tandem.client.optimistic import Optimistic
from tandem.client.streams import async_resuming, resuming
from tandem.testing.stack import pause, resume, wait_until
from tests.integration.client.conftest import PLENTY, Addresses
from tests.support.builders import identity, place_order
from tests.support.proxy import CuttingProxy
from tests.support.stack import Stack

PAID = OrderStatus.ORDER_STATUS_PAID


def order(number: int, wait: float = 0.0) -> queries.GetOrderDetailsRequest:
    request = queries.GetOrderDetailsRequest(order_id=identity("order", number))
    if wait:
        request.consistency.max_wait.FromMilliseconds(int(wait * 1000))
    return request


def test_a_session_reads_what_it_wrote_while_the_projector_stands_still(stack: Stack, client: Client) -> None:
    session, other = client.session(), client.session()
    pause(stack.projector)
    try:
        session.commands.PlaceOrder(place_order(101))
        with pytest.raises(ViewBehind) as raised:
            session.queries.GetOrderDetails(order(101, wait=0.2))
        assert raised.value.behind
        with pytest.raises(NotFound):
            other.queries.GetOrderDetails(order(101))
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(session.queries.GetOrderDetails, order(101, wait=60))
            assert not reading.done()
            resume(stack.projector)
            assert reading.result(timeout=60).order_details.order_id == identity("order", 101)
    finally:
        resume(stack.projector)
    # What it saw can be handed on, as text, to another session elsewhere.
    other.learn(session.token)
    assert other.queries.GetOrderDetails(order(101)).order_details.version == 1


@pytest.mark.parametrize("newest_first", [False, True])
def test_a_session_sees_what_several_others_wrote(stack: Stack, client: Client, newest_first: bool) -> None:
    """Of tokens that come in either order, through answers and watches, and in a session that is begun with them."""
    first, second = (180, 181) if newest_first else (182, 183)
    writers = [client.session(), client.session()]
    writers[0].commands.PlaceOrder(place_order(first))
    assert writers[0].queries.GetOrderDetails(order(first, wait=60)).order_details.version == 1
    learner = client.session()
    pause(stack.projector)
    try:
        writers[1].commands.PlaceOrder(place_order(second))
        for writer in reversed(writers) if newest_first else writers:
            learner.learn(writer.token)
        sessions = [learner, client.session(learner.token)]
        for session in sessions:
            with pytest.raises(ViewBehind):
                session.queries.GetOrderDetails(order(first, wait=0.2))
            watch = queries.WatchOrderDetailsRequest(order_id=identity("order", first))
            watch.consistency.max_wait.FromMilliseconds(200)
            with pytest.raises(ViewBehind):
                next(session.queries.WatchOrderDetails(watch))
    finally:
        resume(stack.projector)
    for session in sessions:
        before = session.token
        assert session.queries.GetOrderDetails(order(second, wait=60)).order_details.version == 1
        # The answer's state stands for both writes, and its token takes their place.
        assert len(session.token) < len(before)
        assert session.queries.GetOrderDetails(order(first)).order_details.version == 1


def test_a_session_with_more_tokens_than_a_query_may_carry_sees_all_that_was_written(
    stack: Stack, client: Client
) -> None:
    session = client.session()
    numbers = range(200, 202 + MOST_TOKENS)
    pause(stack.projector)
    try:
        for number in numbers:
            writer = client.session()
            writer.commands.PlaceOrder(place_order(number, customer=6, lines={PLENTY: 1}))
            session.learn(writer.token)
        with pytest.raises(ViewBehind):
            session.queries.GetOrderDetails(order(numbers[0], wait=0.2))
    finally:
        resume(stack.projector)
    assert session.queries.GetOrderDetails(order(numbers[-1], wait=60)).order_details.version == 1
    listed = [it.order_id for it in rows(session.queries.ListRecentOrders, recent(6))]
    assert listed == [identity("order", number) for number in reversed(numbers)]


def test_a_session_that_sends_many_commands_at_once_sees_them_all(client: Client) -> None:
    session = client.session()
    numbers = range(230, 270)
    with ThreadPoolExecutor(10) as pool:
        requests = [place_order(number, customer=7, lines={PLENTY: 1}) for number in numbers]
        for _ in pool.map(session.commands.PlaceOrder, requests):
            pass
    assert len(list(rows(session.queries.ListRecentOrders, recent(7, size=50)))) == len(numbers)


def test_orders_are_placed_once_each_through_a_connection_that_is_cut(stack: Stack) -> None:
    """Requests are lost on their way there, and answers on their way back, until an answer was."""
    proxy = CuttingProxy(("127.0.0.1", stack.command_server.port))
    requests = [place_order(number, customer=2, lines={5: 1}) for number in range(110, 140)]
    receipts = []
    try:
        with Client(commands=f"127.0.0.1:{proxy.port}", queries=stack.query_server.address) as client:
            session = client.session()
            for number, request in enumerate(requests):
                request.ClearField("request_id")
                # Now and then the proxy takes a word of the connection's own for the answer, and cuts too early.
                proxy.cut_on(request.order_id.encode(), after=number % 2 == 1)
                receipts.append(session.commands.PlaceOrder(request).receipt)
                assert proxy.cuts == len(receipts)
                if receipts[-1].replayed:
                    break
            listed = [it.order_id for it in rows(session.queries.ListRecentOrders, recent(2))]
            card = session.queries.GetProduct(queries.GetProductRequest(product_id=identity("product", 5))).product
    finally:
        proxy.close()
    assert receipts[-1].replayed, "an answer was lost"
    assert not receipts[0].replayed, "a request was lost"
    assert listed == [request.order_id for request in requests[: len(receipts)]][::-1]
    assert card.available == 100 - len(receipts)


def recent(customer: int, size: int = 3) -> queries.ListRecentOrdersRequest:
    return queries.ListRecentOrdersRequest(customer_id=identity("customer", customer), page_size=size)


async def test_asyncio_reads_its_writes_page_by_page_and_gets_typed_errors(async_client: AsyncClient) -> None:
    session = async_client.session()
    for number in range(120, 127):
        await session.commands.PlaceOrder(place_order(number, customer=3))
    listed = [it.order_id async for it in async_rows(session.queries.ListRecentOrders, recent(3))]
    assert listed == [identity("order", number) for number in range(126, 119, -1)]
    with pytest.raises(RuleBroken) as raised:
        await session.commands.PlaceOrder(place_order(127, customer=3, lines={1: 1_000, 2: 1_000}))
    assert raised.value.reasons == {Reason.OUT_OF_STOCK}
    assert len(raised.value.violations) == 2


def test_an_expectation_gives_way_to_the_view_or_is_taken_back(stack: Stack, client: Client) -> None:
    session = client.session()
    session.commands.PlaceOrder(place_order(160))
    known = session.queries.GetOrderDetails(order(160)).order_details
    drawn: list[tuple[Any, str]] = []
    held = Optimistic(
        known,
        read=lambda: session.queries.GetOrderDetails(order(160, wait=0.2)).order_details,
        show=lambda view: drawn.append((view.status, view.payment_reference)),
    )

    def as_paid(view: OrderDetails) -> None:
        view.status = PAID

    pay = commands.PayOrderRequest(order_id=known.order_id, payment_reference="p-1")
    pause(stack.projector)
    try:
        held.change(as_paid, lambda: session.commands.PayOrder(pay))
        assert (held.shown.status, held.confirmed.status, held.pending) == (PAID, known.status, 1)
    finally:
        resume(stack.projector)
    session.queries.GetOrderDetails(order(160, wait=60))
    held.refresh()
    assert (held.confirmed.status, held.pending) == (PAID, 0)
    assert drawn == [(PAID, ""), (PAID, "p-1")]

    def as_cancelled(view: OrderDetails) -> None:
        view.status = OrderStatus.ORDER_STATUS_CANCELLED

    again = commands.PayOrderRequest(order_id=known.order_id)
    with pytest.raises(RuleBroken) as raised:
        held.change(as_cancelled, lambda: session.commands.PayOrder(again))
    assert raised.value.reason == Reason.ORDER_NOT_PLACED
    assert [status for status, _ in drawn[2:]] == [OrderStatus.ORDER_STATUS_CANCELLED, PAID]


def test_a_follower_and_a_watcher_go_on_when_their_connections_are_cut(stack: Stack, client: Client) -> None:
    session = client.session()
    session.commands.PlaceOrder(place_order(140))
    of_order = SubscribeRequest(after_cursor=session.token, aggregate_ids=[identity("order", 140)])
    proxies = [CuttingProxy(("127.0.0.1", it.port)) for it in (stack.query_server, stack.projector)]
    to_queries, to_feed = (f"127.0.0.1:{proxy.port}" for proxy in proxies)
    steps: list[tuple[Any, Any]] = [
        (session.commands.PayOrder, commands.PayOrderRequest(order_id=identity("order", 140))),
        (session.commands.ShipOrder, commands.ShipOrderRequest(order_id=identity("order", 140))),
        (session.commands.DeliverOrder, commands.DeliverOrderRequest(order_id=identity("order", 140))),
    ]
    try:
        with Client(queries=to_queries, feed=to_feed) as behind_proxies:
            follower = behind_proxies.session(session.token)
            watch = queries.WatchOrderDetailsRequest(order_id=identity("order", 140))
            states = (
                it.order_details.version
                for it in resuming(follower.queries.WatchOrderDetails, watch)
                if it.HasField("order_details")
            )
            events = (item.type for it in resuming(follower.feed.Subscribe, of_order) for item in it.events)
            assert next(states) == 1
            seen = []
            for version, (call, request) in enumerate(steps, start=2):
                for proxy in proxies:
                    proxy.cut_all()
                call(request)
                assert next(states) == version
                seen.append(next(events))
            assert seen == ["order_paid", "order_shipped", "order_delivered"]
    finally:
        for proxy in proxies:
            proxy.close()


async def test_asyncio_follows_through_cut_connections_too(stack: Stack, async_client: AsyncClient) -> None:
    proxy = CuttingProxy(("127.0.0.1", stack.projector.port))
    session = async_client.session()
    start = (await session.commands.PlaceOrder(place_order(150))).receipt.consistency_token
    seen: list[str] = []
    try:
        async with AsyncClient(feed=f"127.0.0.1:{proxy.port}") as behind_proxy:
            request = SubscribeRequest(after_cursor=start, event_types=["order_placed"])
            following = async_resuming(behind_proxy.session().feed.Subscribe, request)
            async with aclosing(following) as messages:  # type: ignore[type-var]
                number = 150
                async for message in messages:
                    seen += [item.event.order_placed.order_id for item in message.events]
                    if len(seen) == 4:
                        break
                    if number == 150 + len(seen):
                        number += 1
                        proxy.cut_all()
                        await session.commands.PlaceOrder(place_order(number))
    finally:
        proxy.close()
    assert seen == [identity("order", number) for number in range(151, 155)]


def test_nobody_notices_a_rolling_restart(stack: Stack) -> None:  # noqa: PLR0915 - one story
    """Two servers of each kind; one after the other restarts, while orders are placed, read, watched and followed."""
    others = (stack.new_command_server(), stack.new_query_server(), stack.new_projector())
    for service in others:
        service.launch()
    for service in others:
        service.wait_until_serving()
    first = (stack.command_server, stack.query_server, stack.projector)
    pairs: Addresses = {
        "commands": f"ipv4:{first[0].address},{others[0].address}",
        "queries": f"ipv4:{first[1].address},{others[1].address}",
        "feed": f"ipv4:{first[2].address},{others[2].address}",
    }
    stop = threading.Event()
    shown: list[int] = []
    last = place_order(30_000, customer=4, lines={PLENTY: 1})
    watched = place_order(300, customer=5, lines={PLENTY: 1})

    def buy(client: Client, number: int) -> list[str]:
        session = client.session()
        placed = []
        while not stop.is_set():
            request = place_order(number, customer=4, lines={PLENTY: 1})
            session.commands.PlaceOrder(request)
            placed.append(request.order_id)
            assert session.queries.GetOrderDetails(order(number, wait=30)).order_details.version == 1
            number += 1
        return placed

    def follow(client: Client, cursor: str) -> list[str]:
        request = SubscribeRequest(after_cursor=cursor, event_types=["order_placed"], max_batch_events=5)
        seen: list[str] = []
        for message in resuming(client.session().feed.Subscribe, request):
            seen += [item.event.order_placed.order_id for item in message.events]
            if last.order_id in seen:
                break
        return seen

    def watch(client: Client, token: str) -> None:
        request = queries.WatchOrderDetailsRequest(order_id=watched.order_id)
        for message in resuming(client.session(token).queries.WatchOrderDetails, request):
            if message.HasField("order_details"):
                shown.append(message.order_details.version)
            if message.order_details.status == OrderStatus.ORDER_STATUS_DELIVERED:
                break

    # The second of a pair may stop before the client has found the first one again: calls wait for a connection.
    patient = CallDefaults(wait_for_ready=True)
    # The client is closed first: that ends the streams, should anything fail.
    with ThreadPoolExecutor(4) as pool, Client(**pairs, defaults=patient) as client:
        session = client.session()
        session.commands.PlaceOrder(watched)
        following = pool.submit(follow, client, session.token)
        watching = pool.submit(watch, client, session.token)
        buyers = [pool.submit(buy, client, number) for number in (10_000, 20_000)]
        steps: list[tuple[Any, Any]] = [
            (session.commands.PayOrder, commands.PayOrderRequest(order_id=watched.order_id)),
            (session.commands.ShipOrder, commands.ShipOrderRequest(order_id=watched.order_id)),
            (session.commands.DeliverOrder, commands.DeliverOrderRequest(order_id=watched.order_id)),
        ]
        try:
            for version, group, (call, request) in zip((1, 2, 3), (first, others, ()), steps, strict=True):
                # A watch shows the newest state: one made while it has no server would be skipped, rightly.
                wait_until(partial(shown.count, version), "the watch goes on", 60)
                call(request)
                for service in group:
                    service.ask_to_stop()
                assert [service.stop() for service in group] == [0] * len(group)
                for service in group:
                    service.launch()
                for service in group:
                    service.wait_until_serving()
        finally:
            stop.set()
        bought: list[list[str]] = [buyer.result(timeout=60) for buyer in buyers]
        session.commands.PlaceOrder(last)
        watching.result(timeout=60)
        followed: list[str] = following.result(timeout=60)
        listed = [it.order_id for it in rows(session.queries.ListRecentOrders, recent(4, 100))]
    assert shown == [1, 2, 3, 4]
    assert all(bought)
    assert sorted(listed) == sorted(followed) == sorted([*bought[0], *bought[1], last.order_id])
    for placed in bought:
        assert [it for it in followed if it in placed] == placed, "in the order in which they were placed"
