"""What is true of the shop: its things' states, folded from the feed by a model of its own."""

import uuid
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import psycopg

from commerce.event.v1.event_pb2 import Event
from commerce.query.v1.views_pb2 import CustomerProfile, OrderDetails, OrderSummary, ProductCard
from commerce.type.v1.order_status_pb2 import OrderStatus
from nemesis.checker import Feed
from nemesis.history import State, Stored, Subject
from tandem.internal.v1.stored_pb2 import Envelope

_STATUS = {
    "order_paid": OrderStatus.ORDER_STATUS_PAID,
    "order_shipped": OrderStatus.ORDER_STATUS_SHIPPED,
    "order_delivered": OrderStatus.ORDER_STATUS_DELIVERED,
    "order_cancelled": OrderStatus.ORDER_STATUS_CANCELLED,
}


class Model:
    """The states after the events so far. An order's is (version, status), a product's (version, stock, price), a
    customer's (version,).
    """

    def __init__(self) -> None:
        self._states: dict[Subject, State] = {}
        self._lines: dict[str, list[tuple[str, int]]] = {}

    def apply(self, event: Event) -> dict[Subject, State]:
        """The states that the event makes."""
        kind = str(event.WhichOneof("kind"))
        changed = dict(self._changes(kind, getattr(event, kind)))
        self._states.update(changed)
        return changed

    def _changes(self, kind: str, it: Any) -> Iterator[tuple[Subject, State]]:
        if kind == "product_added":
            yield Subject("product", it.product_id), (it.version, it.stock, it.price.minor_units)
        elif kind == "stock_adjusted":
            subject = Subject("product", it.product_id)
            _, stock, price = self._states[subject]
            yield subject, (it.version, stock + it.delta, price)
        elif kind == "price_changed":
            subject = Subject("product", it.product_id)
            _, stock, _ = self._states[subject]
            yield subject, (it.version, stock, it.price.minor_units)
        elif kind == "order_placed":
            self._lines[it.order_id] = [(line.product_id, line.quantity) for line in it.lines]
            yield Subject("order", it.order_id), (it.version, OrderStatus.ORDER_STATUS_PLACED)
            yield from self._stocks(it.order_id, -1)
        elif hasattr(it, "order_id"):
            subject = Subject("order", it.order_id)
            yield subject, (it.version, _STATUS.get(kind, self._states[subject][1]))
            if kind == "order_cancelled":
                yield from self._stocks(it.order_id, 1)
        else:
            yield Subject("customer", it.customer_id), (it.version,)

    def _stocks(self, order_id: str, sign: int) -> Iterator[tuple[Subject, State]]:
        for product_id, quantity in self._lines[order_id]:
            subject = Subject("product", product_id)
            version, stock, price = self._states[subject]
            yield subject, (version, stock + sign * quantity, price)


class Row(NamedTuple):
    """A view's row, as its state. Every view that shows a thing shows the same of it, or less."""

    subject: Subject
    state: State


def row_of(shown: Any) -> Row:
    """Of a message of a view."""
    if isinstance(shown, OrderDetails | OrderSummary):
        return Row(Subject("order", shown.order_id), (shown.version, shown.status))
    if isinstance(shown, ProductCard):
        return Row(Subject("product", shown.product_id), (shown.version, shown.available, shown.price.minor_units))
    assert isinstance(shown, CustomerProfile), shown
    return Row(Subject("customer", shown.customer_id), (shown.version,))


def read_feed(url: str) -> Feed:
    """All of the feed that a write database has. Raises psycopg.Error."""
    with psycopg.connect(url) as connection:
        # One statement: the head and the events of one moment.
        rows = connection.execute(
            "SELECT epoch, e.position, payload, envelope, mark FROM tandem_write.feed_head"
            " LEFT JOIN tandem_write.event AS e ON true ORDER BY e.position"
        ).fetchall()
    model = Model()
    stored = [
        Stored(position, Envelope.FromString(envelope).request_id, mark, model.apply(Event.FromString(payload)))
        for _, position, payload, envelope, mark in rows
        if position is not None
    ]
    epoch: uuid.UUID = rows[0][0]
    return Feed(epoch, stored)


_WRITTEN = {
    "order": "SELECT id, version, status FROM tandem_write.customer_order",
    "product": "SELECT id, version, stock, price FROM tandem_write.product",
    "customer": "SELECT id, version FROM tandem_write.customer",
}


def written_states(connection: "psycopg.Connection[Any]") -> dict[Subject, State]:
    """What the tables of the write model say."""
    return {
        Subject(kind, str(key)): tuple(state)
        for kind, query in _WRITTEN.items()
        for key, *state in connection.execute(query.encode())
    }


def receipts(connection: "psycopg.Connection[Any]") -> dict[str, int]:
    """The last position of each request that is stored; 0 for one that was refused."""
    found: Sequence[Any] = connection.execute(
        "SELECT request_id, CASE WHEN refusal IS NULL THEN position ELSE 0 END FROM tandem_write.receipt"
    ).fetchall()
    return {str(request_id): position for request_id, position in found}
