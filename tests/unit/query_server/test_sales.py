"""What GetSalesSummary asks for, and how a range is taken apart."""

from datetime import date, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commerce.query.v1.query_service_pb2 import GetSalesSummaryRequest
from query_server.queries.sales import SalesKey, sales_key, take_apart
from query_server.validation import Checker
from tandem.runtime.errors import InvalidArgument

DAY = timedelta(days=1)


def asked(**fields: Any) -> SalesKey:
    check = Checker(2)
    key = sales_key(GetSalesSummaryRequest(**fields), check)
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


@given(first=st.dates(date(2023, 12, 1), date(2025, 1, 31)), days=st.integers(1, 366))
def test_the_parts_of_a_range_hold_each_of_its_days_once(first: date, days: int) -> None:
    last = first + (days - 1) * DAY
    parts = take_apart(first, last)
    single = [*_days(parts.first_day, parts.last_day), *_days(parts.late_first_day, parts.late_last_day)]
    months = [day for day in _days(parts.first_month, parts.last_month) if day.day == 1]
    whole = [day for day in _days(first - 31 * DAY, last + 31 * DAY) if (day.year, day.month) in _months(months)]
    assert sorted(single + whole) == _days(first, last)
    assert len(single) <= 60


@pytest.mark.parametrize("text", ["9999-01-01", "9999-12-31"])
def test_the_calendars_last_year_has_no_whole_months(text: str) -> None:
    first = date.fromisoformat(text)
    assert _days(*take_apart(first, date.max)[:2]) == _days(first, date.max)


def test_the_calendars_first_year_has_whole_months() -> None:
    parts = take_apart(date.min, date(1, 3, 1))
    assert (parts.first_month, parts.last_month) == (date(1, 1, 1), date(1, 2, 28))


def _months(firsts: list[date]) -> set[tuple[int, int]]:
    return {(day.year, day.month) for day in firsts}


def _days(first: date, last: date) -> list[date]:
    return [first + number * DAY for number in range((last - first).days + 1)]
