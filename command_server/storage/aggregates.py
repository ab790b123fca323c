"""Bulk load and save of aggregates: one statement a table, whatever the size of the batch."""

import uuid
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC
from typing import Any, TypeVar

from sqlalchemy import Connection, bindparam, select, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import Uuid

from command_server.aggregates import Aggregates, Customer, Keys, Order, OrderedLine, Product, Subscription
from command_server.storage.tables import customer, customer_order, order_line, product, subscription
from commerce.command.v1.command_service_pb2 import ProductAttributes
from commerce.type.v1.address_pb2 import AddressBook
from commerce.type.v1.order_status_pb2 import OrderStatus
from commerce.type.v1.product_attribute_pb2 import ProductAttribute
from commerce.type.v1.subscription_status_pb2 import SubscriptionStatus
from tandem.feed.personal import new_key
from tandem.feed.table import personal_key
from tandem.runtime.bulk import Row, insert_rows, update_rows

T = TypeVar("T")

# `= ANY(array)` is one prepared statement for every number of ids; `IN (…)` would be one for each.
_IDS = bindparam("ids", type_=ARRAY(Uuid))

_LOCK_ORDERS = (
    select(customer_order).where(customer_order.c.id == _IDS.any_()).order_by(customer_order.c.id).with_for_update()
)
_READ_LINES = (
    select(order_line)
    .where(order_line.c.order_id == _IDS.any_())
    .order_by(order_line.c.order_id, order_line.c.line_number)
)
# The key comes along: who places an order pays for no statement more because personal data is sealed.
_LOCK_CUSTOMERS = (
    select(customer, personal_key.c.key)
    .join_from(customer, personal_key, personal_key.c.customer_id == customer.c.id, isouter=True)
    .where(customer.c.id == _IDS.any_())
    .order_by(customer.c.id)
    .with_for_update(of=customer)
)
_READ_ORDER_IDS = select(customer_order.c.id, customer_order.c.customer_id).where(
    customer_order.c.customer_id == _IDS.any_()
)
_DESTROY_KEYS = update(personal_key).where(personal_key.c.customer_id == _IDS.any_()).values(key=None)
_LOCK_SUBSCRIPTIONS = (
    select(subscription).where(subscription.c.id == _IDS.any_()).order_by(subscription.c.id).with_for_update()
)
_LOCK_PRODUCTS = select(product).where(product.c.id == _IDS.any_()).order_by(product.c.id).with_for_update()


PersonalKeys = dict[uuid.UUID, bytes]
"""By customer; an erased one has none."""


def load(connection: Connection, keys: Keys) -> tuple[Aggregates, PersonalKeys]:
    """Locks and loads the aggregates that exist, and the products of the loaded orders' lines with them.

    With them come the keys of the loaded customers.

    Tables in one order everywhere and ids sorted, so that two transactions never wait for each other in a circle. The
    locks last until the transaction ends.
    """
    aggregates = Aggregates()
    personal_keys: PersonalKeys = {}
    customers, products = set(keys.customers), set(keys.products)
    if keys.orders:
        aggregates.orders = _load_orders(connection, sorted(keys.orders))
        # A cancelled order gives the stock of its lines back.
        products.update(line.product_id for order in aggregates.orders.values() for line in order.lines)
        customers.update(order.customer_id for order in aggregates.orders.values() if order.id in keys.with_customer)
    if keys.subscriptions:
        rows = connection.execute(_LOCK_SUBSCRIPTIONS, {"ids": sorted(keys.subscriptions)})
        aggregates.subscriptions = {row.id: _subscription(row) for row in rows}
    if customers:
        for row in connection.execute(_LOCK_CUSTOMERS, {"ids": sorted(customers)}):
            aggregates.customers[row.id] = _customer(row)
            if row.key is not None:
                personal_keys[row.id] = row.key
    if keys.whole_customers:
        # Who places an order locks its customer, so after that lock the list is complete.
        aggregates.order_ids = _load_order_ids(connection, sorted(keys.whole_customers))
    if products:
        rows = connection.execute(_LOCK_PRODUCTS, {"ids": sorted(products)})
        aggregates.products = {row.id: _product(row) for row in rows}
    return aggregates, personal_keys


def _load_order_ids(connection: Connection, customers: list[uuid.UUID]) -> dict[uuid.UUID, frozenset[uuid.UUID]]:
    orders: dict[uuid.UUID, set[uuid.UUID]] = {customer_id: set() for customer_id in customers}
    for row in connection.execute(_READ_ORDER_IDS, {"ids": customers}):
        orders[row.customer_id].add(row.id)
    return {customer_id: frozenset(ids) for customer_id, ids in orders.items()}


