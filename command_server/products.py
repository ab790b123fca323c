"""Products and their stock."""

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from google.protobuf.message import Message
from sqlalchemy import BigInteger, Boolean, CheckConstraint, Column, LargeBinary, Table, Text, Uuid, text

from commerce.command.v1 import command_service_pb2 as commands
from commerce.event.v1 import event_pb2 as events
from commerce.type.v1.product_attribute_pb2 import ProductAttribute
from tandem.commands.domain import Command, change, change_fields, rule
from tandem.commands.rules import Id, moment, must_be_new, refusal
from tandem.commands.write_model import Aggregate, States
from tandem.feed.table import metadata
from tandem.runtime.bulk import Row
from tandem.runtime.checker import Checker

# Far above any warehouse, far below what 64 bits hold: sums of it stay exact.
MAX_STOCK = 1_000_000_000_000
MAX_ATTRIBUTES_LENGTH = 16_000
"""Characters of a product's attributes together: a search finds all their words (shop.words.MAX_LETTERS)."""


# The state, its table and its rows


class Product(NamedTuple):
    """`stock` is what can still be ordered: orders take from it when they are placed. `price` in minor units.

    Orders do not count up `version`: a caller that changes a price must not race with every sale.
    """

    id: Id
    version: int
    name: str
    description: str
    category: str
    price: int
    currency: str
    stock: int
    discontinued: bool
    unlimited_stock: bool
    """Nobody counts its stock, which is MAX_STOCK for ever."""
    not_shipped: bool
    attributes: tuple[tuple[str, str], ...]
    """(name, value), by name and value."""

    def with_stock(self, stock: int) -> "Product":
        """As `_replace`, in half of the time: each order does this to some products."""
        return Product(
            self.id, self.version, self.name, self.description, self.category, self.price, self.currency, stock,
            self.discontinued, self.unlimited_stock, self.not_shipped, self.attributes,
        )  # fmt: skip


