import asyncio
from typing import Any

import grpc
import pytest

from commerce.query.v1.views_pb2 import OrderDetails
from commerce.type.v1.order_status_pb2 import OrderStatus
from tandem.client.errors import InvalidRequest, OutcomeUnknown, RuleBroken, ViewBehind
from tandem.client.optimistic import AsyncOptimistic, Optimistic

PLACED, PAID = OrderStatus.ORDER_STATUS_PLACED, OrderStatus.ORDER_STATUS_PAID
REFUSED = RuleBroken(grpc.StatusCode.FAILED_PRECONDITION)
BEHIND = ViewBehind(grpc.StatusCode.UNAVAILABLE)


def as_paid(order: OrderDetails) -> None:
    order.status = PAID


def by_post(order: OrderDetails) -> None:
    order.carrier = "Post"


class Store:
    """An order that commands change, and views of it."""

    def __init__(self) -> None:
        self.order = OrderDetails(status=PLACED, version=1)
        self.reads: list[OrderDetails | Exception] = []
        self.drawn: list[tuple[Any, str, int]] = []

    def read(self) -> OrderDetails:
        """The next of `reads` while there are any, then the order as it is."""
        answer = self.reads.pop(0) if self.reads else self.order
        if isinstance(answer, Exception):
            raise answer
        return OrderDetails.FromString(answer.SerializeToString())

    def pay(self) -> str:
        self.order.status = PAID
        self.order.payment_reference = "p-1"
        self.order.version += 1
        return "paid"

    def draw(self, view: OrderDetails) -> None:
        self.drawn.append((view.status, view.payment_reference, view.version))


def held(store: Store) -> Optimistic[OrderDetails]:
    return Optimistic(store.read(), read=store.read, show=store.draw)


def test_what_is_expected_is_shown_first_and_then_what_is() -> None:
    store = Store()
    order = held(store)
    known = order.confirmed
    assert order.change(as_paid, store.pay) == "paid"
    assert store.drawn == [(PAID, "", 1), (PAID, "p-1", 2)]
    assert order.shown == order.confirmed == store.order
    assert order.pending == 0
    assert known.status == PLACED, "the view that was given is not changed"


@pytest.mark.parametrize("error", [REFUSED, OutcomeUnknown(grpc.StatusCode.UNAVAILABLE), KeyboardInterrupt()])
def test_a_command_that_is_refused_or_not_known_to_be_done_is_taken_back(error: BaseException) -> None:
    store = Store()
    order = held(store)

    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        order.change(as_paid, fail)
    assert store.drawn == [(PAID, "", 1), (PLACED, "", 1)]
    assert order.pending == 0


def test_a_change_that_is_taken_back_leaves_the_others() -> None:
    store = Store()
    order = held(store)

    def refuse_while_another_is_shown() -> None:
        store.reads.append(BEHIND)
        order.change(by_post, lambda: None)
        assert (order.shown.status, order.shown.carrier) == (PAID, "Post")
        raise REFUSED

    with pytest.raises(RuleBroken):
        order.change(as_paid, refuse_while_another_is_shown)
    assert (order.shown.status, order.shown.carrier) == (PLACED, "Post")
    assert order.confirmed.carrier == ""


def test_what_is_stored_stays_expected_until_a_view_shows_it() -> None:
    store = Store()
    order = held(store)
    store.reads.append(BEHIND)
    assert order.change(as_paid, store.pay) == "paid"
    assert (order.shown.status, order.confirmed.status, order.pending) == (PAID, PLACED, 1)
    order.refresh()
    assert (order.shown, order.confirmed.status, order.pending) == (store.order, PAID, 0)


def test_a_read_that_began_before_a_command_was_stored_confirms_nothing() -> None:
    store = Store()
    order = held(store)

    def read_meanwhile() -> str:
        order.refresh()
        assert (order.shown.status, order.pending) == (PAID, 1)
        return store.pay()

    order.change(as_paid, read_meanwhile)
    assert order.pending == 0


def test_an_older_view_does_not_take_a_newer_ones_place() -> None:
    store = Store()
    order = held(store)
    older = store.read()
    order.change(as_paid, store.pay)
    store.reads.append(older)
    order.refresh()
    assert order.confirmed.version == 2


def test_a_read_that_is_refused_is_raised_and_the_change_stays_shown() -> None:
    store = Store()
    order = held(store)
    store.reads.append(InvalidRequest(grpc.StatusCode.INVALID_ARGUMENT))
    with pytest.raises(InvalidRequest):
        order.change(as_paid, store.pay)
    assert (order.shown.status, order.pending) == (PAID, 1)


async def test_asyncio_shows_changes_that_are_under_way_together() -> None:
    store = Store()
    paying, shipping = asyncio.Event(), asyncio.Event()

    async def read() -> OrderDetails:
        return store.read()

    async def pay() -> str:
        await paying.wait()
        return store.pay()

    async def refuse() -> None:
        await shipping.wait()
        raise REFUSED

    order = AsyncOptimistic(store.read(), read=read, show=store.draw)
    first = asyncio.create_task(order.change(as_paid, pay))
    second = asyncio.create_task(order.change(by_post, refuse))
    await asyncio.sleep(0)
    assert (order.shown.status, order.shown.carrier) == (PAID, "Post")
    shipping.set()
    with pytest.raises(RuleBroken):
        await second
    assert (order.shown.status, order.shown.carrier) == (PAID, "")
    paying.set()
    assert await first == "paid"
    assert order.shown == store.order


async def test_a_cancelled_task_takes_its_change_back() -> None:
    store = Store()

    async def read() -> OrderDetails:
        return store.read()

    order = AsyncOptimistic(store.read(), read=read)
    changing = asyncio.create_task(order.change(as_paid, asyncio.Event().wait))
    await asyncio.sleep(0)
    assert order.shown.status == PAID
    changing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await changing
    assert order.shown.status == PLACED
