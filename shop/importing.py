"""The tables that `tandem import` brings into the shop, in the order in which they depend on each other."""

from collections.abc import Sequence

from commerce.command.v1 import command_service_pb2 as commands
from commerce.query.v1 import query_service_pb2 as queries
from commerce.type.v1.money_pb2 import Money
from tandem.cli.tables import Table


def price(request: commands.AddProductRequest) -> Money:
    return request.price


def total(request: commands.ImportOrderRequest) -> Money:
    """What the order costs, worked out here once more: the two sides are to agree on it."""
    lines = sum(
        it.line_total.minor_units
        if it.HasField("line_total")
        else (it.unit_price.minor_units * it.quantity * (10_000 - it.discount_basis_points) + 5_000) // 10_000
        for it in request.lines
    )
    terms = request.terms
    added_tax = 0 if terms.tax_included else terms.tax.minor_units
    minor_units = lines - terms.discount.minor_units + request.shipping_fee.minor_units + added_tax
    currency = request.lines[0].unit_price.currency_code if request.lines else ""
    return Money(minor_units=minor_units, currency_code=currency)


TABLES: Sequence[Table] = (
    Table(
        "customers",
        commands.RegisterCustomerRequest,
        key="customer_id",
        rpc="ListCustomers",
        listing=queries.ListCustomersRequest,
        rows="customers",
        reference="external_reference",
    ),
    Table(
        "products",
        commands.AddProductRequest,
        key="product_id",
        rpc="ListProducts",
        listing=queries.ListProductsRequest,
        rows="products",
        reference="external_reference",
        pairs="attributes",
        further={"discontinued": commands.DiscontinueProductRequest},
        comes_to=price,
        shows=lambda row: row.price,
    ),
    Table(
        "orders",
        commands.ImportOrderRequest,
        key="order_id",
        refers={"customer_id": "customers", "product_id": "products"},
        rpc="ListOrders",
        listing=queries.ListOrdersRequest,
        rows="orders",
        reference="terms.external_reference",
        lines=("lines", "order_lines"),
        comes_to=total,
        shows=lambda row: row.total,
    ),
)
