"""Customers: their names and addresses, and their erasure."""

import unicodedata
import uuid
from typing import NamedTuple

from google.protobuf.message import Message
from sqlalchemy import BigInteger, Boolean, Column, LargeBinary, Table, Text, Uuid, text

from commerce.command.v1 import command_service_pb2 as commands
from commerce.event.v1 import event_pb2 as events
from commerce.type.v1.address_pb2 import Address, AddressBook, NamedAddress
from tandem.commands.domain import Command, change, change_fields, rule
from tandem.commands.rules import Id, check_version, moment, must_be_new, not_found, refusal, timestamp
from tandem.commands.write_model import Aggregate, Part, States, of_subject
from tandem.feed.table import SCHEMA, metadata
from tandem.runtime.bulk import Row

FIRST_ADDRESS = "main"
"""What a customer's first address is called when nobody says."""
MAX_ADDRESSES = 20
# An event stays small however many orders a customer has, and so does a transaction.
_ORDERS_IN_AN_EVENT = 100
ORDERS_IN_A_STEP = 1000
"""Orders that EraseCustomer anonymizes in one transaction."""


# The state, its table and its rows


class Customer(NamedTuple):
    """unerased_from: of an erased customer, the first id of the orders that are not anonymized yet."""

    id: Id
    version: int
    name: str
    email: str
    phone: str
    addresses: tuple[NamedAddress, ...]
    erased: bool
    unerased_from: Id | None = None

    @property
    def default_address(self) -> NamedAddress | None:
        return next((it for it in self.addresses if it.is_default), None)

    def address_named(self, name: str) -> NamedAddress | None:
        """One whose name is spelled so, or else one whose name looks so."""
        found = next((it for it in self.addresses if it.name == name), None)
        return found or next((it for it in self.addresses if compared(it.name) == compared(name)), None)

    def address_of(self, name: str) -> Address | None:
        found = self.address_named(name)
        return found.address if found is not None else None


def compared(name: str) -> str:
    """An address's name as it is compared: one letter is one, whether it is typed as one character or as two.

    What was typed is kept.
    """
    return unicodedata.normalize("NFC", name)


customer_table = Table(
    "customer",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("name", Text, nullable=False),
    Column("email", Text, nullable=False),
    Column("phone", Text, nullable=False),
    Column("addresses", LargeBinary, nullable=False, comment="commerce.type.v1.AddressBook"),
    Column("erased", Boolean, nullable=False, server_default=text("false")),
    Column("unerased_from", Uuid, nullable=True),
)


def _of_row(row: Row) -> Customer:
    identity, version, name, email, phone, addresses, *others = row
    return Customer(identity, version, name, email, phone, tuple(AddressBook.FromString(addresses).addresses), *others)


def _row_of(it: Customer) -> Row:
    addresses = AddressBook(addresses=it.addresses).SerializeToString(deterministic=True)
    return it.id, it.version, it.name, it.email, it.phone, addresses, it.erased, it.unerased_from


# Who places an order locks its customer, so after that lock the list of the orders is complete.
CUSTOMER_ORDERS: Part[frozenset[Id]] = Part(
    f"""
    SELECT CAST(c.id AS text), CAST(o.id AS text) FROM {SCHEMA}.customer AS c, LATERAL (
      SELECT id FROM {SCHEMA}.customer_order
      WHERE customer_id = c.id AND id >= COALESCE(c.unerased_from, CAST('{uuid.UUID(int=0)}' AS uuid))
      ORDER BY id LIMIT {ORDERS_IN_A_STEP + 1}
    ) AS o WHERE c.id = ANY(%s)""",  # noqa: S608
    of_rows=lambda rows: frozenset(order_id for (order_id,) in rows),
)
"""The ids of the first orders of the customers that are asked for that are not anonymized, by customer.

One more than are anonymized in a step, so that the last step is known.
"""

CUSTOMERS = Aggregate(
    "customer",
    customer_table,
    of_row=_of_row,
    row_of=_row_of,
    parts=[CUSTOMER_ORDERS],
    unversioned=["unerased_from"],
    erased=lambda it: it.erased,
)


# The rules


@rule(CUSTOMERS)
def register_customer(request: commands.RegisterCustomerRequest, command: Command, states: States) -> list[Message]:
    must_be_new(states[CUSTOMERS].get(command.subject_id), "customer", command.subject_id)
    personal = events.PersonalData(name=request.name, email=request.email, phone=request.phone)
    personal.external_reference = request.external_reference
    if request.HasField("address"):
        personal.address.CopyFrom(request.address)
    return [
        events.CustomerRegistered(
            customer_id=command.subject_id,
            version=1,
            personal=personal,
            registered_at=moment(request, "registered_at", command.now),
            guest=request.guest,
        )
    ]


@rule(CUSTOMERS)
def rename_customer(request: commands.RenameCustomerRequest, command: Command, states: States) -> list[Message]:
    customer = _existing(request, command, states)
    personal = events.PersonalData(name=request.name)
    return [events.CustomerRenamed(customer_id=customer.id, version=customer.version + 1, personal=personal)]


