"""What makes the shop's values wrong in themselves: money, addresses, names of one of several, moments.

The limits stand in the contract, beside the fields.
"""

import re
import unicodedata
from datetime import UTC, datetime, timedelta

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from commerce.type.v1.address_pb2 import Address
from commerce.type.v1.money_pb2 import Money
from tandem.runtime.checker import Checker

MAX_PRICE = 1_000_000_000_000

_CURRENCY = re.compile(r"[A-Z]{3}")
_COUNTRY = re.compile(r"[A-Z]{2}")
# Clocks of caller and server differ; a minute is more than NTP leaves.
_CLOCK_SKEW = timedelta(minutes=1)


def compared(name: str) -> str:
    """A name of one of several as it is compared: one letter is one, whether it is typed as one character or as two.

    What was typed is kept.
    """
    return unicodedata.normalize("NFC", name)


class ShopChecker(Checker):
    """For one request, at a time of the server's clock."""

    def __init__(self, now: datetime) -> None:
        super().__init__()
        self._now = now

    def money(self, field: str, request: Message, name: str, *, required: bool) -> None:
        if not request.HasField(name):
            if required:
                self.wrong(field, "REQUIRED", "is required")
            return
        money: Money = getattr(request, name)
        self.number(f"{field}.minor_units", money.minor_units, 0, MAX_PRICE)
        if not _CURRENCY.fullmatch(money.currency_code):
            self.wrong(f"{field}.currency_code", "MALFORMED", "must be an ISO 4217 code such as USD")

    def address(self, field: str, request: Message, name: str, *, required: bool) -> None:
        if not request.HasField(name):
            if required:
                self.wrong(field, "REQUIRED", "is required")
            return
        address: Address = getattr(request, name)
        self.text(f"{field}.recipient", address.recipient, 200)
        self.text(f"{field}.street", address.street, 300, required=True)
        self.text(f"{field}.city", address.city, 100, required=True)
        self.text(f"{field}.region", address.region, 100)
        self.text(f"{field}.postal_code", address.postal_code, 20)
        if not address.country_code:
            self.wrong(f"{field}.country_code", "REQUIRED", "is required")
        elif not _COUNTRY.fullmatch(address.country_code):
            self.wrong(f"{field}.country_code", "MALFORMED", "must be an ISO 3166-1 alpha-2 code such as DE")

    def label(self, field: str, value: str, *, required: bool) -> bool:
        """Whether it is the name of one of several: of an address, an attribute.

        Blanks at its ends would make two look like one.
        """
        if not self.text(field, value, 50, required=required):
            return False
        if value.strip() and value != value.strip():
            self.wrong(field, "MALFORMED", "must not begin or end with a blank")
            return False
        return True

    def past(self, request: Message, field: str) -> None:
        """A moment that the caller may give, and that must not be in the future."""
        if not request.HasField(field):
            return
        given: Timestamp = getattr(request, field)
        try:
            moment = given.ToDatetime(tzinfo=UTC)
        except (ValueError, OverflowError):
            self.wrong(field, "MALFORMED", "must be a time from year 1 to 9999 with 0 to 999,999,999 nanoseconds")
            return
        if moment > self._now + _CLOCK_SKEW:
            self.wrong_now(field, "OUT_OF_RANGE", "must not be in the future")
