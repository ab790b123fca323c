"""The Northwind trading data: read from its CSV files, sent as commands, and joined independently of Tandem.

91 customers, 77 products, 830 orders, 2,155 lines. A line's price is the price on the day of the order.
"""

import asyncio
import csv
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf.timestamp_pb2 import Timestamp

from commerce.command.v1 import command_service_pb2 as commands
from commerce.query.v1.views_pb2 import CustomerProfile, OrderDetails, OrderDetailsLine, OrderSummary, ProductCard
from commerce.type.v1.address_pb2 import Address, NamedAddress
from commerce.type.v1.order_status_pb2 import OrderStatus
from tests.support.builders import identity, usd

if TYPE_CHECKING:
    from commerce.command.v1.command_service_pb2_grpc import CommandServiceAsyncStub

FOLDER = Path(__file__).parents[3] / "shared" / "data" / "northwind"

COUNTRIES = {
    "Argentina": "AR", "Austria": "AT", "Belgium": "BE", "Brazil": "BR", "Canada": "CA", "Denmark": "DK",
    "Finland": "FI", "France": "FR", "Germany": "DE", "Ireland": "IE", "Italy": "IT", "Mexico": "MX", "Norway": "NO",
    "Poland": "PL", "Portugal": "PT", "Spain": "ES", "Sweden": "SE", "Switzerland": "CH", "UK": "GB", "USA": "US",
    "Venezuela": "VE",
}  # fmt: skip

Row = dict[str, str]


def _id(kind: str, number: str) -> str:
    return identity("northwind", kind, number)


def _moment(day: str) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(datetime.fromisoformat(day).replace(tzinfo=UTC))
    return timestamp


def _cents(value: Decimal) -> int:
    return int(value.quantize(Decimal(1), rounding=ROUND_HALF_UP))


@dataclass
class Northwind:
    customers: list[Row]
    products: list[Row]
    orders: list[Row]
    lines: dict[str, list[Row]]

    @classmethod
    def read(cls) -> "Northwind":
        lines = defaultdict(list)
        for line in _rows("order_lines"):
            lines[line["order_id"]].append(line)
        return cls(_rows("customers"), _rows("products"), _rows("orders"), dict(lines))

    async def replay(self, stub: "CommandServiceAsyncStub") -> str:
        """Sends everything in order of date, each order as its own unit; returns the last receipt's token."""
        await asyncio.gather(*(stub.RegisterCustomer(_register(it)) for it in self.customers))
        await asyncio.gather(*(stub.AddProduct(_add(it)) for it in self.products))
        # At once what is sold in two years: the files do not tell what came in when.
        await asyncio.gather(*(stub.AdjustStock(_restock(*it)) for it in self._sold().items()))
        prices = {it["product_id"]: it["unit_price_cents"] for it in self.products}
        token = ""
        for kind, order in self._by_date():
            if kind == "shipped":
                await stub.PayOrder(commands.PayOrderRequest(order_id=_id("order", order["order_id"])))
                token = (await stub.ShipOrder(_ship(order))).receipt.consistency_token
                continue
            lines = self.lines[order["order_id"]]
            changed = [it for it in lines if prices[it["product_id"]] != it["unit_price_cents"]]
            await asyncio.gather(
                *(stub.ChangePrice(_reprice(it["product_id"], it["unit_price_cents"])) for it in changed)
            )
            prices.update((it["product_id"], it["unit_price_cents"]) for it in changed)
            token = (await stub.PlaceOrder(_place(order, lines))).receipt.consistency_token
        for product in self.products:
            if prices[product["product_id"]] != product["unit_price_cents"]:
                answer = await stub.ChangePrice(_reprice(product["product_id"], product["unit_price_cents"]))
                token = answer.receipt.consistency_token
            if product["discontinued"] == "1":
                request = commands.DiscontinueProductRequest(product_id=_id("product", product["product_id"]))
                token = (await stub.DiscontinueProduct(request)).receipt.consistency_token
        return token

    def _sold(self) -> Counter[str]:
        """How many of each product, by its number in the files."""
        sold = Counter[str]()
        for line in chain.from_iterable(self.lines.values()):
            sold[line["product_id"]] += int(line["quantity"])
        return sold

    def _by_date(self) -> Iterator[tuple[str, Row]]:
        """Orders and shipments by day; on a day, orders before shipments; orders of a day by number."""
        placed = [(it["order_date"], 0, it["order_id"], "placed", it) for it in self.orders]
        shipped = [(it["shipped_date"], 1, it["order_id"], "shipped", it) for it in self.orders if it["shipped_date"]]
        for _, _, _, kind, order in sorted(placed + shipped, key=lambda it: it[:3]):
            yield kind, order

    # What the views must show, from the files alone.

    def order_ids(self) -> list[str]:
        return [_id("order", it["order_id"]) for it in self.orders]

    def customer_ids(self) -> list[str]:
        return [_id("customer", it["customer_id"]) for it in self.customers]

    @cached_property
    def order_details(self) -> dict[str, OrderDetails]:
        """By order id; without version and paid_at, which the files do not tell."""
        names = {it["customer_id"]: it["company_name"] for it in self.customers}
        products = {it["product_id"]: it["product_name"] for it in self.products}
        expected = {}
        for order in self.orders:
            lines = [_expected_line(it, products) for it in self.lines[order["order_id"]]]
            subtotal = sum(it.line_total.minor_units for it in lines)
            freight = int(order["freight_cents"])
            details = OrderDetails(
                order_id=_id("order", order["order_id"]),
                customer_id=_id("customer", order["customer_id"]),
                customer_name=names[order["customer_id"]],
                status=_status(order),
                shipping_address=_ship_address(order),
                lines=lines,
                subtotal=usd(subtotal),
                shipping_fee=usd(freight),
                total=usd(subtotal + freight),
                placed_at=_moment(order["order_date"]),
                shipped_at=_moment(order["shipped_date"]) if order["shipped_date"] else None,
            )
            expected[details.order_id] = details
        return expected

    def recent_orders(self, customer_id: str) -> list[OrderSummary]:
        """A customer's orders, newest first; without version."""
        newest_first = sorted(self.orders, key=lambda it: (it["order_date"], it["order_id"]), reverse=True)
        summaries = []
        for order in newest_first:
            details = self.order_details[_id("order", order["order_id"])]
            if details.customer_id == customer_id:
                summaries.append(
                    OrderSummary(
                        order_id=details.order_id,
                        customer_id=customer_id,
                        status=details.status,
                        total=details.total,
                        line_count=len(details.lines),
                        unit_count=sum(it.quantity for it in details.lines),
                        placed_at=details.placed_at,
                    )
                )
        return summaries

    def product_cards(self) -> dict[str, ProductCard]:
        """By product id; without version."""
        sold = Counter[str]()
        for order in self.order_details.values():
            for line in order.lines:
                sold[line.product_id] += line.quantity
        return {
            _id("product", it["product_id"]): ProductCard(
                product_id=_id("product", it["product_id"]),
                name=it["product_name"],
                description=it["quantity_per_unit"],
                category=it["category"],
                price=usd(int(it["unit_price_cents"])),
                available=int(it["units_in_stock"]),
                discontinued=it["discontinued"] == "1",
                units_sold=sold[_id("product", it["product_id"])],
            )
            for it in self.products
        }

    def customer_profiles(self) -> dict[str, CustomerProfile]:
        """By customer id; without registered_at and version."""
        return {
            _id("customer", it["customer_id"]): CustomerProfile(
                customer_id=_id("customer", it["customer_id"]),
                name=it["company_name"],
                phone=it["phone"],
                address=_address(it, "", it["contact_name"]),
                addresses=[NamedAddress(name="main", address=_address(it, "", it["contact_name"]), is_default=True)],
            )
            for it in self.customers
        }


