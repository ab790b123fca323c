"""The service behind one of grpcio-testing's fake channels, which answers what a test says."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import grpc_testing
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from tandem.runtime.errors import TandemError, code_of, to_status

Answer = Message | TandemError | tuple[grpc.StatusCode, str]


class FakeService:
    """Serves one method of a fake channel from a thread, until as many calls came as there are answers.

    `answer` gets each request and returns the response, a refusal as a server would send it, or a status code and its
    message.
    """

    def __init__(
        self, channel: grpc_testing.Channel, method: MethodDescriptor, answer: Callable[[Any], Answer], calls: int = 1
    ) -> None:
        self.requests: list[Any] = []
        self._channel = channel
        self._method = method
        self._answer = answer
        self._calls = calls
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        for _ in range(self._calls):
            _, request, call = self._channel.take_unary_unary(self._method)
            self.requests.append(request)
            answer = self._answer(request)
            call.send_initial_metadata(())
            if isinstance(answer, Message):
                call.terminate(answer, (), grpc.StatusCode.OK, "")
            else:
                call.terminate(None, *ending(answer))


def ending(
    answer: TandemError | tuple[grpc.StatusCode, str],
) -> tuple[tuple[tuple[str, bytes], ...], grpc.StatusCode, str]:
    """How a call ends that fails: trailing metadata, code and message."""
    if isinstance(answer, tuple):
        return (), *answer
    details = to_status(answer).SerializeToString()
    return (("grpc-status-details-bin", details),), code_of(answer), answer.message


def fake_channel(services: Sequence[ServiceDescriptor]) -> grpc_testing.Channel:
    return grpc_testing.channel(services, grpc_testing.strict_real_time())
