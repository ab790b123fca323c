"""Random interleavings of commands: batches of any size decide what one at a time decides."""

import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from command_server.app import DOMAIN
from command_server.customers import CUSTOMER_ORDERS, CUSTOMERS
from command_server.orders import CUSTOMER_OF_ORDER, LINES, ORDERS, PRODUCTS_OF_ORDER
from command_server.products import PRODUCTS
from command_server.subscriptions import SUBSCRIPTIONS
from commerce.command.v1 import command_service_pb2 as commands
from commerce.event.v1.event_pb2 import Event
from commerce.type.v1.order_status_pb2 import OrderStatus
from tandem.commands.batch import decide_batch
from tandem.commands.domain import Command
from tandem.commands.receipts import Receipt
from tandem.commands.write_model import Aggregate, Loaded, States
from tandem.runtime.errors import TandemError, to_status
from tests.support.builders import (
    add_product,
    address,
    command,
    identity,
    place_order,
    register_customer,
    revise_product,
    start_subscription,
    usd,
)
from tests.support.events import feed_events
from tests.support.projecting import PROJECTIONS, fold

EPOCH = uuid.UUID(int=7)
MARK = 7
few_numbers = (1, 2, 3)
few = st.sampled_from(few_numbers)


def _order(kind: type[Message]) -> st.SearchStrategy[Message]:
    return st.builds(lambda order: kind(order_id=identity("order", order)), few)


def _customer(kind: type[Message]) -> st.SearchStrategy[Message]:
    return st.builds(lambda customer: kind(customer_id=identity("customer", customer)), few)


def _subscription(kind: type[Message]) -> st.SearchStrategy[Message]:
    return st.builds(lambda number: kind(subscription_id=identity("subscription", number)), few)


requests: st.SearchStrategy[Message] = st.one_of(
    st.builds(register_customer, few),
    st.builds(add_product, few, stock=st.integers(0, 5)),
    st.builds(
        place_order,
        few,
        customer=few,
        lines=st.dictionaries(few, st.integers(1, 4), min_size=1, max_size=3),
        discount=st.integers(0, 10_000),
    ),
    st.builds(
        lambda product, delta: commands.AdjustStockRequest(product_id=identity("product", product), delta=delta),
        few,
        st.integers(-4, 4).filter(bool),
    ),
    st.builds(
        lambda product, price: commands.ChangePriceRequest(product_id=identity("product", product), price=usd(price)),
        few,
        st.integers(0, 10_000),
    ),
    st.builds(
        revise_product,
        few,
        name=st.sampled_from([None, "Tea"]),
        description=st.sampled_from(["", "dry"]),
        attributes=st.sampled_from([None, {}, {"Size": "L", "Origin": "Assam"}]),
    ),
    st.builds(lambda product: commands.DiscontinueProductRequest(product_id=identity("product", product)), few),
    st.builds(
        lambda order, city: commands.ChangeShippingAddressRequest(
            order_id=identity("order", order), address=address(city=city)
        ),
        few,
        st.sampled_from(["Bonn", "Ulm"]),
    ),
    st.builds(
        lambda order, name: commands.ChangeShippingAddressRequest(order_id=identity("order", order), address_name=name),
        few,
        st.sampled_from(["main", "home", "work"]),
    ),
    st.builds(
        lambda customer, name: commands.RenameCustomerRequest(customer_id=identity("customer", customer), name=name),
        few,
        st.sampled_from(["Ada", "Ada King"]),
    ),
    _customer(commands.EraseCustomerRequest),
    st.builds(start_subscription, few, customer=few, started_at=st.sampled_from(["", "2025-01-31T00:00:00Z"])),
    _subscription(commands.RenewSubscriptionRequest),
    _subscription(commands.ResumeSubscriptionRequest),
    st.builds(
        lambda subscription, when: commands.CancelSubscriptionRequest(
            subscription_id=identity("subscription", subscription), when=when
        ),
        few,
        st.sampled_from([commands.CANCELLATION_TIME_AT_ONCE, commands.CANCELLATION_TIME_AT_PERIOD_END]),
    ),
    st.builds(
        lambda customer, name, default: commands.UpdateAddressRequest(
            customer_id=identity("customer", customer), address=address(), address_name=name, make_default=default
        ),
        few,
        st.sampled_from(["", "home", "work"]),
        st.booleans(),
    ),
    st.builds(
        lambda customer, name: commands.RemoveAddressRequest(
            customer_id=identity("customer", customer), address_name=name
        ),
        few,
        st.sampled_from(["main", "home", "work"]),
    ),
    _order(commands.DeliverOrderRequest),
    _order(commands.PayOrderRequest),
    _order(commands.ShipOrderRequest),
    _order(commands.CancelOrderRequest),
)
"""Few ids, so that commands meet; place_order and the like come with request ids, so repeats happen, and clashes."""


