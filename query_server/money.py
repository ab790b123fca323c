"""Amounts of money in requests."""

import re

from tandem.runtime.checker import Checker

_CURRENCY = re.compile(r"[A-Z]{3}")


def check_currency(check: Checker, field: str, value: str) -> str:
    """A currency code, which may be empty; and it is empty where the value is none."""
    if value and not _CURRENCY.fullmatch(value):
        check.wrong(field, "MALFORMED", "must be an ISO 4217 code such as USD")
        return ""
    return value
