"""The rules of customers, each alone."""

import pytest
from google.protobuf.message import Message

from command_server.app import DOMAIN
from command_server.customers import CUSTOMER_ORDERS, CUSTOMERS
from commerce.command.v1 import command_service_pb2 as commands
from commerce.event.v1.event_pb2 import Event
from tandem.commands.batch import Decisions, decide_batch
from tandem.commands.receipts import Receipt
from tandem.commands.write_model import States
from tandem.runtime.errors import Conflict, NotFound, PreconditionFailed, TandemError
from tests.support.builders import add_product, address, command, identity, place_order, register_customer
from tests.support.events import address_updated, customer_registered

CUSTOMER = identity("customer", 1)
RENAME = commands.RenameCustomerRequest(customer_id=CUSTOMER, name="Ada King")
ERASE = commands.EraseCustomerRequest(customer_id=CUSTOMER)


def update(name: str = "", *, city: str = "Ulm", default: bool = False) -> commands.UpdateAddressRequest:
    return commands.UpdateAddressRequest(
        customer_id=CUSTOMER, address=address(city=city), address_name=name, make_default=default
    )


def remove(name: str) -> commands.RemoveAddressRequest:
    return commands.RemoveAddressRequest(customer_id=CUSTOMER, address_name=name)


def decide(*requests: Message) -> Decisions:
    # The database tells of a customer who is to be erased which orders there are: none, before this batch.
    loaded = States({CUSTOMER_ORDERS: {CUSTOMER: frozenset()}})
    return decide_batch(DOMAIN, [command(it) for it in requests], loaded, {})


def accepted(*requests: Message) -> list[Event]:
    decisions = decide(*requests)
    assert all(isinstance(it, Receipt) for it in decisions.outcomes), decisions.outcomes
    return [event for _, event in decisions.events]


def refused(*requests: Message) -> TandemError:
    *before, last = decide(*requests).outcomes
    assert all(isinstance(it, Receipt) for it in before), before
    assert isinstance(last, TandemError)
    return last


def rule(error: TandemError) -> tuple[str, str]:
    assert isinstance(error, PreconditionFailed)
    [violation] = error.violations
    return violation.subject, violation.kind


def addresses(*requests: Message) -> dict[str, tuple[str, bool]]:
    """City and default by name, after commands that must all be accepted."""
    decisions = decide(*requests)
    assert all(isinstance(it, Receipt) for it in decisions.outcomes), decisions.outcomes
    customer = decisions.states[CUSTOMERS][CUSTOMER]
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
    assert rule(refused(register_customer(), update("work"), remove("main"))) == (
        f"customers/{CUSTOMER}",
        "DEFAULT_ADDRESS",
    )
    assert addresses(register_customer(), update("work"), remove("work")) == {"main": ("Berlin", True)}
    assert addresses(register_customer(), remove("main")) == {}
    assert rule(refused(register_customer(), remove("work")))[1] == "ADDRESS_UNKNOWN"


def test_a_customer_has_at_most_20_addresses() -> None:
    full = [register_customer(), *(update(f"number {number}") for number in range(19))]
    assert rule(refused(*full, update("one more")))[1] == "ADDRESS_LIMIT"
    assert len(addresses(*full, update("number 7", city="Bonn"))) == 20


def test_an_order_goes_to_the_address_that_it_names() -> None:
    order = place_order()
    order.shipping_address_name = "work"
    before = (register_customer(), add_product(), update("work", city="Bonn"))
    placed = accepted(*before, order)[-1].order_placed
    assert placed.personal.address == address(city="Bonn", recipient="Customer 1")
    order.shipping_address_name = "home"
    assert rule(refused(*before, order)) == (f"customers/{CUSTOMER}", "ADDRESS_UNKNOWN")
    move = commands.ChangeShippingAddressRequest(order_id=identity("order", 1), address_name="work")
    moved = accepted(*before, place_order(), move)[-1].shipping_address_changed
    assert moved.personal.address.city == "Bonn"
    move.address_name = "home"
    assert rule(refused(*before, place_order(), move))[1] == "ADDRESS_UNKNOWN"


def test_a_renamed_customer_has_the_new_name_in_orders_from_then_on() -> None:
    events = accepted(register_customer(), add_product(), place_order(1), RENAME, place_order(2))
    names = [it.order_placed.personal.name for it in events if it.HasField("order_placed")]
    assert names == ["Customer 1", "Ada King"]


def test_an_erasure_names_all_orders_of_the_customer_and_of_nobody_else() -> None:
    others = (register_customer(2), place_order(3, customer=2))
    events = accepted(register_customer(), add_product(), *others, place_order(1), place_order(2), ERASE)
    assert events[-2].customer_erased.version == 2
    assert set(events[-1].orders_anonymized.order_ids) == {identity("order", 1), identity("order", 2)}
    assert accepted(register_customer(), ERASE)[-1].HasField("customer_erased")


@pytest.mark.parametrize("request_", [RENAME, update(), remove("main"), ERASE, place_order()])
def test_an_erased_customer_takes_no_command_any_more(request_: Message) -> None:
    error = refused(register_customer(), add_product(), ERASE, request_)
    assert rule(error) == (f"customers/{CUSTOMER}", "CUSTOMER_ERASED")


def test_an_order_of_an_erased_customer_goes_nowhere_else() -> None:
    move = commands.ChangeShippingAddressRequest(order_id=identity("order", 1), address=address())
    assert rule(refused(register_customer(), add_product(), place_order(), ERASE, move))[1] == "CUSTOMER_ERASED"


@pytest.mark.parametrize("request_", [RENAME, update(), remove("main"), ERASE])
def test_what_is_not_known_is_not_found_and_an_old_version_is_refused(request_: Message) -> None:
    assert isinstance(refused(request_), NotFound)
    late = type(request_)()
    late.CopyFrom(request_)
    late.expected_version = 7  # type: ignore[attr-defined]
    assert isinstance(refused(register_customer(), late), Conflict)


def test_an_event_from_before_addresses_had_names_is_about_the_one_that_there_was() -> None:
    """Whoever folds the feed anew meets it: `tandem verify`."""
    states = States({CUSTOMERS: {}})
    for event in (customer_registered(1), address_updated(1, city="Jena")):
        change = getattr(event, str(event.WhichOneof("kind")))
        DOMAIN.changes[type(change)](states, change)
    [only] = states[CUSTOMERS][CUSTOMER].addresses
    assert (only.name, only.address.city, only.is_default) == ("main", "Jena", True)


def test_an_address_is_the_same_however_the_letters_of_its_name_are_composed() -> None:
    composed, decomposed = "B\u00fcro", "Bu\u0308ro"
    assert addresses(register_customer(), update(composed), update(decomposed, city="Bonn")) == {
        "main": ("Berlin", True),
        composed: ("Bonn", False),
    }
    assert addresses(register_customer(), update(decomposed), remove(composed)) == {"main": ("Berlin", True)}