@dataclass
class Memory:
    """A write database for one thread, in memory."""

    states: States = field(default_factory=States)
    receipts: dict[str, Receipt] = field(default_factory=dict)
    events: list[tuple[str, Event]] = field(default_factory=list)

    def run(self, batch: list[Command]) -> list[Receipt | TandemError]:
        decisions = decide_batch(DOMAIN, batch, self._load(batch), self.receipts)
        base = len(self.events)
        kept: tuple[Loaded[Any], ...] = (ORDERS, LINES, CUSTOMERS, PRODUCTS, SUBSCRIPTIONS)
        for of in kept:
            self.states[of] |= decisions.states[of]
        self.events += decisions.events
        self.receipts |= {it.request_id: it.appended(EPOCH, base, MARK) for it in decisions.receipts}
        return [it.appended(EPOCH, base, MARK) if isinstance(it, Receipt) else it for it in decisions.outcomes]

    def _load(self, batch: list[Command]) -> States:
        """Only what the keys name, and the products and customers of the loaded orders: as the database does."""
        keys = DOMAIN.keys_of(batch)
        orders, lines = self.states[ORDERS], self.states[LINES]
        keys[CUSTOMERS] |= {orders[it].customer_id for it in keys[CUSTOMER_OF_ORDER] & orders.keys()}
        keys[PRODUCTS] |= {line.product_id for it in keys[PRODUCTS_OF_ORDER] & orders.keys() for line in lines[it]}
        loaded = States({of: self._found(of, keys[of]) for of in (ORDERS, CUSTOMERS, PRODUCTS, SUBSCRIPTIONS)})
        loaded[LINES] = {it: lines.get(it, ()) for it in keys[LINES]}
        loaded[CUSTOMER_ORDERS] = {
            customer: frozenset(it.id for it in orders.values() if it.customer_id == customer)
            for customer in keys[CUSTOMER_ORDERS]
        }
        return loaded

    def _found(self, of: Aggregate[Any], ids: set[str]) -> dict[str, Any]:
        return {it: self.states[of][it] for it in ids & self.states[of].keys()}


def _shown(outcome: Receipt | TandemError) -> object:
    return outcome if isinstance(outcome, Receipt) else (type(outcome), outcome.reason, outcome.message)


@given(st.lists(requests, max_size=30), st.lists(st.integers(1, 9), min_size=1))
def test_batches_of_any_size_do_what_one_at_a_time_does(sent: list[Message], sizes: list[int]) -> None:
    batch = [command(it) for it in sent]
    alone, together = Memory(), Memory()
    expected = [_shown(outcome) for it in batch for outcome in alone.run([it])]
    actual: list[object] = []
    start, turn = 0, 0
    while start < len(batch):
        size = sizes[turn % len(sizes)]
        actual += [_shown(outcome) for outcome in together.run(batch[start : start + size])]
        start, turn = start + size, turn + 1
    assert actual == expected
    assert together.events == alone.events
    assert together.states == alone.states