def _load_orders(connection: Connection, ids: list[uuid.UUID]) -> dict[uuid.UUID, Order]:
    orders = connection.execute(_LOCK_ORDERS, {"ids": ids}).all()
    if not orders:
        return {}
    lines: defaultdict[uuid.UUID, list[OrderedLine]] = defaultdict(list)
    for line in connection.execute(_READ_LINES, {"ids": [order.id for order in orders]}):
        lines[line.order_id].append(
            OrderedLine(line.product_id, line.quantity, line.unit_price, line.discount_basis_points, line.line_total)
        )
    return {
        row.id: Order(
            row.id,
            row.version,
            row.customer_id,
            OrderStatus.ValueType(row.status),
            row.currency,
            row.total,
            tuple(lines[row.id]),
            row.placed_at,
        )
        for row in orders
    }


def _customer(row: Any) -> Customer:
    addresses = tuple(AddressBook.FromString(row.addresses).addresses)
    return Customer(row.id, row.version, row.name, row.email, row.phone, addresses, row.erased)


def _product(row: Any) -> Product:
    *columns, attributes = row
    stored = ProductAttributes.FromString(attributes).attributes
    return Product(*(*columns, tuple((it.name, it.value) for it in stored)))


def save(connection: Connection, before: Aggregates, after: Aggregates) -> PersonalKeys:
    """Writes what differs: inserts what is new, updates what changed. One statement a table for each.

    New customers get their keys, which are returned, and the keys of erased ones are destroyed. An insert fails with a
    unique violation when another transaction has created the same in between.
    """
    new_customers, new_orders = _new(before.customers, after.customers), _new(before.orders, after.orders)
    changed_customers = _changed(before.customers, after.customers)
    keys = {it.id: new_key() for it in new_customers}
    insert_rows(connection, customer, map(_customer_row, new_customers))
    # One that was registered and erased in this very batch leaves a key for its events, and none in the table.
    insert_rows(connection, personal_key, ((it.id, None if it.erased else keys[it.id]) for it in new_customers))
    insert_rows(connection, product, map(_product_row, _new(before.products, after.products)))
    insert_rows(connection, subscription, map(_subscription_row, _new(before.subscriptions, after.subscriptions)))
    update_rows(connection, subscription, map(_subscription_row, _changed(before.subscriptions, after.subscriptions)))
    insert_rows(connection, customer_order, map(_order_row, new_orders))
    insert_rows(connection, order_line, (row for order in new_orders for row in _line_rows(order)))
    update_rows(connection, customer_order, map(_order_row, _changed(before.orders, after.orders)))
    update_rows(connection, customer, map(_customer_row, changed_customers))
    update_rows(connection, product, map(_product_row, _changed(before.products, after.products)))
    erased = [it.id for it in changed_customers if it.erased]
    if erased:
        connection.execute(_DESTROY_KEYS, {"ids": erased})
    return keys


def _new(before: dict[uuid.UUID, T], after: dict[uuid.UUID, T]) -> list[T]:
    return [aggregate for identity, aggregate in after.items() if identity not in before]


def _changed(before: dict[uuid.UUID, T], after: dict[uuid.UUID, T]) -> list[T]:
    # An aggregate is replaced by another object when an event changes it, so identity tells.
    return [aggregate for identity, aggregate in after.items() if before.get(identity, aggregate) is not aggregate]


def _customer_row(it: Customer) -> Row:
    addresses = AddressBook(addresses=it.addresses).SerializeToString(deterministic=True)
    return it.id, it.version, it.name, it.email, it.phone, addresses, it.erased


def _product_row(it: Product) -> Row:
    attributes = ProductAttributes(
        attributes=[ProductAttribute(name=name, value=value) for name, value in it.attributes]
    )
    return (
        it.id, it.version, it.name, it.description, it.category, it.price, it.currency, it.stock, it.discontinued,
        attributes.SerializeToString(deterministic=True),
    )  # fmt: skip


def _subscription(row: Any) -> Subscription:
    # The database answers in the session's time zone.
    return Subscription(
        id=row.id,
        version=row.version,
        customer_id=row.customer_id,
        status=SubscriptionStatus.ValueType(row.status),
        plan=row.plan,
        price=row.price,
        currency=row.currency,
        period_months=row.period_months,
        started_at=row.started_at.astimezone(UTC),
        period_start=row.period_start.astimezone(UTC),
        period_end=row.period_end.astimezone(UTC),
        cancellation_reason=row.cancellation_reason,
    )


def _subscription_row(it: Subscription) -> Row:
    return (
        it.id, it.version, it.customer_id, it.status, it.plan, it.price, it.currency, it.period_months,
        it.started_at, it.period_start, it.period_end, it.cancellation_reason,
    )  # fmt: skip


def _order_row(it: Order) -> Row:
    return it.id, it.version, it.customer_id, it.status, it.currency, it.total, it.placed_at


def _line_rows(order: Order) -> Iterator[Row]:
    for number, it in enumerate(order.lines, start=1):
        yield (
            order.id, number, it.product_id, it.quantity, it.unit_price, it.discount_basis_points, it.line_total,
        )  # fmt: skip
