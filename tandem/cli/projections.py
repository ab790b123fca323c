"""How far the views are, asked of a projector: by its service's descriptor, since the domain has the contract."""

from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass


@dataclass(frozen=True)
class View:
    """state: "running", "standby" or "failed"; lag_seconds: the age of the oldest event that it has not taken in."""

    name: str
    state: str = "running"
    position: int = 0
    lag_events: int = 0
    lag_seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Views:
    """The views by name, and the last position of the feed."""

    feed_head: int
    views: tuple[View, ...]


def list_projections(service: ServiceDescriptor, channel: grpc.Channel, timeout: float) -> Views:
    """Asks the projector behind the channel. timeout: in seconds. Raises grpc.RpcError."""
    method = service.methods_by_name["ListProjections"]
    request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    call = channel.unary_unary(
        f"/{service.full_name}/{method.name}",
        request_serializer=request.SerializeToString,
        response_deserializer=response.FromString,
    )
    answer: Any = call(request(), timeout=timeout)
    return Views(answer.feed_head, tuple(map(_view, answer.projections)))


def _view(projection: Any) -> View:
    states = projection.DESCRIPTOR.fields_by_name["state"].enum_type.values_by_number
    return View(
        name=projection.view,
        state=states[projection.state].name.removeprefix("PROJECTION_STATE_").lower(),
        position=projection.position,
        lag_events=projection.lag_events,
        lag_seconds=projection.lag.ToTimedelta().total_seconds(),
        error=projection.error,
    )