@given(st.lists(requests, max_size=40))
def test_stock_is_never_negative_and_positions_have_no_gap(sent: list[Message]) -> None:
    memory = Memory()
    outcomes = memory.run([command(it) for it in sent])
    assert all(product.stock >= 0 for product in memory.states[PRODUCTS].values())
    fresh = [it.position for it in outcomes if isinstance(it, Receipt) and not it.replayed]
    # Each command here causes one event, but for an erasure of a customer with orders.
    alone = [number for number, (kind, _) in enumerate(memory.events, start=1) if kind != "orders_anonymized"]
    more = {number + 1 for number, (kind, _) in enumerate(memory.events) if kind == "orders_anonymized"}
    assert fresh == [number + 1 if number + 1 in more else number for number in alone]


@given(st.lists(requests, max_size=40))
def test_a_customer_has_one_default_address_while_there_is_any(sent: list[Message]) -> None:
    memory = Memory()
    memory.run([command(it) for it in sent])
    for customer in memory.states[CUSTOMERS].values():
        assert sum(it.is_default for it in customer.addresses) == min(1, len(customer.addresses))
        assert len({it.name for it in customer.addresses}) == len(customer.addresses)


def _views(history: Iterable[tuple[str, Event]]) -> dict[tuple[str, str], Any]:
    """What the projector makes of the events: the views' messages, by view and key."""
    events = feed_events([event for _, event in history])
    views: dict[tuple[str, str], Any] = {}
    for name, projection in PROJECTIONS.items():
        changes = fold(projection, events, {})
        assert changes.stopped_by is None
        parse = projection.message.FromString
        views |= {(name, str(uuid.UUID(bytes=key))): parse(row.value) for key, row in changes.rows.items() if row}
    return views


@given(st.lists(requests, min_size=10, max_size=40))
def test_the_views_show_what_the_write_model_holds(sent: list[Message]) -> None:
    # One order is placed, one paid, one shipped: random commands alone rarely come as far.
    creations: tuple[Callable[[int], Message], ...] = (register_customer, add_product, place_order)
    there = [create(number) for create in creations for number in few_numbers]
    there += [commands.PayOrderRequest(order_id=identity("order", number)) for number in (2, 3)]
    there += [commands.ShipOrderRequest(order_id=identity("order", 3))]
    memory = Memory()
    memory.run([command(it) for it in (*there, *sent)])
    held, views = memory.states, _views(memory.events)
    for product in held[PRODUCTS].values():
        card = views["product_card", product.id]
        assert (card.version, card.name, card.description, card.category, card.price.minor_units) == (
            product.version,
            product.name,
            product.description,
            product.category,
            product.price,
        )
        assert tuple((it.name, it.value) for it in card.attributes) == product.attributes
        assert (card.available, card.discontinued) == (product.stock, product.discontinued)
    for order in held[ORDERS].values():
        shown, row = views["order_details", order.id], views["order_summary", order.id]
        assert (shown.version, shown.status) == (row.version, row.status) == (order.version, order.status)
        erased = held[CUSTOMERS][order.customer_id].erased
        assert (shown.HasField("shipping_address"), bool(shown.customer_name)) == (not erased, not erased)
        assert shown.HasField("delivered_at") == (order.status == OrderStatus.ORDER_STATUS_DELIVERED)
    for customer in held[CUSTOMERS].values():
        profile = views["customer_profile", customer.id]
        assert (profile.version, profile.name, tuple(profile.addresses)) == (
            customer.version,
            customer.name,
            customer.addresses,
        )


@given(st.lists(requests, max_size=20))
def test_all_commands_sent_twice_have_no_second_effect(sent: list[Message]) -> None:
    batch = [command(it) for it in sent if it.request_id]  # type: ignore[attr-defined]
    memory = Memory()
    first = memory.run(batch)
    events = len(memory.events)
    second = memory.run(batch)
    assert len(memory.events) == events, "what was refused before is refused for good"
    for before, after in zip(first, second, strict=True):
        if isinstance(before, TandemError):
            assert isinstance(after, TandemError)
            assert to_status(after) == to_status(before)
        else:
            assert isinstance(after, Receipt)
            assert (after.subject_id, after.position, after.version) == (
                before.subject_id,
                before.position,
                before.version,
            )
            assert after.replayed
