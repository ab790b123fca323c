"""What a test of a rule is told when it fails, and what it may give."""

import re

import pytest
from google.protobuf.message import Message

from command_server.app import DOMAIN
from command_server.products import PRODUCTS
from commerce.command.v1 import command_service_pb2 as commands
from commerce.event.v1 import event_pb2 as events
from tandem.testing.rules import Refused, Rules, refused
from tests.support.builders import add_product, identity, place_order, register_customer, usd

RULES = Rules(DOMAIN)
TEA = identity("product", 1)
PRICE = commands.ChangePriceRequest(product_id=TEA, price=usd(5))
END = commands.DiscontinueProductRequest(product_id=TEA)
ADDED = events.ProductAdded(product_id=TEA, version=1, name="Tea", price=usd(1), stock=9)


@pytest.mark.parametrize("wrapped", [False, True])
def test_events_are_given_as_well_as_commands(wrapped: bool) -> None:
    given = RULES.given(events.Event(product_added=ADDED) if wrapped else ADDED)
    assert given.events == [ADDED]
    given.when(PRICE).then(events.PriceChanged(product_id=TEA, version=2, price=usd(5)))
    assert given[PRODUCTS][TEA].price == 1, "what was given stays for the next command"


def test_a_command_may_be_wrong_in_itself() -> None:
    RULES.when(commands.DiscontinueProductRequest(product_id="x")).then(refused("MALFORMED", of="product_id"))
    RULES.when(PRICE).then(refused("NOT_FOUND", of=f"products/{TEA}"))


def test_a_command_in_steps_is_done_to_its_end() -> None:
    orders = [place_order(number) for number in range(120)]
    erase = commands.EraseCustomerRequest(customer_id=identity("customer", 1))
    made = RULES.given(register_customer(), add_product(stock=1000), *orders).when(erase).events
    anonymized = [it for it in made if isinstance(it, events.OrdersAnonymized)]
    assert sum(len(it.order_ids) for it in anonymized) == 120


@pytest.mark.parametrize(
    ("request_", "expected", "says"),
    [
        (PRICE, [events.PriceChanged(product_id=TEA, version=3, price=usd(6))],
         "event 1 of ChangePrice, PriceChanged, differs:\n"
         "  version: 3 was expected, 2 came\n"
         "  price.minor_units: 6 was expected, 5 came"),
        (PRICE, [], "ChangePrice was to make no event, and made PriceChanged"),
        (PRICE, [refused("OUT_OF_STOCK")], "ChangePrice was to be refused (OUT_OF_STOCK), and made PriceChanged"),
        (add_product(), [ADDED], f"AddProduct was refused: ALREADY_EXISTS of products/{TEA} is ALREADY_EXISTS"),
        (add_product(), [refused("OUT_OF_STOCK")],
         f"AddProduct was to be refused (OUT_OF_STOCK), and was: ALREADY_EXISTS of products/{TEA}"),
        (add_product(), [refused("ALREADY_EXISTS", of="products/2")],
         "AddProduct was refused for other things:\n"
         "  products/2: ALREADY_EXISTS was expected, nothing came\n"
         f"  products/{TEA}: ALREADY_EXISTS came, and was not expected"),
    ],
)  # fmt: skip
def test_what_differs_is_said_in_words(request_: Message, expected: list[Message | Refused], says: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(says)):
        RULES.given(ADDED).when(request_).then(*expected)


def test_what_is_given_must_be_possible() -> None:
    with pytest.raises(AssertionError, match=r"given DiscontinueProductRequest\(.*, which was refused: NOT_FOUND"):
        RULES.given(END)
    with pytest.raises(AssertionError, match="neither an event nor a command of the domain"):
        RULES.given(usd(1))
    for wrong in ({}, {"of": "name"}, {"reason": "X", "of": "name", "subjects": {"name": "X"}}):
        with pytest.raises(ValueError, match="say the reason"):
            refused(**wrong)
