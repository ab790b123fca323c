"""Sample data: a domain's commands, sent through its command service."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import Message
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_exponential_jitter

from tandem.cli.child import StackError

# Commands under way at once: enough for the server to commit them in batches.
_PARALLEL = 32
_CALL_SECONDS = 10.0
_RETRY_SECONDS = 20.0


@dataclass(frozen=True)
class Stage:
    """Commands that do not depend on one another, only on the stages before. Each request has a request id."""

    title: str
    requests: tuple[Message, ...]


def send_sample(commands: Any, stages: Sequence[Stage], advance: Callable[[int], None] = lambda _: None) -> None:
    """Sends the stages in order, the commands of one side by side. `advance` is told how many more are done.

    commands: the command service's stub. What fails in passing is repeated. Raises StackError for any other failure.
    """
    pool = ThreadPoolExecutor(_PARALLEL, thread_name_prefix="sample")
    try:
        for stage in stages:
            for _ in pool.map(partial(_send, commands), stage.requests):
                advance(1)
    finally:
        pool.shutdown(cancel_futures=True)


def _send(commands: Any, request: Message) -> None:
    try:
        send(commands, request)
    except grpc.RpcError as error:
        rpc = request.DESCRIPTOR.name.removesuffix("Request")
        raise StackError(f"sample data: {rpc} failed with {error.code().name}: {error.details()}") from error


def send(commands: Any, request: Message) -> Any:
    """The answer to a command. What fails in passing is repeated. Raises grpc.RpcError."""
    rpc = request.DESCRIPTOR.name.removesuffix("Request")
    retrying = Retrying(
        retry=retry_if_exception(_may_pass),
        stop=stop_after_delay(_RETRY_SECONDS),
        wait=wait_exponential_jitter(multiplier=0.05, max=1, jitter=0.05),
        reraise=True,
    )
    return retrying(getattr(commands, rpc), request, timeout=_CALL_SECONDS)


def _may_pass(error: BaseException) -> bool:
    passing = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED)
    return isinstance(error, grpc.RpcError) and error.code() in passing
