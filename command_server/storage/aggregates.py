"""Bulk load and save of aggregates: a statement a table and one for all, whatever the size of the batch."""

import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC
from functools import lru_cache
from typing import TypeVar

from sqlalchemy import Column, Connection, Table, Uuid

from command_server.aggregates import Aggregates, Customer, Id, Keys, Order, OrderedLine, Product, Subscription
from command_server.storage.tables import customer, customer_order, order_line, product, subscription
from commerce.command.v1.command_service_pb2 import ProductAttributes
from commerce.type.v1.address_pb2 import AddressBook
from commerce.type.v1.order_status_pb2 import OrderStatus
from commerce.type.v1.product_attribute_pb2 import ProductAttribute
from commerce.type.v1.subscription_status_pb2 import SubscriptionStatus
from tandem.feed.sealing import new_key
from tandem.feed.table import subject_key
from tandem.runtime.arrays import array
from tandem.runtime.bulk import Row, execute, inserted, updated
from tandem.runtime.database import Answer, driver_of

T = TypeVar("T")


def _columns(table: Table) -> str:
    """For a SELECT from the table as t; ids as text."""
    return ", ".join(
        f"CAST(t.{column.name} AS text)" if isinstance(column.type, Uuid) else f"t.{column.name}"
        for column in table.columns
    )


def _lock(table: Table) -> str:
    # `= ANY(array)` is one prepared statement for every number of ids; `IN (…)` would be one for each.
    return f"SELECT {_columns(table)} FROM {table.fullname} AS t WHERE id = ANY(%s) ORDER BY t.id FOR UPDATE"  # noqa: S608


def _and_of_orders(column: Column[uuid.UUID], orders: Column[uuid.UUID]) -> str:
    """The ids that are given, and those that some orders hold in a column; by an array, so that each is looked up."""
    return f"""ANY(ARRAY(
    SELECT unnest(CAST(%s AS uuid[])) UNION SELECT {column.name} FROM {column.table} WHERE {orders.name} = ANY(%s)
))"""  # noqa: S608


_LOCK_ORDERS, _LOCK_SUBSCRIPTIONS = _lock(customer_order), _lock(subscription)
_READ_LINES = f"""
SELECT CAST(order_id AS text), CAST(product_id AS text), quantity, unit_price, discount_basis_points, line_total
FROM {order_line.fullname}
WHERE order_id = ANY(%s) ORDER BY order_id, line_number"""  # noqa: S608
# The key comes along: who places an order pays for no statement more because personal data is sealed.
_LOCK_CUSTOMERS = f"""
SELECT k.key, {_columns(customer)}
FROM {customer.fullname} AS t LEFT JOIN {subject_key.fullname} AS k ON k.subject_id = t.id
WHERE t.id = {_and_of_orders(customer_order.c.customer_id, customer_order.c.id)}
ORDER BY t.id FOR UPDATE OF t"""  # noqa: S608
_READ_ORDER_IDS = f"""
SELECT CAST(id AS text), CAST(customer_id AS text) FROM {customer_order.fullname} WHERE customer_id = ANY(%s)
"""  # noqa: S608
_LOCK_PRODUCTS = f"""
SELECT {_columns(product)} FROM {product.fullname} AS t
WHERE t.id = {_and_of_orders(order_line.c.product_id, order_line.c.order_id)} ORDER BY t.id FOR UPDATE"""  # noqa: S608

PersonalKeys = dict[Id, bytes]
"""By customer; an erased one has none."""


def load(connection: Connection, keys: Keys) -> Answer[tuple[Aggregates, PersonalKeys]]:
    """Locks and loads the aggregates that exist, and with them the keys of the loaded customers.

    Tables in one order everywhere and rows by id, so that two transactions never wait for each other in a circle. The
    locks last until the transaction ends.
    """
    with driver_of(connection) as driver:

        def rows_of(query: str, *ids: Iterable[Id]) -> Iterable[Row]:
            return driver.execute(query, [array("UUID", list(it)) for it in ids], binary=True) if any(ids) else ()

        # Orders first: what they hold tells which customers and products are meant.
        orders = rows_of(_LOCK_ORDERS, keys.orders)
        lines = rows_of(_READ_LINES, keys.with_lines)
        subscriptions = rows_of(_LOCK_SUBSCRIPTIONS, keys.subscriptions)
        customers = rows_of(_LOCK_CUSTOMERS, keys.customers, keys.with_customer)
        # Who places an order locks its customer, so after that lock the list of the orders is complete.
        order_ids = rows_of(_READ_ORDER_IDS, keys.whole_customers)
        # A cancelled order gives the stock of its lines back.
        products = rows_of(_LOCK_PRODUCTS, keys.products, keys.with_lines)

    def answer() -> tuple[Aggregates, PersonalKeys]:
        personal_keys: PersonalKeys = {}
        aggregates = Aggregates(
            orders=_orders(orders, lines),
            products={row[0]: _product(row) for row in products},
            subscriptions={row[0]: _subscription(row) for row in subscriptions},
            order_ids=_by_customer(keys.whole_customers, order_ids),
        )
        for key, *columns in customers:
            it = _customer(columns)
            aggregates.customers[it.id] = it
            if key is not None:
                personal_keys[it.id] = key
        return aggregates, personal_keys

    return answer


