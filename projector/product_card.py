"""ProductCard: a product as it is now, with what can still be ordered."""

from collections.abc import Iterable

from commerce.event.v1 import event_pb2 as events
from commerce.query.v1.views_pb2 import ProductCard
from shop import views
from tandem.projection.projection import Columns, Projection


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
        external_reference=event.external_reference,
        added_at=event.added_at if event.HasField("added_at") else None,
        unlimited_stock=event.unlimited_stock,
        not_shipped=event.not_shipped,
    )


def revised(view: ProductCard, event: events.ProductRevised) -> ProductCard:
    view.name = event.name
    view.description = event.description
    view.category = event.category
    del view.attributes[:]
    view.attributes.extend(event.attributes)
    view.version = event.version
    return view


def price_changed(view: ProductCard, event: events.PriceChanged) -> ProductCard:
    view.price.CopyFrom(event.price)
    view.version = event.version
    return view


def stock_adjusted(view: ProductCard, event: events.StockAdjusted) -> ProductCard:
    view.available += event.delta
    view.version = event.version
    return view


def discontinued(view: ProductCard, event: events.ProductDiscontinued) -> ProductCard:
    view.discontinued = True
    view.version = event.version
    return view


def ordered(view: ProductCard, units: int) -> ProductCard:
    if not view.unlimited_stock:
        view.available -= units
    return sold(view, units)


def sold(view: ProductCard, units: int) -> ProductCard:
    view.units_sold += units
    return view


def given_back(view: ProductCard, units: int) -> ProductCard:
    if not view.unlimited_stock:
        view.available += units
    view.units_sold -= units
    return view


def units_of(lines: Iterable[events.OrderLine | events.ReleasedStock]) -> dict[str, int]:
    """How many units of each product."""
    units: dict[str, int] = {}
    for line in lines:
        product_id = line.product_id
        units[product_id] = units.get(product_id, 0) + line.quantity
    return units


def units_of_imported(event: events.OrderImported) -> dict[str, int]:
    """None of one that was cancelled."""
    return {} if event.HasField("cancelled_at") else units_of(event.lines)


def columns(view: ProductCard, _began: int) -> Columns:
    """price in minor units, currency_code, available and units_sold: what searches filter and sort by."""
    price = view.price
    return price.minor_units, price.currency_code, view.available, view.units_sold


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
        "order_imported": sold,
        "order_cancelled": given_back,
    },
    parts={
        "order_placed": lambda event: units_of(event.lines),
        "order_imported": units_of_imported,
        "order_cancelled": lambda event: units_of(event.released),
    },
    columns=columns,
    begins=frozenset({"product_added"}),
)
