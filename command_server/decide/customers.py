"""Rules for customers."""

from google.protobuf.message import Message

from command_server.aggregates import Aggregates
from command_server.command import Command
from command_server.decide.rules import check_version, must_be_new, not_found, timestamp
from commerce.command.v1 import command_service_pb2 as commands
from commerce.event.v1.event_pb2 import AddressUpdated, CustomerRegistered, PersonalData


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


def update_address(request: commands.UpdateAddressRequest, command: Command, aggregates: Aggregates) -> list[Message]:
    customer = aggregates.customers.get(command.subject_id)
    if customer is None:
        raise not_found("customer", command.subject_id)
    check_version(request, customer.version)
    return [
        AddressUpdated(
            customer_id=str(customer.id),
            version=customer.version + 1,
            personal=PersonalData(address=request.address),
        )
    ]