def _by_customer(customers: Iterable[Id], rows: Iterable[Row]) -> dict[Id, frozenset[Id]]:
    orders: dict[Id, set[Id]] = {customer_id: set() for customer_id in customers}
    for order_id, customer_id in rows:
        orders[customer_id].add(order_id)
    return {customer_id: frozenset(ids) for customer_id, ids in orders.items()}


def _orders(rows: Iterable[Row], line_rows: Iterable[Row]) -> dict[Id, Order]:
    lines: defaultdict[Id, list[OrderedLine]] = defaultdict(list)
    for order_id, *columns in line_rows:
        lines[order_id].append(OrderedLine(*columns))
    return {row[0]: _order(row, lines[row[0]]) for row in rows}


def _order(row: Row, lines: Iterable[OrderedLine]) -> Order:
    identity, version, customer_id, status, currency, total, placed_at = row
    return Order(
        identity, version, customer_id, OrderStatus.ValueType(status), currency, total, tuple(lines), placed_at
    )


def _customer(row: Row) -> Customer:
    identity, version, name, email, phone, addresses, erased = row
    return Customer(identity, version, name, email, phone, tuple(AddressBook.FromString(addresses).addresses), erased)


def _product(row: Row) -> Product:
    (
        identity, version, name, description, category, price, currency, stock, discontinued, attributes,
    ) = row  # fmt: skip
    return Product(
        identity, version, name, description, category, price, currency, stock, discontinued, _attributes(attributes)
    )


# Between a product's revisions they are the same, and what sells is loaded with every batch.
@lru_cache(maxsize=1024)
def _attributes(stored: bytes) -> tuple[tuple[str, str], ...]:
    return tuple((it.name, it.value) for it in ProductAttributes.FromString(stored).attributes)


def save(connection: Connection, before: Aggregates, after: Aggregates) -> PersonalKeys:
    """Writes what differs, in one statement: inserts what is new, updates what changed.

    New customers get their keys, which are returned, and the keys of erased ones are destroyed. An insert fails with a
    unique violation when another transaction has created the same in between.
    """
    new_customers, new_orders = _new(before.customers, after.customers), _new(before.orders, after.orders)
    changed_customers = _changed(before.customers, after.customers)
    sold, changed = _by_what_changed(before.products, _changed(before.products, after.products))
    keys = {it.id: new_key() for it in new_customers}
    # One that was registered and erased in this very batch leaves a key for its events, and none in the table.
    new_keys = [(it.id, None if it.erased else keys[it.id]) for it in new_customers]
    destroyed = [(it.id, None) for it in changed_customers if it.erased]
    writes = [
        *inserted(customer, map(_customer_row, new_customers)),
        *inserted(subject_key, new_keys),
        *inserted(product, map(_product_row, _new(before.products, after.products))),
        *inserted(subscription, map(_subscription_row, _new(before.subscriptions, after.subscriptions))),
        *updated(subscription, map(_subscription_row, _changed(before.subscriptions, after.subscriptions))),
        *inserted(customer_order, map(_order_row, new_orders)),
        *inserted(order_line, (row for order in new_orders for row in _line_rows(order))),
        *updated(customer_order, map(_order_row, _changed(before.orders, after.orders))),
        *updated(customer, map(_customer_row, changed_customers)),
        *updated(subject_key, destroyed),
        *updated(product, ((it.id, it.stock) for it in sold), names=("id", "stock")),
        *updated(product, map(_product_row, changed)),
    ]
    execute(connection, writes)
    return keys


def _new(before: dict[Id, T], after: dict[Id, T]) -> list[T]:
    return [aggregate for identity, aggregate in after.items() if identity not in before]


def _changed(before: dict[Id, T], after: dict[Id, T]) -> list[T]:
    # An aggregate is replaced by another object when an event changes it, so identity tells.
    return [aggregate for identity, aggregate in after.items() if before.get(identity, aggregate) is not aggregate]


def _by_what_changed(before: dict[Id, Product], changed: Iterable[Product]) -> tuple[list[Product], list[Product]]:
    """Those of which only the stock changed, most of them, and the others: what orders do is no new version."""
    sold: list[Product] = []
    others: list[Product] = []
    for it in changed:
        (sold if it.version == before[it.id].version else others).append(it)
    return sold, others


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


def _subscription(row: Row) -> Subscription:
    (
        identity, version, customer_id, status, plan, price, currency, period_months, *moments, reason,
    ) = row  # fmt: skip
    # The database answers in the session's time zone.
    started_at, period_start, period_end = (it.astimezone(UTC) for it in moments)
    return Subscription(
        identity, version, customer_id, SubscriptionStatus.ValueType(status), plan, price, currency, period_months,
        started_at, period_start, period_end, reason,
    )  # fmt: skip


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
