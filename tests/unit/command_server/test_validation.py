"""Bad input gets a clear error that names every wrong field."""

import itertools
import re
import string
from uuid import UUID

import pycountry
import pytest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from commerce.command.v1 import command_service_pb2 as commands
from tandem.runtime.errors import InvalidArgument
from tests.support.builders import (
    NOW,
    add_product,
    address,
    command,
    identity,
    import_order,
    place_order,
    register_customer,
    revise_product,
    usd,
)
from tests.support.longest import rule


def violations(request: Message) -> dict[str, str]:
    with pytest.raises(InvalidArgument) as caught:
        command(request)
    return {it.subject: it.kind for it in caught.value.violations}


def test_every_wrong_field_of_an_order_is_named_at_once() -> None:
    request = commands.PlaceOrderRequest(
        request_id="not a uuid",
        customer_id="",
        lines=[
            commands.PlaceOrderLine(product_id="x", quantity=0, discount_basis_points=10_001),
            commands.PlaceOrderLine(product_id=identity("product", 1), quantity=1_000_001),
        ],
        shipping_address=address(street=" ", country_code="Germany"),
        shipping_fee=usd(-1),
        placed_at=Timestamp(seconds=int(NOW.timestamp()) + 3600),
    )
    assert violations(request) == {
        "request_id": "MALFORMED",
        "customer_id": "REQUIRED",
        "lines[0].product_id": "MALFORMED",
        "lines[0].quantity": "OUT_OF_RANGE",
        "lines[0].discount_basis_points": "OUT_OF_RANGE",
        "lines[1].quantity": "OUT_OF_RANGE",
        "shipping_address.street": "REQUIRED",
        "shipping_address.country_code": "MALFORMED",
        "shipping_fee.minor_units": "OUT_OF_RANGE",
        "placed_at": "OUT_OF_RANGE",
    }


@pytest.mark.parametrize("count", [0, 201])
def test_an_order_holds_1_to_200_lines(count: int) -> None:
    request = place_order()
    del request.lines[:]
    request.lines.extend(
        commands.PlaceOrderLine(product_id=identity("product", number), quantity=1) for number in range(count)
    )
    assert violations(request) == {"lines": "OUT_OF_RANGE"}


def test_an_order_of_200_lines_is_taken() -> None:
    request = place_order(lines=dict.fromkeys(range(200), 1))
    assert command(request).subject_id == identity("order", 1)


@pytest.mark.parametrize(
    ("change", "field", "kind"),
    [
        ({"name": ""}, "name", "REQUIRED"),
        ({"name": "\t "}, "name", "REQUIRED"),
        ({"name": "x" * 201}, "name", "TOO_LONG"),
        ({"name": "a\0b"}, "name", "MALFORMED"),
        ({"email": "ada"}, "email", "MALFORMED"),
        ({"email": "ada@b@c"}, "email", "MALFORMED"),
        ({"phone": "1" * 41}, "phone", "TOO_LONG"),
        ({"customer_id": "{0190b5a2-7c1e-7d30-8a44-1f2e3d4c5b6a}"}, "customer_id", "MALFORMED"),
        ({"customer_id": ""}, "customer_id", "REQUIRED"),
    ],
)
def test_a_customer_is_checked(change: dict[str, str], field: str, kind: str) -> None:
    request = register_customer()
    for name, value in change.items():
        setattr(request, name, value)
    assert violations(request) == {field: kind}


@pytest.mark.parametrize(
    ("request_", "field", "kind"),
    [
        (commands.AddProductRequest(name="Tea"), "price", "REQUIRED"),
        (add_product(price=-1), "price.minor_units", "OUT_OF_RANGE"),
        (add_product(price=1_000_000_000_001), "price.minor_units", "OUT_OF_RANGE"),
        (add_product(currency="usd"), "price.currency_code", "MALFORMED"),
        (add_product(stock=-1), "initial_stock", "OUT_OF_RANGE"),
        (commands.ChangePriceRequest(product_id=identity("p")), "price", "REQUIRED"),
        (commands.AdjustStockRequest(product_id=identity("p"), delta=0), "delta", "OUT_OF_RANGE"),
        (commands.AdjustStockRequest(product_id=identity("p"), delta=-1_000_000_001), "delta", "OUT_OF_RANGE"),
        (commands.DiscontinueProductRequest(), "product_id", "REQUIRED"),
        (commands.UpdateAddressRequest(customer_id=identity("c")), "address", "REQUIRED"),
        (commands.PayOrderRequest(order_id="1"), "order_id", "MALFORMED"),
        (
            commands.PayOrderRequest(order_id=identity("o"), payment_reference="x" * 201),
            "payment_reference",
            "TOO_LONG",
        ),
        (commands.PayOrderRequest(order_id=identity("o"), paid_at=Timestamp(nanos=-1)), "paid_at", "MALFORMED"),
        (commands.ShipOrderRequest(order_id=identity("o"), carrier="x" * 101), "carrier", "TOO_LONG"),
        (
            commands.ShipOrderRequest(order_id=identity("o"), shipped_at=Timestamp(seconds=2**62)),
            "shipped_at",
            "MALFORMED",
        ),
        (commands.CancelOrderRequest(order_id=identity("o"), reason="x" * 501), "reason", "TOO_LONG"),
        (
            commands.DeliverOrderRequest(
                order_id=identity("o"), delivered_at=Timestamp(seconds=int(NOW.timestamp()) + 3600)
            ),
            "delivered_at",
            "OUT_OF_RANGE",
        ),
    ],
)
def test_each_command_is_checked(request_: Message, field: str, kind: str) -> None:
    assert violations(request_) == {field: kind}


