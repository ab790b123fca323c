"""What GetSalesSummary may be asked for."""

from datetime import date, timedelta
from typing import Any

import pytest

from commerce.query.v1.query_service_pb2 import GetSalesSummaryRequest
from query_server.sales import SalesKey, SalesQuery
from tandem.queries.checker import QueryChecker
from tandem.runtime.errors import InvalidArgument

DAY = timedelta(days=1)
NO_STORE: Any = None


def asked(**fields: Any) -> SalesKey:
    check = QueryChecker(2)
    key = SalesQuery(NO_STORE).wanted_of(GetSalesSummaryRequest(**fields), check)
    check.finish()
    return key


def violations(**fields: Any) -> dict[str, str]:
    with pytest.raises(InvalidArgument) as raised:
        asked(**fields)
    return {it.subject: it.kind for it in raised.value.violations}


def test_a_day_alone_is_a_range_of_one_day_in_all_currencies_with_ten_products() -> None:
    day = date(2026, 1, 31)
    assert asked(start_date="2026-01-31") == SalesKey(day, day, "", 10)
    assert asked(start_date="2026-01-31", end_date="2026-01-31", top_products=0, currency_code="USD") == SalesKey(
        day, day, "USD", 0
    )


@pytest.mark.parametrize("text", ["20260131", "2026-W05-6", "2026-1-31", "2026-02-30", "31.01.2026", " 2026-01-31"])
def test_a_date_is_a_day_of_the_calendar_in_one_form(text: str) -> None:
    assert violations(start_date=text) == {"start_date": "MALFORMED"}
    assert violations(start_date="2026-01-31", end_date=text) == {"end_date": "MALFORMED"}


def test_every_wrong_field_is_named() -> None:
    assert violations(end_date="x", currency_code="usd", top_products=101) == {
        "start_date": "REQUIRED",
        "end_date": "MALFORMED",
        "currency_code": "MALFORMED",
        "top_products": "OUT_OF_RANGE",
    }
    assert violations(start_date="2026-01-01", top_products=-1) == {"top_products": "OUT_OF_RANGE"}


@pytest.mark.parametrize("start", ["0001-01-01", "2024-01-01", "9998-12-31"])
def test_a_range_has_1_to_366_days(start: str) -> None:
    first = date.fromisoformat(start)
    assert asked(start_date=start, end_date=(first + 365 * DAY).isoformat()).last == first + 365 * DAY
    if start < "9998":
        assert violations(start_date=start, end_date=(first + 366 * DAY).isoformat()) == {"end_date": "OUT_OF_RANGE"}
    if start > "0001-01-01":
        assert violations(start_date=start, end_date=(first - DAY).isoformat()) == {"end_date": "OUT_OF_RANGE"}
