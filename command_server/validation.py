"""What makes a request wrong in itself, before anything is looked up. Every violated field is named, not the first.

The limits stand in the contract, beside the fields.
"""

import re
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from commerce.command.v1 import command_service_pb2 as commands
from commerce.type.v1.address_pb2 import Address
from commerce.type.v1.money_pb2 import Money
from commerce.type.v1.product_attribute_pb2 import ProductAttribute
from tandem.runtime.errors import InvalidArgument, Violation

MAX_LINES = 200
MAX_QUANTITY = 1_000_000
MAX_PRICE = 1_000_000_000_000
MAX_STOCK_CHANGE = 1_000_000_000
MAX_ATTRIBUTES = 50
MAX_PERIOD_MONTHS = 36
MAX_PERIODS = 1200

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_CURRENCY = re.compile(r"[A-Z]{3}")
_COUNTRY = re.compile(r"[A-Z]{2}")
# Clocks of caller and server differ; a minute is more than NTP leaves.
_CLOCK_SKEW = timedelta(minutes=1)


def is_uuid(value: str) -> bool:
    return _UUID.fullmatch(value) is not None


class Checker:
    """Collects what is wrong. Each method takes the field's path as a caller writes it, `lines[2].quantity`."""

    def __init__(self, now: datetime) -> None:
        self._now = now
        self._violations: list[Violation] = []

    def finish(self) -> None:
        """Raises InvalidArgument if anything was wrong."""
        if self._violations:
            raise InvalidArgument(self._violations)

    def wrong(self, field: str, kind: str, description: str) -> None:
        self._violations.append(Violation(field, description, kind))

    def uuid(self, field: str, value: str) -> None:
        if not value:
            self.wrong(field, "REQUIRED", "is required")
        elif not is_uuid(value):
            self.wrong(field, "MALFORMED", "must be a UUID such as 0190b5a2-7c1e-7d30-8a44-1f2e3d4c5b6a")

    def text(self, field: str, value: str, most: int, *, required: bool = False, lines: bool = False) -> None:
        """Text of at most `most` characters without control characters; `lines` admits line breaks and tabs."""
        if required and not value.strip():
            self.wrong(field, "REQUIRED", "is required")
        elif len(value) > most:
            self.wrong(field, "TOO_LONG", f"is {len(value)} characters long; at most {most} are taken")
        elif any(unicodedata.category(c) == "Cc" and not (lines and c in "\n\r\t") for c in value):
            self.wrong(field, "MALFORMED", "must not hold control characters")

    def number(self, field: str, value: int, least: int, most: int) -> None:
        if not least <= value <= most:
            self.wrong(field, "OUT_OF_RANGE", f"is {value}; it must be from {least} to {most}")

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

    def label(self, field: str, value: str, *, required: bool) -> None:
        """The name of one of several: of an address, an attribute. Blanks at its ends would make two look like one."""
        self.text(field, value, 50, required=required)
        if value.strip() and value != value.strip():
            self.wrong(field, "MALFORMED", "must not begin or end with a blank")

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
            self.wrong(field, "OUT_OF_RANGE", "must not be in the future")


def nothing_more(_request: Message, _check: Checker) -> None:
    """For commands with no fields of their own."""


def register_customer(request: commands.RegisterCustomerRequest, check: Checker) -> None:
    check.text("name", request.name, 200, required=True)
    check.text("email", request.email, 254)
    if request.email and not re.fullmatch(r"[^@\s]+@[^@\s]+", request.email):
        check.wrong("email", "MALFORMED", "must be an e-mail address such as ada@example.com")
    check.text("phone", request.phone, 40)
    check.address("address", request, "address", required=False)


def rename_customer(request: commands.RenameCustomerRequest, check: Checker) -> None:
    check.text("name", request.name, 200, required=True)


def update_address(request: commands.UpdateAddressRequest, check: Checker) -> None:
    check.address("address", request, "address", required=True)
    check.label("address_name", request.address_name, required=False)


def remove_address(request: commands.RemoveAddressRequest, check: Checker) -> None:
    check.label("address_name", request.address_name, required=True)


def add_product(request: commands.AddProductRequest, check: Checker) -> None:
    check.text("name", request.name, 200, required=True)
    check.text("description", request.description, 4000, lines=True)
    check.text("category", request.category, 100)
    check.money("price", request, "price", required=True)
    check.number("initial_stock", request.initial_stock, 0, MAX_STOCK_CHANGE)
    _attributes("attributes", request.attributes, check)


def revise_product(request: commands.ReviseProductRequest, check: Checker) -> None:
    changes = ("name", "description", "category", "attributes")
    if not {field.name for field, _ in request.ListFields()}.intersection(changes):
        for name in changes:
            check.wrong(name, "REQUIRED", f"one of {', '.join(changes)} must be set")
    if request.HasField("name"):
        check.text("name", request.name, 200, required=True)
    check.text("description", request.description, 4000, lines=True)
    check.text("category", request.category, 100)
    _attributes("attributes.attributes", request.attributes.attributes, check)


