"""GetSalesSummary: sums over a range of days, from the rows of each day.

All currencies' days and the products with the highest revenue come from one statement, so an answer is one state.
"""

import re
from collections.abc import Iterator, Sequence
from datetime import date
from functools import cache, partial
from typing import Any, NamedTuple

from commerce.internal.v1.stored_pb2 import SalesSummaryRow
from commerce.query.v1.query_service_pb2 import GetSalesSummaryRequest, GetSalesSummaryResponse
from commerce.query.v1.sales_pb2 import ProductSales, SalesDay, SalesFigures, SalesSummary
from commerce.type.v1.money_pb2 import Money
from shop.views import sales_summary
from tandem.queries.checker import QueryChecker
from tandem.queries.damage import RowCheck
from tandem.queries.encoding import EncodedField, as_of_text
from tandem.queries.parked import LookUp, parked_fields, parked_of
from tandem.queries.statements import Answer, StatementQuery, answer_each
from tandem.queries.store import AT, Store, position_of
from tandem.read_store.tables import newest
from tandem.runtime.errors import PreconditionFailed, TandemError, Violation
from tandem.runtime.field_checks import rule_of

MAX_DAYS = 366
MAX_TOP_PRODUCTS = rule_of(GetSalesSummaryRequest.DESCRIPTOR.fields_by_name["top_products"]).max
DEFAULT_TOP_PRODUCTS = 10
# An answer with so many full years and full lists of products, with names as long as can be, is what clients take:
# tests/architecture/test_answers.py.
MAX_CURRENCIES = 25
MAX_SUM = 2**63 - 1
"""What a column and a message can hold. A sum that is larger is given as this."""

_AS_OF = EncodedField(GetSalesSummaryResponse, "as_of")
_CHECK = RowCheck(sales_summary.name, SalesSummaryRow)
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


class SalesKey(NamedTuple):
    """The days from `first` to `last`, one currency or ("") all of them, and so many top products of each."""

    first: date
    last: date
    currency_code: str
    top_products: int


def _dates(request: GetSalesSummaryRequest, check: QueryChecker) -> tuple[date, date]:
    """A range of 1 to MAX_DAYS days, both ends included; without a last day it is the first."""
    start = _date("start_date", request.start_date, check)
    end = _date("end_date", request.end_date, check) if request.end_date else start
    if start and end:
        days = (end - start).days + 1
        if days < 1:
            check.wrong("end_date", "OUT_OF_RANGE", "must not be before start_date")
        elif days > MAX_DAYS:
            check.wrong("end_date", "OUT_OF_RANGE", f"ends a range of {days} days; it must have at most {MAX_DAYS}")
    return start or date.min, end or date.min


def _date(field: str, value: str, check: QueryChecker) -> date | None:
    try:
        if _DATE.fullmatch(value):
            return date.fromisoformat(value)
    except ValueError:
        pass  # the 30th of February
    if value:
        check.wrong(field, "MALFORMED", "must be a day of the calendar such as 2026-01-31")
    else:
        check.wrong(field, "REQUIRED", "is required")
    return None


_OF_DAYS = "scope BETWEEN CAST(CAST(:first AS date) AS text) AND CAST(CAST(:last AS date) AS text)"


@cache
def _look_up(*, one_currency: bool, with_products: bool) -> LookUp:
    table = sales_summary.fullname
    currency = "AND s.currency_code = :currency" if one_currency else ""
    products = f"""
        UNION ALL
        SELECT r.currency_code, NULL, r.rank, r.product_id, n.value,
            r.order_count, r.unit_count, r.revenue, 0, 0, 0, 0, 0
        FROM (
            SELECT *, row_number() OVER (PARTITION BY currency_code ORDER BY revenue DESC, product_id) AS rank
            FROM (
                SELECT s.currency_code, s.product_id, max(s.day) AS last_day,
                    CAST(LEAST(sum(s.order_count), {MAX_SUM}) AS bigint) AS order_count,
                    CAST(LEAST(sum(s.unit_count), {MAX_SUM}) AS bigint) AS unit_count,
                    CAST(LEAST(sum(s.revenue), {MAX_SUM}) AS bigint) AS revenue
                FROM {table} AS s
                WHERE s.product_id IS NOT NULL AND s.day BETWEEN :first AND :last {currency}
                GROUP BY s.currency_code, s.product_id HAVING sum(s.order_count) > 0
            ) AS sums
        ) AS r
        -- The name is the one of the day on which it was ordered last.
        CROSS JOIN LATERAL (
            SELECT s.value FROM {table} AS s
            WHERE s.day = r.last_day AND s.currency_code = r.currency_code AND s.product_id = r.product_id
            LIMIT 1
        ) AS n
        WHERE r.rank <= :top"""  # noqa: S608 - only the table's name is put in

    def statement(parked: str, looked_up: str) -> str:
        return f"""
    SELECT {AT}, {parked}, v.*
    FROM {newest(f"'{sales_summary.name}'")} AS p {looked_up} LEFT JOIN (
        SELECT s.currency_code, s.day, NULL AS rank, s.product_id, NULL AS value,
            s.order_count, s.unit_count, s.revenue, s.shipping_fees,
            s.cancelled_order_count, s.cancelled_unit_count, s.cancelled_revenue, s.cancelled_shipping_fees
        FROM {table} AS s WHERE s.product_id IS NULL AND s.day BETWEEN :first AND :last {currency}
        {products if with_products else ""}
    ) AS v ON true
    ORDER BY v.day, v.rank LIMIT :most
    """  # noqa: S608

    return LookUp.of(statement, {"p": sales_summary.name}, _OF_DAYS)


