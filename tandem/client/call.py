"""What the calls of both clients, for threads and for asyncio, have in common."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc

from tandem.client.channel import CallDefaults
from tandem.client.errors import CallFailed, EventUnreadable, Reason, Unavailable, ViewBehind
from tandem.client.horizon import Horizon
from tandem.client.status import typed

# Three more tries, as a channel's (channel.py); each pause is drawn from zero to this many seconds.
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
        chosen = dict(options)
        if chosen.get("timeout") is None:
            chosen["timeout"] = self._timeout(request)
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

    def may_be_repeated(self, error: CallFailed) -> bool:
        """Whether the session is to try again at once. The channel has done so for a command that was UNAVAILABLE."""
        if connection_broke(error):
            return error.code() != grpc.StatusCode.CANCELLED
        if ".command." in self.path:
            return False
        # One that waited in vain is the caller's to repeat.
        return isinstance(error, Unavailable) and not isinstance(error, ViewBehind | EventUnreadable)


def pauses() -> Iterator[float]:
    """How long to wait before each further try, in seconds."""
    return (random.uniform(0, longest) for longest in _PAUSES)  # noqa: S311 - spreads load, keeps no secret


def pause_before_repeating(error: CallFailed, drawn: float) -> float:
    """In seconds: what the server asks for. One that stops asks for nothing: another one answers."""
    if error.reason == Reason.STOPPING:
        return drawn
    return max(drawn, error.retry_after or 0.0)


def connection_broke(error: CallFailed) -> bool:
    """Whether a proxy, the connection or a server that was ending cut the call off: no word of Tandem's own."""
    broken = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED)
    return not error.reason and error.code() in broken
