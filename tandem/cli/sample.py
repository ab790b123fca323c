"""Sample data: a domain's commands, sent through its command service."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_exponential_jitter

from tandem.cli.child import StackError

# Commands under way at once: enough for the server to commit them in batches.
_PARALLEL = 32
_CALL_SECONDS = 10.0
_RETRY_SECONDS = 20.0


@dataclass(frozen=True)
class SampleCall:
    """An RPC of the command service and its request, which has a request id: to send it again changes nothing."""

    rpc: str
    request: Any  # each RPC has a message of its own


@dataclass(frozen=True)
class Stage:
    """Calls that do not depend on one another, only on the stages before."""

    title: str
    calls: tuple[SampleCall, ...]


class SampleError(StackError):
    """The sample data could not be loaded; the message says which command failed and how."""


def load(commands: Any, stages: Sequence[Stage], advance: Callable[[int], None] = lambda _: None) -> None:
    """Sends the stages in order, the calls of one side by side. `advance` is told how many more are done.

    commands: the command service's stub. A call that fails in passing is repeated. Raises SampleError for any other
    failure.
    """
    pool = ThreadPoolExecutor(_PARALLEL, thread_name_prefix="sample")
    try:
        for stage in stages:
            for _ in pool.map(lambda call: _send(commands, call), stage.calls):
                advance(1)
    finally:
        pool.shutdown(cancel_futures=True)


def _send(commands: Any, call: SampleCall) -> None:
    retrying = Retrying(
        retry=retry_if_exception(_may_pass),
        stop=stop_after_delay(_RETRY_SECONDS),
        wait=wait_exponential_jitter(multiplier=0.05, max=1, jitter=0.05),
        reraise=True,
    )
    try:
        retrying(getattr(commands, call.rpc), call.request, timeout=_CALL_SECONDS)
    except grpc.RpcError as error:
        raise SampleError(f"sample data: {call.rpc} failed with {error.code().name}: {error.details()}") from error


def _may_pass(error: BaseException) -> bool:
    passing = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED)
    return isinstance(error, grpc.RpcError) and error.code() in passing
