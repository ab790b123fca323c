"""The sales of Northwind by SQL alone: its files in two tables, and the sums that GetSalesSummary must give."""

from collections.abc import Iterable
from datetime import date
from typing import Any

import psycopg

from commerce.query.v1.sales_pb2 import ProductSales, SalesDay, SalesFigures, SalesSummary
from tests.support.builders import identity, usd
from tests.support.northwind import Northwind

_TABLES = """
CREATE TABLE placed (id text PRIMARY KEY, day date, freight bigint, cancelled boolean DEFAULT false);
CREATE TABLE line (order_id text, product uuid, name text, quantity bigint, price bigint, discount int)
"""
# Cents, rounded half up, which is what SQL's round does with a numeric.
_ORDERS = """
SELECT {day} AS day, o.cancelled, count(*), sum(l.units), sum(l.revenue), sum(o.freight)
FROM placed AS o JOIN (
  SELECT order_id, sum(quantity) AS units, sum(round(price * quantity * (100 - discount) / 100.0)) AS revenue
  FROM line GROUP BY order_id
) AS l ON l.order_id = o.id
WHERE o.day BETWEEN %s AND %s GROUP BY 1, 2 ORDER BY 1
"""
_PRODUCTS = """
SELECT l.product, max(l.name), count(DISTINCT o.id), sum(l.quantity),
  sum(round(l.price * l.quantity * (100 - l.discount) / 100.0)) AS revenue
FROM placed AS o JOIN line AS l ON l.order_id = o.id
WHERE o.day BETWEEN %s AND %s AND NOT o.cancelled GROUP BY l.product ORDER BY revenue DESC, l.product LIMIT %s
"""


class NorthwindSales:
    def __init__(self, connection: "psycopg.Connection[Any]", northwind: Northwind) -> None:
        """connection: to an empty database, in autocommit mode."""
        self._connection = connection
        names = {it["product_id"]: it["product_name"] for it in northwind.products}
        connection.execute(_TABLES)
        with connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO placed VALUES (%s, %s, %s)",
                [(it["order_id"], it["order_date"], it["freight_cents"]) for it in northwind.orders],
            )
            cursor.executemany(
                "INSERT INTO line VALUES (%s, %s, %s, %s, %s, %s)",
                [
                    (
                        line["order_id"],
                        identity("northwind", "product", line["product_id"]),
                        names[line["product_id"]],
                        line["quantity"],
                        line["unit_price_cents"],
                        line["discount_percent"],
                    )
                    for lines in northwind.lines.values()
                    for line in lines
                ],
            )

    def cancel(self, order_ids: Iterable[str]) -> None:
        """order_ids: as the files have them."""
        self._connection.execute("UPDATE placed SET cancelled = true WHERE id = ANY(%s)", [list(order_ids)])

    def days(self) -> list[date]:
        """Those with orders."""
        return [day for (day,) in self._connection.execute("SELECT DISTINCT day FROM placed ORDER BY day")]

    def summaries(self, first: date, last: date, products: int) -> list[SalesSummary]:
        """What the response's field of this name must be."""
        by_day = self._figures("o.day", first, last)
        if not by_day:
            return []
        [(sold, cancelled)] = self._figures("''", first, last).values()
        top = self._connection.execute(_PRODUCTS, (first, last, products)).fetchall()
        return [
            SalesSummary(
                currency_code="USD",
                sold=sold,
                cancelled=cancelled,
                days=[SalesDay(date=str(day), sold=it[0], cancelled=it[1]) for day, it in by_day.items()],
                top_products=[
                    ProductSales(
                        product_id=str(product),
                        product_name=name,
                        order_count=orders,
                        unit_count=int(units),
                        revenue=usd(int(revenue)),
                    )
                    for product, name, orders, units, revenue in top
                ],
            )
        ]

    def _figures(self, day: str, first: date, last: date) -> dict[Any, list[SalesFigures]]:
        """Of the orders that stand and of those that are cancelled, by day."""
        found: dict[Any, list[SalesFigures]] = {}
        query = _ORDERS.format(day=day)
        for key, cancelled, *numbers in self._connection.execute(query, (first, last)):
            both = found.setdefault(key, [_of(0, 0, 0, 0), _of(0, 0, 0, 0)])
            both[cancelled] = _of(*map(int, numbers))
        return found


def _of(orders: int, units: int, revenue: int, fees: int) -> SalesFigures:
    return SalesFigures(order_count=orders, unit_count=units, revenue=usd(revenue), shipping_fees=usd(fees))
