"""Calls of the services by their descriptors: the domain has the contract, and a message as a program reads it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tandem.cli.access import connect
from tandem.cli.output import fail

Fields = dict[str, Any]


def ask(
    service: ServiceDescriptor,
    name: str,
    channel: grpc.Channel,
    fields: Fields | None = None,
    *,
    timeout: float,
    actor: str = "",
) -> Any:
    """The response of a unary RPC. fields: of the request. timeout: in seconds. actor: who asks, for what keeps it.

    Raises grpc.RpcError.
    """
    method = service.methods_by_name[name]
    request = GetMessageClass(method.input_type)(**fields or {})
    metadata = (("tandem-actor", actor),) if actor else ()
    return channel.unary_unary(*_of(method))(request, timeout=timeout, metadata=metadata)


Ask = Callable[..., Any]
"""(the name of a unary RPC, fields of the request by their names) -> the response. Raises grpc.RpcError."""


@contextmanager
def asking(service: ServiceDescriptor, what: str, address: str, *, timeout: float, actor: str = "") -> Iterator[Ask]:
    """Asks a service at an address, as `ask` does. When a call fails within, says so of `what` and ends the command."""
    try:
        with connect(address) as channel:
            yield lambda name, **fields: ask(service, name, channel, fields, timeout=timeout, actor=actor)
    except grpc.RpcError as error:
        fail(f"{what} at {address}: {in_words(error)}")


def pages(ask: Ask, name: str, **fields: object) -> Iterator[Any]:
    """Of an RPC that answers in pages: each of them, the next when it is asked for."""
    token = ""
    while True:
        page = ask(name, **fields, page_token=token)
        yield page
        token = page.next_page_token
        if not token:
            return


def stream(service: ServiceDescriptor, name: str, channel: grpc.Channel, fields: Fields) -> Iterator[Any]:
    """The responses of an RPC that streams them. Raises grpc.RpcError."""
    method = service.methods_by_name[name]
    responses: Iterator[Any] = channel.unary_stream(*_of(method))(GetMessageClass(method.input_type)(**fields))
    return responses


def _of(method: MethodDescriptor) -> tuple[str, Any, Any]:
    path = f"/{method.containing_service.full_name}/{method.name}"
    request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    return path, request.SerializeToString, response.FromString


def as_fields(message: Message) -> Fields:
    """As protobuf's JSON, by the contract's names; a field that is not set has its default, if it has one.

    Whoever knows a domain has imported the messages that are in a google.protobuf.Any.
    """
    fields: Fields = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return fields


def in_words(error: grpc.RpcError) -> str:
    said = f"{error.code().name}: {error.details()}"
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return f"{said} (is a server of another program, or of another release, at this address?)"
    return said