def _attributes(field: str, attributes: Sequence[ProductAttribute], check: Checker) -> None:
    if len(attributes) > MAX_ATTRIBUTES:
        check.wrong(field, "OUT_OF_RANGE", f"holds {len(attributes)} attributes; at most {MAX_ATTRIBUTES} are taken")
    seen: dict[str, int] = {}
    for number, attribute in enumerate(attributes[:MAX_ATTRIBUTES]):
        check.label(f"{field}[{number}].name", attribute.name, required=True)
        check.text(f"{field}[{number}].value", attribute.value, 200, required=True)
        first = seen.setdefault(attribute.name.casefold(), number)
        if first != number and attribute.name:
            check.wrong(f"{field}[{number}].name", "DUPLICATE", f"is the name of {field}[{first}] too")


def change_price(request: commands.ChangePriceRequest, check: Checker) -> None:
    check.money("price", request, "price", required=True)


def adjust_stock(request: commands.AdjustStockRequest, check: Checker) -> None:
    if request.delta == 0:
        check.wrong("delta", "OUT_OF_RANGE", "must not be zero")
    check.number("delta", request.delta, -MAX_STOCK_CHANGE, MAX_STOCK_CHANGE)


def place_order(request: commands.PlaceOrderRequest, check: Checker) -> None:
    check.uuid("customer_id", request.customer_id)
    if not 1 <= len(request.lines) <= MAX_LINES:
        check.wrong("lines", "OUT_OF_RANGE", f"holds {len(request.lines)} lines; it must hold 1 to {MAX_LINES}")
    seen: dict[str, int] = {}
    for number, line in enumerate(request.lines[:MAX_LINES]):
        product_id, quantity, discount = line.product_id, line.quantity, line.discount_basis_points
        first = seen.setdefault(product_id.lower(), number)
        # As most lines are: to write down what their fields are called takes longer than to look at them.
        if first == number and is_uuid(product_id) and 1 <= quantity <= MAX_QUANTITY and 0 <= discount <= 10_000:
            continue
        field = f"lines[{number}]"
        check.uuid(f"{field}.product_id", product_id)
        if first != number and product_id:
            check.wrong(f"{field}.product_id", "DUPLICATE", f"is the product of lines[{first}] too")
        check.number(f"{field}.quantity", quantity, 1, MAX_QUANTITY)
        check.number(f"{field}.discount_basis_points", discount, 0, 10_000)
    check.address("shipping_address", request, "shipping_address", required=False)
    check.label("shipping_address_name", request.shipping_address_name, required=False)
    if request.shipping_address_name and request.HasField("shipping_address"):
        check.wrong("shipping_address_name", "INVALID", "must not be set together with shipping_address")
    check.money("shipping_fee", request, "shipping_fee", required=False)
    check.past(request, "placed_at")


def pay_order(request: commands.PayOrderRequest, check: Checker) -> None:
    check.text("payment_reference", request.payment_reference, 200)
    check.past(request, "paid_at")


def ship_order(request: commands.ShipOrderRequest, check: Checker) -> None:
    check.text("carrier", request.carrier, 100)
    check.text("tracking_number", request.tracking_number, 100)
    check.past(request, "shipped_at")


def deliver_order(request: commands.DeliverOrderRequest, check: Checker) -> None:
    check.past(request, "delivered_at")


def change_shipping_address(request: commands.ChangeShippingAddressRequest, check: Checker) -> None:
    if request.WhichOneof("destination") == "address_name":
        check.label("address_name", request.address_name, required=True)
    else:
        check.address("address", request, "address", required=True)


def cancel_order(request: commands.CancelOrderRequest, check: Checker) -> None:
    check.text("reason", request.reason, 500, lines=True)


def start_subscription(request: commands.StartSubscriptionRequest, check: Checker) -> None:
    check.uuid("customer_id", request.customer_id)
    _plan(request, check)
    check.past(request, "started_at")
    check.number("period_count", request.period_count, 0, MAX_PERIODS)


def change_subscription_plan(request: commands.ChangeSubscriptionPlanRequest, check: Checker) -> None:
    _plan(request, check)


def cancel_subscription(request: commands.CancelSubscriptionRequest, check: Checker) -> None:
    if request.when == commands.CANCELLATION_TIME_UNSPECIFIED:
        check.wrong("when", "REQUIRED", "is required")
    elif request.when not in commands.CancellationTime.values():
        check.wrong("when", "MALFORMED", f"{request.when} is no CancellationTime")
    check.text("reason", request.reason, 500, lines=True)


def _plan(request: commands.StartSubscriptionRequest | commands.ChangeSubscriptionPlanRequest, check: Checker) -> None:
    check.text("plan", request.plan, 100, required=True)
    check.money("price", request, "price", required=True)
    check.number("period_months", request.period_months, 1, MAX_PERIOD_MONTHS)
