"""ProductCard: a product as it is now, with what can still be ordered."""

from collections.abc import Iterable

from commerce.event.v1 import event_pb2 as events
from commerce.query.v1.views_pb2 import ProductCard
from shop import views
from tandem.projection.projection import Columns, Projection, present


def added(_view: ProductCard | None, event: events.ProductAdded) -> ProductCard:
    return ProductCard(
        product_id=event.product_id,
        name=event.name,
        description=event.description,
        category=event.category,
        price=event.price,
        available=event.stock,
        version=event.version,
        attributes=event.attributes,
    )


def revised(view: ProductCard | None, event: events.ProductRevised) -> ProductCard:
    changed: ProductCard = present(view)
    changed.name = event.name
    changed.description = event.description
    changed.category = event.category
    del changed.attributes[:]
    changed.attributes.extend(event.attributes)
    changed.version = event.version
    return changed


def price_changed(view: ProductCard | None, event: events.PriceChanged) -> ProductCard:
    changed: ProductCard = present(view)
    changed.price.CopyFrom(event.price)
    changed.version = event.version
    return changed


def stock_adjusted(view: ProductCard | None, event: events.StockAdjusted) -> ProductCard:
    changed: ProductCard = present(view)
    changed.available += event.delta
    changed.version = event.version
    return changed


def discontinued(view: ProductCard | None, event: events.ProductDiscontinued) -> ProductCard:
    changed: ProductCard = present(view)
    changed.discontinued = True
    changed.version = event.version
    return changed


def ordered(view: ProductCard | None, units: int) -> ProductCard:
    changed: ProductCard = present(view)
    changed.available -= units
    return changed


def given_back(view: ProductCard | None, units: int) -> ProductCard:
    changed: ProductCard = present(view)
    changed.available += units
    return changed


def units_of(lines: Iterable[events.OrderLine | events.ReleasedStock]) -> dict[str, int]:
    """How many units of each product."""
    units: dict[str, int] = {}
    for line in lines:
        product_id = line.product_id
        units[product_id] = units.get(product_id, 0) + line.quantity
    return units


def columns(view: ProductCard, _began: int) -> Columns:
    """price in minor units, currency_code and available: what searches filter and sort by."""
    price = view.price
    return price.minor_units, price.currency_code, view.available


PROJECTION = Projection(
    table=views.product_card,
    message=ProductCard,
    key_field="product_id",
    rules={
        "product_added": added,
        "product_revised": revised,
        "price_changed": price_changed,
        "stock_adjusted": stock_adjusted,
        "product_discontinued": discontinued,
        "order_placed": ordered,
        "order_cancelled": given_back,
    },
    parts={
        "order_placed": lambda event: units_of(event.lines),
        "order_cancelled": lambda event: units_of(event.released),
    },
    columns=columns,
    begins=frozenset({"product_added"}),
)
