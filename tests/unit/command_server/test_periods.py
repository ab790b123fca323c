"""Periods of calendar months."""

import calendar
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from command_server.subscriptions import months_later

# hypothesis adds the zone to both ends itself.
moments = st.datetimes(datetime(1900, 1, 1), datetime(2900, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


def day(text: str) -> datetime:
    return datetime.fromisoformat(f"{text}T12:30:15.000001+00:00")


@pytest.mark.parametrize(
    ("start", "months", "end"),
    [
        ("2026-01-31", 1, "2026-02-28"),
        ("2028-01-31", 1, "2028-02-29"),
        ("2026-01-31", 2, "2026-03-31"),
        ("2026-01-30", 1, "2026-02-28"),
        ("2026-03-31", 1, "2026-04-30"),
        ("2026-12-15", 1, "2027-01-15"),
        ("2026-12-31", 2, "2027-02-28"),
        ("2028-02-29", 12, "2029-02-28"),
        ("2028-02-29", 48, "2032-02-29"),
        ("2026-11-30", 36, "2029-11-30"),
        ("2099-12-31", 2, "2100-02-28"),
    ],
)
def test_a_period_ends_on_the_same_day_or_on_the_months_last(start: str, months: int, end: str) -> None:
    assert months_later(day(start), months, day(start).day) == day(end)


@given(moments, st.integers(1, 36), st.integers(1, 40))
def test_periods_one_after_the_other_end_where_one_long_one_would(start: datetime, months: int, count: int) -> None:
    end = start
    for _ in range(count):
        end = months_later(end, months, start.day)
    assert end == months_later(start, months * count, start.day)


@given(moments, st.integers(1, 36))
def test_a_period_moves_forward_and_keeps_the_time_of_day(start: datetime, months: int) -> None:
    end = months_later(start, months, start.day)
    assert end > start
    assert end.timetz() == start.timetz()
    last = calendar.monthrange(end.year, end.month)[1]
    assert end.day == min(start.day, last)
    assert (end.year - start.year) * 12 + end.month - start.month == months