class SalesQuery(StatementQuery[SalesKey]):
    name = "GetSalesSummary"
    kind = "sales"
    views = (sales_summary.name,)

    def __init__(self, store: Store) -> None:
        self._store = store

    def wanted(self, request: GetSalesSummaryRequest, check: QueryChecker) -> SalesKey:
        first, last = _dates(request, check)
        top = request.top_products if request.HasField("top_products") else DEFAULT_TOP_PRODUCTS
        return SalesKey(first, last, request.currency_code, top)

    def read(self, wanted: Sequence[SalesKey]) -> Iterator[Answer | TandemError]:
        return answer_each(self._answer, wanted)

    def _answer(self, wanted: SalesKey) -> Answer:
        """Raises Unavailable, also for a row that is damaged, and PreconditionFailed for more than MAX_CURRENCIES."""
        arguments: dict[str, object] = {
            "first": wanted.first,
            "last": wanted.last,
            "currency": wanted.currency_code,
            "top": wanted.top_products,
            # More than this are of more currencies than are answered.
            "most": MAX_CURRENCIES * (MAX_DAYS + MAX_TOP_PRODUCTS) + 1,
        }
        look_up = _look_up(one_currency=bool(wanted.currency_code), with_products=bool(wanted.top_products))
        rows = look_up.read(partial(self._store.execute_on, sales_summary.name, arguments=arguments))
        response = GetSalesSummaryResponse(summaries=_summaries([row for row in rows if row.currency_code is not None]))
        as_of, parked = position_of(rows[0]), parked_of(rows[0])
        fields = _AS_OF(as_of_text(parked.shown_at(as_of))) + parked_fields(GetSalesSummaryResponse, parked)
        return Answer(response.SerializeToString(deterministic=True) + fields, as_of, parked)


def _summaries(rows: Sequence[Any]) -> Iterator[SalesSummary]:
    """Of rows in the order of days and ranks, by currency."""
    by_currency: dict[str, list[Any]] = {}
    for row in rows:
        by_currency.setdefault(row.currency_code, []).append(row)
    if len(by_currency) > MAX_CURRENCIES:
        description = f"more than {MAX_CURRENCIES} currencies have sales in this range; name one"
        raise PreconditionFailed([Violation("currency_code", description, "TOO_MANY_CURRENCIES")])
    for currency in sorted(by_currency):
        days = [row for row in by_currency[currency] if row.day is not None]
        products = [row for row in by_currency[currency] if row.day is None]
        yield SalesSummary(
            currency_code=currency,
            sold=_figures(days),
            cancelled=_figures(days, "cancelled_"),
            days=[
                SalesDay(date=row.day.isoformat(), sold=_figures([row]), cancelled=_figures([row], "cancelled_"))
                for row in days
            ],
            top_products=[_product(row) for row in products],
        )


def _figures(days: Sequence[Any], of: str = "") -> SalesFigures:
    """Sums over days, at least one, of one currency. of: what the names of the columns begin with."""

    def total(column: str) -> int:
        value: int = sum(getattr(day, of + column) for day in days)
        return min(value, MAX_SUM)

    currency = days[0].currency_code
    return SalesFigures(
        order_count=total("order_count"),
        unit_count=total("unit_count"),
        revenue=Money(minor_units=total("revenue"), currency_code=currency),
        shipping_fees=Money(minor_units=total("shipping_fees"), currency_code=currency),
    )


def _product(row: Any) -> ProductSales:
    if (damage := _CHECK.failure(row.value)) is not None:
        raise damage
    return ProductSales(
        product_id=str(row.product_id),
        product_name=SalesSummaryRow.FromString(row.value).product_name,
        order_count=row.order_count,
        unit_count=row.unit_count,
        revenue=Money(minor_units=row.revenue, currency_code=row.currency_code),
    )