def test_a_revision_must_revise_something() -> None:
    request = commands.ReviseProductRequest(product_id=identity("p"))
    assert violations(request) == dict.fromkeys(["name", "description", "category", "attributes"], "REQUIRED")


def test_every_wrong_field_of_a_revision_is_named_at_once() -> None:
    request = revise_product(name=" ", description="x" * 4001, category="a\0", attributes={"": "v", "Size": ""})
    request.attributes.attributes.add(name="Size", value="L")
    request.attributes.attributes.add(name="Size", value="M")
    request.attributes.attributes.add(name="size", value="l")
    request.attributes.attributes.add(name="Colour ", value="x" * 501)
    assert violations(request) == {
        "name": "REQUIRED",
        "description": "TOO_LONG",
        "category": "MALFORMED",
        "attributes.attributes[0].name": "REQUIRED",
        "attributes.attributes[1].value": "REQUIRED",
        "attributes.attributes[4].value": "DUPLICATE",
        "attributes.attributes[5].name": "MALFORMED",
        "attributes.attributes[5].value": "TOO_LONG",
    }


def test_a_product_has_at_most_50_attributes() -> None:
    request = add_product()
    for number in range(50):
        request.attributes.add(name=f"a{number}", value="v")
    command(request)
    request.attributes.add(name="one more", value="v")
    assert violations(request) == {"attributes": "OUT_OF_RANGE"}


def test_an_order_goes_to_an_address_or_to_the_name_of_one() -> None:
    nowhere = commands.ChangeShippingAddressRequest(order_id=identity("o"))
    wrong = commands.ChangeShippingAddressRequest(order_id=identity("o"), address=address(city=""))
    unnamed = commands.ChangeShippingAddressRequest(order_id=identity("o"), address_name=" work")
    assert violations(nowhere) == {"address": "REQUIRED"}
    assert violations(wrong) == {"address.city": "REQUIRED"}
    assert violations(unnamed) == {"address_name": "MALFORMED"}


def test_every_wrong_field_of_a_subscription_is_named_at_once() -> None:
    request = commands.StartSubscriptionRequest(
        subscription_id="x",
        plan=" ",
        price=usd(-1),
        period_months=37,
        period_count=1201,
        started_at=Timestamp(seconds=int(NOW.timestamp()) + 3600),
    )
    wrong = {
        "subscription_id": "MALFORMED",
        "plan": "REQUIRED",
        "price.minor_units": "OUT_OF_RANGE",
        "period_months": "OUT_OF_RANGE",
    }
    assert violations(request) == wrong | {
        "customer_id": "REQUIRED",
        "started_at": "OUT_OF_RANGE",
        "period_count": "OUT_OF_RANGE",
    }
    change = commands.ChangeSubscriptionPlanRequest(subscription_id="x", plan=" ", price=usd(-1))
    assert violations(change) == wrong


def test_a_cancellation_says_when() -> None:
    request = commands.CancelSubscriptionRequest(subscription_id=identity("s"), reason="x" * 501)
    assert violations(request) == {"when": "REQUIRED", "reason": "TOO_LONG"}
    request.when = 7  # type: ignore[assignment]
    request.reason = ""
    assert violations(request) == {"when": "MALFORMED"}


def test_addresses_have_names_without_blanks_around_them_and_an_order_goes_to_one_place() -> None:
    customer = identity("c")
    update = commands.UpdateAddressRequest(customer_id=customer, address=address(), address_name="x" * 51)
    remove = commands.RemoveAddressRequest(customer_id=customer)
    order = place_order()
    order.shipping_address.CopyFrom(address())
    order.shipping_address_name = "home"
    assert violations(update) == {"address_name": "TOO_LONG"}
    assert violations(remove) == {"address_name": "REQUIRED"}
    assert violations(order) == {"shipping_address_name": "INVALID"}
    assert violations(commands.RenameCustomerRequest(customer_id=customer)) == {"name": "REQUIRED"}


