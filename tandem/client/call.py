"""What the calls of both clients, for threads and for asyncio, have in common."""

import random
from dataclasses import dataclass
from typing import Any

import grpc

from tandem.client.channel import CallDefaults
from tandem.client.errors import CallFailed, EventUnreadable, Reason, Unavailable, ViewBehind
from tandem.client.horizon import Horizon
from tandem.client.status import typed

# Three more tries, within two thirds of a second unless the server asks for more: one that stops is replaced, a broken
# connection is another one. More would hide from the caller that a store is away. Each pause is drawn from zero to this
# many seconds.
_PAUSES = (0.05, 0.15, 0.45)


class NoAddress(ValueError):
    """A service was called whose address the client was not given."""


@dataclass(frozen=True)
class Rpc:
    """An RPC in a session."""

    path: str
    horizon: Horizon
    defaults: CallDefaults

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[1]

    def options(self, request: Any, options: dict[str, Any]) -> dict[str, Any]:
        """The call's options, those that say nothing from the defaults. timeout: for all tries together."""
        chosen = self.stream_options(options)
        if chosen.get("timeout") is None:
            chosen["timeout"] = self._timeout(request)
        return chosen

    def stream_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """As `options`, for a stream: it has no timeout unless it says one."""
        chosen = dict(options)
        if self.defaults.wait_for_ready and chosen.get("wait_for_ready") is None:
            chosen["wait_for_ready"] = True
        return chosen

    def _timeout(self, request: Any) -> float:
        fields = request.DESCRIPTOR.fields_by_name
        if "consistency" not in fields or not request.consistency.HasField("max_wait"):
            return self.defaults.timeout
        wait: float = request.consistency.max_wait.ToTimedelta().total_seconds()
        return self.defaults.timeout + wait

    def failure(self, request: Any, error: grpc.RpcError) -> CallFailed:
        """The typed error for one that gRPC raised."""
        failed = typed(error, self.name)
        self.horizon.failed(request, failed)
        return failed


class Tries:
    """The tries of a call after its first; those of a command have its request_id in common, and it is done once."""

    def __init__(self, *, waits_for_ready: bool) -> None:
        """waits_for_ready: whether the call waits for a connection where there is none."""
        self._waits_for_ready = waits_for_ready
        self._pauses = iter(_PAUSES)

    def pause(self, failed: CallFailed) -> float | None:
        """Seconds until the next try; None where there is none: it would not help, or has not helped often enough."""
        stopping = failed.reason == Reason.STOPPING
        if stopping and self._waits_for_ready:
            # Soon there is no connection to that server, and one to another is waited for.
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
