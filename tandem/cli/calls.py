"""Calls of the services by their descriptors: the domain has the contract, and a message as a program reads it."""

from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

Fields = dict[str, Any]


def ask(
    service: ServiceDescriptor, name: str, channel: grpc.Channel, fields: Fields | None = None, *, timeout: float
) -> Any:
    """The response of a unary RPC. fields: of the request. timeout: in seconds. Raises grpc.RpcError."""
    method = service.methods_by_name[name]
    return channel.unary_unary(*_of(method))(GetMessageClass(method.input_type)(**fields or {}), timeout=timeout)


def stream(service: ServiceDescriptor, name: str, channel: grpc.Channel, fields: Fields) -> Iterator[Any]:
    """The responses of an RPC that streams them. Raises grpc.RpcError."""
    method = service.methods_by_name[name]
    responses: Iterator[Any] = channel.unary_stream(*_of(method))(GetMessageClass(method.input_type)(**fields))
    return responses


def _of(method: MethodDescriptor) -> tuple[str, Any, Any]:
    path = f"/{method.containing_service.full_name}/{method.name}"
    request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    return path, request.SerializeToString, response.FromString


def as_fields(message: Message, pool: DescriptorPool | None = None) -> Fields:
    """As protobuf's JSON, by the contract's names; a field that is not set has its default, if it has one.

    pool: with the messages that are in a google.protobuf.Any.
    """
    fields: Fields = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True, descriptor_pool=pool
    )
    return fields


def in_words(error: grpc.RpcError) -> str:
    return f"{error.code().name}: {error.details()}"
