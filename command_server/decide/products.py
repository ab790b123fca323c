"""Rules for products and their stock."""

from collections.abc import Iterable

from google.protobuf.message import Message

from command_server.aggregates import Aggregates, Product
from command_server.command import Command
from command_server.decide.rules import check_version, must_be_new, not_found, refuse
from commerce.command.v1 import command_service_pb2 as commands
from commerce.event.v1.event_pb2 import (
    PriceChanged,
    ProductAdded,
    ProductDiscontinued,
    ProductRevised,
    StockAdjusted,
)
from commerce.type.v1.product_attribute_pb2 import ProductAttribute

# Far above any warehouse, far below what 64 bits hold: sums of it stay exact.
MAX_STOCK = 1_000_000_000_000


def add_product(request: commands.AddProductRequest, command: Command, aggregates: Aggregates) -> list[Message]:
    must_be_new(aggregates.products.get(command.subject_id), "product", command.subject_id)
    return [
        ProductAdded(
            product_id=str(command.subject_id),
            version=1,
            name=request.name,
            description=request.description,
            category=request.category,
            price=request.price,
            stock=request.initial_stock,
            attributes=_by_name(request.attributes),
        )
    ]


def revise_product(request: commands.ReviseProductRequest, command: Command, aggregates: Aggregates) -> list[Message]:
    product = _existing(command, aggregates)
    check_version(request, product.version)
    kept = [ProductAttribute(name=name, value=value) for name, value in product.attributes]
    return [
        ProductRevised(
            product_id=str(product.id),
            version=product.version + 1,
            name=request.name if request.HasField("name") else product.name,
            description=request.description if request.HasField("description") else product.description,
            category=request.category if request.HasField("category") else product.category,
            attributes=_by_name(request.attributes.attributes) if request.HasField("attributes") else kept,
        )
    ]


def change_price(request: commands.ChangePriceRequest, command: Command, aggregates: Aggregates) -> list[Message]:
    product = _existing(command, aggregates)
    check_version(request, product.version)
    if request.price.currency_code != product.currency:
        raise refuse("CURRENCY_MISMATCH", f"products/{product.id}", f"its prices are in {product.currency}")
    return [PriceChanged(product_id=str(product.id), version=product.version + 1, price=request.price)]


def adjust_stock(request: commands.AdjustStockRequest, command: Command, aggregates: Aggregates) -> list[Message]:
    product = _existing(command, aggregates)
    check_version(request, product.version)
    if product.stock + request.delta < 0:
        raise refuse("OUT_OF_STOCK", f"products/{product.id}", f"only {product.stock} are left")
    if product.stock + request.delta > MAX_STOCK:
        raise refuse("STOCK_LIMIT", f"products/{product.id}", f"more than {MAX_STOCK} cannot be in stock")
    return [StockAdjusted(product_id=str(product.id), version=product.version + 1, delta=request.delta)]


def discontinue_product(
    request: commands.DiscontinueProductRequest, command: Command, aggregates: Aggregates
) -> list[Message]:
    product = _existing(command, aggregates)
    check_version(request, product.version)
    if product.discontinued:
        raise refuse("ALREADY_DISCONTINUED", f"products/{product.id}", "it is no longer sold already")
    return [ProductDiscontinued(product_id=str(product.id), version=product.version + 1)]


def _by_name(attributes: Iterable[ProductAttribute]) -> list[ProductAttribute]:
    """In one order whoever sends them, so that equal products have equal bytes."""
    return sorted(attributes, key=lambda it: it.name)


def _existing(command: Command, aggregates: Aggregates) -> Product:
    product = aggregates.products.get(command.subject_id)
    if product is None:
        raise not_found("product", command.subject_id)
    return product