# Checks that rules make already stand here once more for what must never be wrong, whoever writes.
product_table = Table(
    "product",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("name", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("category", Text, nullable=False),
    Column("price", BigInteger, CheckConstraint("price >= 0"), nullable=False, comment="minor units"),
    Column("currency", Text, nullable=False),
    Column("stock", BigInteger, CheckConstraint("stock >= 0"), nullable=False),
    Column("discontinued", Boolean, nullable=False),
    Column("unlimited_stock", Boolean, nullable=False, server_default=text("false")),
    Column("not_shipped", Boolean, nullable=False, server_default=text("false")),
    Column(
        "attributes",
        LargeBinary,
        nullable=False,
        server_default=text("''::bytea"),
        comment="commerce.command.v1.ProductAttributes",
    ),
)


def _of_row(row: Row) -> Product:
    return Product._make((*row[:-1], _parsed(row[-1])))


# Between a product's revisions they are the same, and what sells is loaded with every batch.
@lru_cache(maxsize=1024)
def _parsed(stored: bytes) -> tuple[tuple[str, str], ...]:
    return tuple((it.name, it.value) for it in commands.ProductAttributes.FromString(stored).attributes)


def _row_of(it: Product) -> Row:
    attributes = commands.ProductAttributes(
        attributes=[ProductAttribute(name=name, value=value) for name, value in it.attributes]
    )
    return *it[:-1], attributes.SerializeToString(deterministic=True)


PRODUCTS = Aggregate("product", product_table, of_row=_of_row, row_of=_row_of, unversioned=["stock"])


# What makes a request wrong in itself, beside what the contract says of each field


def check_add_product(request: commands.AddProductRequest, check: Checker) -> None:
    if request.unlimited_stock and request.initial_stock:
        check.wrong("initial_stock", "INVALID", "must not be set together with unlimited_stock")
    _check_attributes(request.attributes, check)


def _check_attributes(attributes: Iterable[ProductAttribute], check: Checker) -> None:
    length = sum(len(it.name) + len(it.value) for it in attributes)
    if length > MAX_ATTRIBUTES_LENGTH:
        description = f"have {length} characters together; at most {MAX_ATTRIBUTES_LENGTH} are taken"
        check.wrong("attributes", "TOO_LONG", description)


def check_revise_product(request: commands.ReviseProductRequest, check: Checker) -> None:
    changes = ("name", "description", "category", "attributes")
    if not {field.name for field, _ in request.ListFields()}.intersection(changes):
        for name in changes:
            check.wrong(name, "REQUIRED", f"one of {', '.join(changes)} must be set")
    _check_attributes(request.attributes.attributes, check)


def check_adjust_stock(request: commands.AdjustStockRequest, check: Checker) -> None:
    if request.delta == 0:
        check.wrong("delta", "OUT_OF_RANGE", "must not be zero")


# The rules


@rule(PRODUCTS, check=check_add_product)
def add_product(request: commands.AddProductRequest, command: Command, states: States) -> list[Message]:
    must_be_new(states[PRODUCTS].get(command.subject_id), "product", command.subject_id)
    return [
        events.ProductAdded(
            product_id=command.subject_id,
            version=1,
            name=request.name,
            description=request.description,
            category=request.category,
            price=request.price,
            stock=MAX_STOCK if request.unlimited_stock else request.initial_stock,
            attributes=_by_name(request.attributes),
            external_reference=request.external_reference,
            added_at=moment(request, "added_at", command.now),
            unlimited_stock=request.unlimited_stock,
            not_shipped=request.not_shipped,
        )
    ]


@rule(PRODUCTS, check=check_revise_product)
def revise_product(request: commands.ReviseProductRequest, command: Command, states: States) -> list[Message]:
    product = PRODUCTS.current(states, request, command.subject_id)
    kept = [ProductAttribute(name=name, value=value) for name, value in product.attributes]
    return [
        events.ProductRevised(
            product_id=product.id,
            version=product.version + 1,
            name=request.name if request.HasField("name") else product.name,
            description=request.description if request.HasField("description") else product.description,
            category=request.category if request.HasField("category") else product.category,
            attributes=_by_name(request.attributes.attributes) if request.HasField("attributes") else kept,
        )
    ]


@rule(PRODUCTS)
def change_price(request: commands.ChangePriceRequest, command: Command, states: States) -> list[Message]:
    product = PRODUCTS.current(states, request, command.subject_id)
    if request.price.currency_code != product.currency:
        raise refusal("CURRENCY_MISMATCH", f"products/{product.id}", f"its prices are in {product.currency}")
    return [events.PriceChanged(product_id=product.id, version=product.version + 1, price=request.price)]


@rule(PRODUCTS, check=check_adjust_stock)
def adjust_stock(request: commands.AdjustStockRequest, command: Command, states: States) -> list[Message]:
    product = PRODUCTS.current(states, request, command.subject_id)
    if product.unlimited_stock:
        raise refusal("STOCK_UNLIMITED", f"products/{product.id}", "nobody counts its stock")
    if product.stock + request.delta < 0:
        raise refusal("OUT_OF_STOCK", f"products/{product.id}", f"only {product.stock} are left")
    if product.stock + request.delta > MAX_STOCK:
        raise refusal("STOCK_LIMIT", f"products/{product.id}", f"more than {MAX_STOCK} cannot be in stock")
    left = product.stock + request.delta
    return [
        events.StockAdjusted(product_id=product.id, version=product.version + 1, delta=request.delta, stock_left=left)
    ]


@rule(PRODUCTS)
def discontinue_product(request: commands.DiscontinueProductRequest, command: Command, states: States) -> list[Message]:
    product = PRODUCTS.current(states, request, command.subject_id)
    if product.discontinued:
        raise refusal("ALREADY_DISCONTINUED", f"products/{product.id}", "it is no longer sold already")
    return [events.ProductDiscontinued(product_id=product.id, version=product.version + 1)]


def _by_name(attributes: Iterable[ProductAttribute]) -> list[ProductAttribute]:
    """In one order whoever sends them, so that equal products have equal bytes."""
    return sorted(attributes, key=lambda it: (it.name, it.value))


# What each event changes


@change(PRODUCTS)
def product_added(states: States, event: events.ProductAdded) -> None:
    product = Product(
        id=event.product_id,
        version=event.version,
        name=event.name,
        description=event.description,
        category=event.category,
        price=event.price.minor_units,
        currency=event.price.currency_code,
        stock=event.stock,
        discontinued=False,
        unlimited_stock=event.unlimited_stock,
        not_shipped=event.not_shipped,
        attributes=_attributes(event),
    )
    states[PRODUCTS][product.id] = product


@change(PRODUCTS)
def product_revised(states: States, event: events.ProductRevised) -> None:
    PRODUCTS.change(
        states,
        event,
        name=event.name,
        description=event.description,
        category=event.category,
        attributes=_attributes(event),
    )


@change(PRODUCTS)
def price_changed(states: States, event: events.PriceChanged) -> None:
    PRODUCTS.change(states, event, price=event.price.minor_units)


@change(PRODUCTS)
def stock_adjusted(states: States, event: events.StockAdjusted) -> None:
    PRODUCTS.change(states, event, stock=states[PRODUCTS][event.product_id].stock + event.delta)


def change_stock(states: States, product_id: Id, delta: int) -> None:
    """What an order does to a product: no new version of it."""
    products = states[PRODUCTS]
    product = products[product_id]
    if not product.unlimited_stock:
        products[product_id] = product.with_stock(product.stock + delta)


def _attributes(event: events.ProductAdded | events.ProductRevised) -> tuple[tuple[str, str], ...]:
    return tuple((it.name, it.value) for it in event.attributes)


change_fields(PRODUCTS, events.ProductDiscontinued, discontinued=True)