@rule(CUSTOMERS)
def update_address(request: commands.UpdateAddressRequest, command: Command, states: States) -> list[Message]:
    customer = _existing(request, command, states)
    default = customer.default_address
    name = request.address_name or (default.name if default else FIRST_ADDRESS)
    present = customer.address_named(name)
    if present is not None:
        name = present.name
    elif len(customer.addresses) >= MAX_ADDRESSES:
        raise refusal("ADDRESS_LIMIT", f"customers/{customer.id}", f"a customer has at most {MAX_ADDRESSES} addresses")
    return [
        events.AddressUpdated(
            customer_id=customer.id,
            version=customer.version + 1,
            personal=events.PersonalData(address=request.address, address_name=name),
            is_default=request.make_default or default is None or name == default.name,
        )
    ]


@rule(CUSTOMERS)
def remove_address(request: commands.RemoveAddressRequest, command: Command, states: States) -> list[Message]:
    customer = _existing(request, command, states)
    subject = f"customers/{customer.id}"
    address = customer.address_named(request.address_name)
    if address is None:
        raise refusal("ADDRESS_UNKNOWN", subject, "the customer has no address of this name")
    if address.is_default and len(customer.addresses) > 1:
        raise refusal("DEFAULT_ADDRESS", subject, "make another address the default one first")
    return [
        events.AddressRemoved(
            customer_id=customer.id,
            version=customer.version + 1,
            personal=events.PersonalData(address_name=address.name),
        )
    ]


def anonymize_orders(_request: commands.EraseCustomerRequest, command: Command, states: States) -> list[Message]:
    """The next of the orders of a customer that is erased."""
    orders = sorted(states[CUSTOMER_ORDERS][command.subject_id])[:ORDERS_IN_A_STEP]
    return [
        events.OrdersAnonymized(customer_id=command.subject_id, order_ids=orders[first : first + _ORDERS_IN_AN_EVENT])
        for first in range(0, len(orders), _ORDERS_IN_AN_EVENT)
    ]


@rule(CUSTOMERS, keys=of_subject(CUSTOMER_ORDERS), rest=anonymize_orders)
def erase_customer(request: commands.EraseCustomerRequest, command: Command, states: States) -> list[Message]:
    customer = _existing(request, command, states)
    erased = events.CustomerErased(
        customer_id=customer.id, version=customer.version + 1, erased_at=timestamp(command.now)
    )
    return [erased, *anonymize_orders(request, command, states)]


def _existing(request: Message, command: Command, states: States) -> Customer:
    """The customer that the command is about. One that was erased takes no command any more."""
    customer = states[CUSTOMERS].get(command.subject_id)
    if customer is None:
        raise not_found("customer", command.subject_id)
    if customer.erased:
        raise refusal("CUSTOMER_ERASED", f"customers/{customer.id}", "the customer was erased")
    check_version(request, customer.version)
    return customer


# What each event changes


@change(CUSTOMERS)
def customer_registered(states: States, event: events.CustomerRegistered) -> None:
    personal = event.personal
    customer = Customer(
        id=event.customer_id,
        version=event.version,
        name=personal.name,
        email=personal.email,
        phone=personal.phone,
        addresses=(
            (NamedAddress(name=FIRST_ADDRESS, address=personal.address, is_default=True),)
            if personal.HasField("address")
            else ()
        ),
        erased=False,
    )
    states[CUSTOMERS][customer.id] = customer


@change(CUSTOMERS)
def customer_renamed(states: States, event: events.CustomerRenamed) -> None:
    CUSTOMERS.change(states, event, name=event.personal.name)


@change(CUSTOMERS)
def address_updated(states: States, event: events.AddressUpdated) -> None:
    before = states[CUSTOMERS][event.customer_id].addresses
    # Events from before addresses had names are about the one address that there was.
    name = event.personal.address_name or FIRST_ADDRESS
    default = event.is_default or not before or any(it.name == name and it.is_default for it in before)
    changed = NamedAddress(name=name, address=event.personal.address, is_default=default)
    others = [NamedAddress(name=it.name, address=it.address, is_default=it.is_default and not default) for it in before]
    names = [it.name for it in before]
    if changed.name in names:
        others[names.index(changed.name)] = changed
    else:
        others.append(changed)
    CUSTOMERS.change(states, event, addresses=tuple(others))


@change(CUSTOMERS)
def address_removed(states: States, event: events.AddressRemoved) -> None:
    before = states[CUSTOMERS][event.customer_id].addresses
    CUSTOMERS.change(states, event, addresses=tuple(it for it in before if it.name != event.personal.address_name))


@change(CUSTOMERS)
def orders_anonymized(states: States, event: events.OrdersAnonymized) -> None:
    """The write model's orders hold nothing of a person; the customer says which are not done."""
    left = states[CUSTOMER_ORDERS][event.customer_id].difference(event.order_ids)
    states[CUSTOMER_ORDERS][event.customer_id] = left
    customer = states[CUSTOMERS][event.customer_id]
    states[CUSTOMERS][customer.id] = customer._replace(unerased_from=min(left, default=None))


change_fields(CUSTOMERS, events.CustomerErased, name="", email="", phone="", addresses=(), erased=True)