def _rows(name: str) -> list[Row]:
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _address(row: Row, prefix: str, recipient: str) -> Address:
    return Address(
        recipient=recipient,
        street=row[f"{prefix}street"],
        city=row[f"{prefix}city"],
        region=row[f"{prefix}region"],
        postal_code=row[f"{prefix}postal_code"],
        country_code=COUNTRIES[row[f"{prefix}country"]],
    )


def _ship_address(order: Row) -> Address:
    return _address(order, "ship_", order["ship_name"])


def _register(row: Row) -> commands.RegisterCustomerRequest:
    return commands.RegisterCustomerRequest(
        request_id=_id("register", row["customer_id"]),
        customer_id=_id("customer", row["customer_id"]),
        name=row["company_name"],
        phone=row["phone"],
        address=_address(row, "", row["contact_name"]),
    )


def _add(row: Row) -> commands.AddProductRequest:
    return commands.AddProductRequest(
        request_id=_id("add", row["product_id"]),
        product_id=_id("product", row["product_id"]),
        name=row["product_name"],
        description=row["quantity_per_unit"],
        category=row["category"],
        price=usd(int(row["unit_price_cents"])),
        initial_stock=int(row["units_in_stock"]),
    )


def _reprice(product: str, cents: str) -> commands.ChangePriceRequest:
    return commands.ChangePriceRequest(product_id=_id("product", product), price=usd(int(cents)))


def _restock(product: str, quantity: int) -> commands.AdjustStockRequest:
    """What is ordered was delivered before, so that the stock at the end is the one in the file."""
    return commands.AdjustStockRequest(product_id=_id("product", product), delta=quantity)


def _place(order: Row, lines: list[Row]) -> commands.PlaceOrderRequest:
    return commands.PlaceOrderRequest(
        request_id=_id("place", order["order_id"]),
        order_id=_id("order", order["order_id"]),
        customer_id=_id("customer", order["customer_id"]),
        lines=[
            commands.PlaceOrderLine(
                product_id=_id("product", it["product_id"]),
                quantity=int(it["quantity"]),
                discount_basis_points=int(it["discount_percent"]) * 100,
            )
            for it in lines
        ],
        shipping_address=_ship_address(order),
        shipping_fee=usd(int(order["freight_cents"])),
        placed_at=_moment(order["order_date"]),
    )


def _ship(order: Row) -> commands.ShipOrderRequest:
    return commands.ShipOrderRequest(
        request_id=_id("ship", order["order_id"]),
        order_id=_id("order", order["order_id"]),
        shipped_at=_moment(order["shipped_date"]),
    )


def _status(order: Row) -> Any:
    return OrderStatus.ORDER_STATUS_SHIPPED if order["shipped_date"] else OrderStatus.ORDER_STATUS_PLACED


def _expected_line(line: Row, products: dict[str, str]) -> OrderDetailsLine:
    price, quantity = int(line["unit_price_cents"]), int(line["quantity"])
    kept = Decimal(100 - int(line["discount_percent"])) / 100
    return OrderDetailsLine(
        product_id=_id("product", line["product_id"]),
        product_name=products[line["product_id"]],
        unit_price=usd(price),
        quantity=quantity,
        discount_basis_points=int(line["discount_percent"]) * 100,
        line_total=usd(_cents(price * quantity * kept)),
    )
