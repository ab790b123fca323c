"""The rules of customers, each alone."""

from typing import Any

import pytest
from google.protobuf.message import Message

from command_server.app import DOMAIN
from command_server.customers import CUSTOMERS
from commerce.command.v1 import command_service_pb2 as commands
from commerce.event.v1 import event_pb2 as events
from tandem.testing.rules import Outcome, Rules, refused
from tests.support.builders import add_product, address, identity, place_order, register_customer
from tests.support.events import address_updated, customer_registered

RULES = Rules(DOMAIN)
CUSTOMER = identity("customer", 1)
NAME = f"customers/{CUSTOMER}"
RENAME = commands.RenameCustomerRequest(customer_id=CUSTOMER, name="Ada King")
ERASE = commands.EraseCustomerRequest(customer_id=CUSTOMER)


def update(name: str = "", *, city: str = "Ulm", default: bool = False) -> commands.UpdateAddressRequest:
    return commands.UpdateAddressRequest(
        customer_id=CUSTOMER, address=address(city=city), address_name=name, make_default=default
    )


def remove(name: str) -> commands.RemoveAddressRequest:
    return commands.RemoveAddressRequest(customer_id=CUSTOMER, address_name=name)


def accepted(*requests: Message) -> list[Any]:
    return RULES.given(*requests).events


def outcome(*requests: Message) -> Outcome:
    """Of the last, after the others were accepted."""
    *before, last = requests
    return RULES.given(*before).when(last)


def addresses(*requests: Message) -> dict[str, tuple[str, bool]]:
    """City and default by name, after commands that must all be accepted."""
    customer = RULES.given(*requests)[CUSTOMERS][CUSTOMER]
    return {it.name: (it.address.city, it.is_default) for it in customer.addresses}


HOMELESS = register_customer(1, has_address=False)


def test_a_customers_first_address_is_the_default_one_and_is_called_main_unless_it_has_a_name() -> None:
    assert addresses(register_customer()) == {"main": ("Berlin", True)}
    assert addresses(HOMELESS, update()) == {"main": ("Ulm", True)}
    assert addresses(HOMELESS, update("home")) == {"home": ("Ulm", True)}


def test_an_address_without_a_name_replaces_the_default_one() -> None:
    assert addresses(register_customer(), update("work", city="Bonn", default=True), update(city="Köln")) == {
        "main": ("Berlin", False),
        "work": ("Köln", True),
    }


def test_an_address_of_a_name_is_added_or_replaced_and_becomes_the_default_when_that_is_asked_for() -> None:
    assert addresses(register_customer(), update("work"), update("work", city="Bonn")) == {
        "main": ("Berlin", True),
        "work": ("Bonn", False),
    }
    assert addresses(register_customer(), update("work"), update("main", default=True)) == {
        "main": ("Ulm", True),
        "work": ("Ulm", False),
    }


def test_the_default_address_goes_last() -> None:
    outcome(register_customer(), update("work"), remove("main")).then(refused("DEFAULT_ADDRESS", of=NAME))
    assert addresses(register_customer(), update("work"), remove("work")) == {"main": ("Berlin", True)}
    assert addresses(register_customer(), remove("main")) == {}
    outcome(register_customer(), remove("work")).then(refused("ADDRESS_UNKNOWN"))


def test_a_customer_has_at_most_20_addresses() -> None:
    full = [register_customer(), *(update(f"number {number}") for number in range(19))]
    outcome(*full, update("one more")).then(refused("ADDRESS_LIMIT"))
    assert len(addresses(*full, update("number 7", city="Bonn"))) == 20


def test_an_order_goes_to_the_address_that_it_names() -> None:
    order = place_order()
    order.shipping_address_name = "work"
    before = (register_customer(), add_product(), update("work", city="Bonn"))
    placed = accepted(*before, order)[-1]
    assert placed.personal.address == address(city="Bonn", recipient="Customer 1")
    order.shipping_address_name = "home"
    outcome(*before, order).then(refused("ADDRESS_UNKNOWN", of=NAME))
    move = commands.ChangeShippingAddressRequest(order_id=identity("order", 1), address_name="work")
    moved = accepted(*before, place_order(), move)[-1]
    assert moved.personal.address.city == "Bonn"
    move.address_name = "home"
    outcome(*before, place_order(), move).then(refused("ADDRESS_UNKNOWN"))


def test_a_renamed_customer_has_the_new_name_in_orders_from_then_on() -> None:
    made = accepted(register_customer(), add_product(), place_order(1), RENAME, place_order(2))
    names = [it.personal.name for it in made if isinstance(it, events.OrderPlaced)]
    assert names == ["Customer 1", "Ada King"]


def test_an_erasure_names_all_orders_of_the_customer_and_of_nobody_else() -> None:
    others = (register_customer(2), place_order(3, customer=2))
    made = accepted(register_customer(), add_product(), *others, place_order(1), place_order(2), ERASE)
    assert made[-2].version == 2
    assert set(made[-1].order_ids) == {identity("order", 1), identity("order", 2)}
    assert isinstance(accepted(register_customer(), ERASE)[-1], events.CustomerErased)


@pytest.mark.parametrize("request_", [RENAME, update(), remove("main"), ERASE, place_order()])
def test_an_erased_customer_takes_no_command_any_more(request_: Message) -> None:
    outcome(register_customer(), add_product(), ERASE, request_).then(refused("CUSTOMER_ERASED", of=NAME))


def test_an_order_of_an_erased_customer_goes_nowhere_else() -> None:
    move = commands.ChangeShippingAddressRequest(order_id=identity("order", 1), address=address())
    outcome(register_customer(), add_product(), place_order(), ERASE, move).then(refused("CUSTOMER_ERASED"))


@pytest.mark.parametrize("request_", [RENAME, update(), remove("main"), ERASE])
def test_what_is_not_known_is_not_found_and_an_old_version_is_refused(request_: Message) -> None:
    outcome(request_).then(refused("NOT_FOUND", of=NAME))
    late = type(request_)()
    late.CopyFrom(request_)
    late.expected_version = 7  # type: ignore[attr-defined]
    outcome(register_customer(), late).then(refused("VERSION_MISMATCH"))


def test_an_event_from_before_addresses_had_names_is_about_the_one_that_there_was() -> None:
    """Whoever folds the feed anew meets it: `tandem verify`."""
    states = RULES.given(customer_registered(1), address_updated(1, city="Jena"))
    [only] = states[CUSTOMERS][CUSTOMER].addresses
    assert (only.name, only.address.city, only.is_default) == ("main", "Jena", True)


def test_an_address_is_the_same_however_the_letters_of_its_name_are_composed() -> None:
    composed, decomposed = "B\u00fcro", "Bu\u0308ro"
    assert addresses(register_customer(), update(composed), update(decomposed, city="Bonn")) == {
        "main": ("Berlin", True),
        composed: ("Bonn", False),
    }
    assert addresses(register_customer(), update(decomposed), remove(composed)) == {"main": ("Berlin", True)}