def test_the_server_names_what_the_caller_does_not() -> None:
    first, second = (
        command(commands.AddProductRequest(name="Tea", price=usd(1))),
        command(commands.AddProductRequest(name="Tea", price=usd(1))),
    )
    assert first.subject_id != second.subject_id
    assert first.request_id != second.request_id
    assert UUID(first.subject_id).version == 7


def test_a_repeated_command_has_the_same_fingerprint_whatever_its_request_id_and_another_has_not() -> None:
    one, two, other = place_order(1), place_order(1), place_order(1, discount=1)
    two.request_id = identity("another")
    assert command(one).fingerprint == command(two).fingerprint
    assert command(one).fingerprint != command(other).fingerprint


def test_commands_of_different_kinds_have_different_fingerprints() -> None:
    pay = commands.PayOrderRequest(order_id=identity("o"))
    cancel = commands.CancelOrderRequest(order_id=identity("o"))
    assert pay.SerializeToString() == cancel.SerializeToString()
    assert command(pay).fingerprint != command(cancel).fingerprint


def test_an_attribute_has_each_value_once_however_their_letters_are_composed() -> None:
    request = add_product()
    request.attributes.add(name="Gr\u00f6\u00dfe", value="\u00dcber")
    request.attributes.add(name="Gr\u00f6\u00dfe", value="L")
    command(request)
    request.attributes.add(name="GRO\u0308\u00dfE", value="U\u0308BER")
    assert violations(request) == {"attributes[2].value": "DUPLICATE"}


def test_the_attributes_of_a_product_have_16_000_characters_together() -> None:
    request = add_product()
    for number in range(32):
        request.attributes.add(name=f"{number:02}", value="x" * 498)
    command(request)
    request.attributes.add(name="More", value="x")
    assert violations(request) == {"attributes": "TOO_LONG"}


def test_stock_without_limit_is_not_counted() -> None:
    request = add_product(stock=0)
    request.unlimited_stock = True
    command(request)
    request.initial_stock = 1
    assert violations(request) == {"initial_stock": "INVALID"}


def taken(of: Message, field: str) -> set[str]:
    """All codes of upper-case letters that the contract takes in a field."""
    pattern = re.compile(rule(of, field).pattern)
    length = 2 if field == "country_code" else 3
    return {
        it for it in map("".join, itertools.product(string.ascii_uppercase, repeat=length)) if pattern.fullmatch(it)
    }


def test_countries_are_those_of_iso_3166_and_kosovo() -> None:
    assert taken(address(), "country_code") == {it.alpha_2 for it in pycountry.countries} | {"XK"}


def test_currencies_are_those_of_iso_4217_that_have_minor_units_and_those_withdrawn_since_2010() -> None:
    without = {"XAG", "XAU", "XBA", "XBB", "XBC", "XBD", "XDR", "XPD", "XPT", "XSU", "XTS", "XUA", "XXX"}
    withdrawn = "ANG BGN BYR CUC EEK HRK LTL LVL MRO SLL STD VEF ZMK ZWL"
    assert taken(usd(1), "currency_code") == {it.alpha_3 for it in pycountry.currencies} - without | {
        *withdrawn.split()
    }


def test_no_time_of_an_order_that_is_brought_in_is_before_it_was_placed() -> None:
    request = import_order(times={"placed_at": "1899-01-01T00:00:00Z", "paid_at": "1800-01-01T00:00:00Z"})
    assert violations(request) == {"paid_at": "OUT_OF_RANGE"}


def test_what_was_cancelled_was_not_shipped_and_what_was_not_paid_is_not_given_back() -> None:
    gone = import_order(times=dict.fromkeys(["shipped_at", "cancelled_at"], "2025-01-02T00:00:00Z"))
    assert violations(gone) == {"cancelled_at": "INVALID"}
    unpaid = import_order(times={"refunded_at": "2025-01-02T00:00:00Z"})
    assert violations(unpaid) == {"refunded_at": "INVALID"}
    unpaid.refunded.CopyFrom(usd(1))
    assert violations(unpaid) == {"refunded": "INVALID"}


def test_a_refund_is_not_of_nothing() -> None:
    request = commands.RefundOrderRequest(order_id=identity("o"), amount=usd(0))
    assert violations(request) == {"amount.minor_units": "OUT_OF_RANGE"}
