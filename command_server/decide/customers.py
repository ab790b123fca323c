"""Rules for customers."""

from google.protobuf.message import Message

from command_server.aggregates import Aggregates, Customer
from command_server.apply import FIRST_ADDRESS
from command_server.command import Command
from command_server.decide.rules import check_version, must_be_new, not_found, refuse, timestamp
from commerce.command.v1 import command_service_pb2 as commands
from commerce.event.v1.event_pb2 import (
    AddressRemoved,
    AddressUpdated,
    CustomerErased,
    CustomerRegistered,
    CustomerRenamed,
    OrdersAnonymized,
    PersonalData,
)

MAX_ADDRESSES = 20
# An event stays small however many orders a customer has.
_ORDERS_IN_AN_EVENT = 100


def register_customer(
    request: commands.RegisterCustomerRequest, command: Command, aggregates: Aggregates
) -> list[Message]:
    must_be_new(aggregates.customers.get(command.subject_id), "customer", command.subject_id)
    personal = PersonalData(name=request.name, email=request.email, phone=request.phone)
    if request.HasField("address"):
        personal.address.CopyFrom(request.address)
    return [
        CustomerRegistered(
            customer_id=str(command.subject_id), version=1, personal=personal, registered_at=timestamp(command.now)
        )
    ]


def rename_customer(request: commands.RenameCustomerRequest, command: Command, aggregates: Aggregates) -> list[Message]:
    customer = _existing(request, command, aggregates)
    personal = PersonalData(name=request.name)
    return [CustomerRenamed(customer_id=str(customer.id), version=customer.version + 1, personal=personal)]


def update_address(request: commands.UpdateAddressRequest, command: Command, aggregates: Aggregates) -> list[Message]:
    customer = _existing(request, command, aggregates)
    default = customer.default_address
    name = request.address_name or (default.name if default else FIRST_ADDRESS)
    if len(customer.addresses) >= MAX_ADDRESSES and customer.address_named(name) is None:
        raise refuse("ADDRESS_LIMIT", f"customers/{customer.id}", f"a customer has at most {MAX_ADDRESSES} addresses")
    return [
        AddressUpdated(
            customer_id=str(customer.id),
            version=customer.version + 1,
            personal=PersonalData(address=request.address, address_name=name),
            is_default=request.make_default or default is None or name == default.name,
        )
    ]


def remove_address(request: commands.RemoveAddressRequest, command: Command, aggregates: Aggregates) -> list[Message]:
    customer = _existing(request, command, aggregates)
    subject = f"customers/{customer.id}"
    if customer.address_named(request.address_name) is None:
        raise refuse("ADDRESS_UNKNOWN", subject, "the customer has no address of this name")
    default = customer.default_address
    if default is not None and default.name == request.address_name and len(customer.addresses) > 1:
        raise refuse("DEFAULT_ADDRESS", subject, "make another address the default one first")
    return [
        AddressRemoved(
            customer_id=str(customer.id),
            version=customer.version + 1,
            personal=PersonalData(address_name=request.address_name),
        )
    ]


def erase_customer(request: commands.EraseCustomerRequest, command: Command, aggregates: Aggregates) -> list[Message]:
    customer = _existing(request, command, aggregates)
    erased = CustomerErased(
        customer_id=str(customer.id), version=customer.version + 1, erased_at=timestamp(command.now)
    )
    orders = sorted(map(str, aggregates.order_ids[customer.id]))
    return [
        erased,
        *(
            OrdersAnonymized(customer_id=str(customer.id), order_ids=orders[first : first + _ORDERS_IN_AN_EVENT])
            for first in range(0, len(orders), _ORDERS_IN_AN_EVENT)
        ),
    ]


def _existing(request: Message, command: Command, aggregates: Aggregates) -> Customer:
    """The customer that the command is about. One that was erased takes no command any more."""
    customer = aggregates.customers.get(command.subject_id)
    if customer is None:
        raise not_found("customer", command.subject_id)
    if customer.erased:
        raise refuse("CUSTOMER_ERASED", f"customers/{customer.id}", "the customer was erased")
    check_version(request, customer.version)
    return customer
