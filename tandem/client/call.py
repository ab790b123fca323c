"""What a call is in a session, for threads and for asyncio: what is sent, for how long, and how often."""

import random
import sys
import time
from dataclasses import dataclass
from typing import Any

import grpc

from tandem.client.channel import CallDefaults
from tandem.client.errors import CallFailed, EventUnreadable, Unavailable, ViewBehind, typed
from tandem.client.horizon import Horizon

# Three more tries, within two thirds of a second unless the server asks for more: one that stops is replaced, a broken
# connection is another one. More would hide from the caller that a store is away. Each pause is drawn from zero to this
# many seconds.
_PAUSES = (0.05, 0.15, 0.45)
_STOPPING = "STOPPING"

Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass(frozen=True)
class Rpc:
    """An RPC in a session."""

    path: str
    horizon: Horizon
    defaults: CallDefaults

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[1]


class Outgoing:
    """A call of an RPC in a session: the request and the options of its next try."""

    def __init__(self, rpc: Rpc, request: Any, options: dict[str, Any], *, stream: bool = False) -> None:
        """options: the caller's; those that say nothing are the defaults'. timeout: for all tries together, in seconds;
        a stream has none unless it says one.
        """
        self._rpc = rpc
        self._asked = request
        self._sent = rpc.horizon.prepare(request)
        self._has_bad_token = False
        self.options = dict(options)
        self._metadata = _with_trace(tuple(options.get("metadata") or ()))
        self._identify()
        if rpc.defaults.wait_for_ready and options.get("wait_for_ready") is None:
            self.options["wait_for_ready"] = True
        if not stream:
            if options.get("timeout") is None:
                self.options["timeout"] = rpc.defaults.timeout + _longest_wait(request)
            self._end = time.monotonic() + self.options["timeout"]
            self._tries = Tries(waits_for_ready=self.options.get("wait_for_ready", False))

    @property
    def request(self) -> Any:
        return self._sent.request

    def _identify(self) -> None:
        identity: Metadata = ()
        if self._rpc.defaults.token is not None:
            identity = (("authorization", f"Bearer {self._rpc.defaults.token()}"),)
        if metadata := (*self._metadata, *identity):
            self.options["metadata"] = metadata

    def answered(self, response: Any) -> None:
        """Remembers what the response, or a stream's message, says."""
        self._rpc.horizon.answered(self._sent, response)

    def failure(self, error: grpc.RpcError) -> CallFailed:
        """The typed error for one that gRPC raised."""
        failed = typed(error, self._rpc.name)
        self._has_bad_token = self._rpc.horizon.failed(self._sent, failed)
        return failed

    def pause_after(self, error: grpc.RpcError) -> float:
        """Seconds until the next try, whose options are there then. Raises CallFailed when there is none."""
        failed = self.failure(error)
        if self._has_bad_token:
            self._sent = self._rpc.horizon.prepare(self._asked)
            pause: float | None = 0.0
        else:
            pause = self._tries.pause(failed)
        if pause is None:
            raise failed from error
        self._identify()
        self.options["timeout"] = self._end - time.monotonic() - pause
        if self.options["timeout"] <= 0:
            raise failed from error
        return pause


def _with_trace(metadata: Metadata) -> Metadata:
    """Names the caller's span of OpenTelemetry, where there is one and the caller names none itself."""
    # Who has a span has imported it. Who has none need not.
    opentelemetry: Any = sys.modules.get("opentelemetry.trace")
    if opentelemetry is None or any(name == "traceparent" for name, _ in metadata):
        return metadata
    it = opentelemetry.get_current_span().get_span_context()
    if not it.is_valid:
        return metadata
    return (*metadata, ("traceparent", f"00-{it.trace_id:032x}-{it.span_id:016x}-{int(it.trace_flags):02x}"))


def _longest_wait(request: Any) -> float:
    """How long a query lets the server wait for its view, in seconds."""
    if "consistency" not in request.DESCRIPTOR.fields_by_name or not request.consistency.HasField("max_wait"):
        return 0.0
    wait: float = request.consistency.max_wait.ToTimedelta().total_seconds()
    return wait


class Tries:
    """The tries of a call after its first; those of a command have its request_id in common, and it is done once."""

    def __init__(self, *, waits_for_ready: bool) -> None:
        """waits_for_ready: whether the call waits for a connection where there is none."""
        self._waits_for_ready = waits_for_ready
        self._pauses = iter(_PAUSES)

    def pause(self, failed: CallFailed) -> float | None:
        """Seconds until the next try; None where there is none: it would not help, or has not helped often enough."""
        stopping = failed.reason == _STOPPING
        if stopping and self._waits_for_ready:
            # The connection to that server ends soon, and then the call waits for one to another server.
            return random.uniform(0, _PAUSES[-1])  # noqa: S311 - spreads load, keeps no secret
        longest = next(self._pauses, None) if _may_help(failed) else None
        if longest is None:
            return None
        drawn = random.uniform(0, longest)  # noqa: S311 - as above
        # What the server asks for. One that stops asks for nothing: another one answers.
        return drawn if stopping else max(drawn, failed.retry_after or 0.0)


def _may_help(failed: CallFailed) -> bool:
    """Whether to try again at once."""
    if connection_broke(failed):
        return failed.code() != grpc.StatusCode.CANCELLED
    # One that waited in vain is the caller's to repeat.
    return isinstance(failed, Unavailable) and not isinstance(failed, ViewBehind | EventUnreadable)


def connection_broke(error: CallFailed) -> bool:
    """Whether a proxy, the connection or a server that was ending cut the call off: no word of Tandem's own."""
    broken = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED)
    return not error.reason and error.code() in broken
