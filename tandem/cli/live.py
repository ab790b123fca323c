"""The line that says what goes on: commands a second, the feed's head, each view's lag, the cache's hits."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import grpc

from tandem.cli.services import Service
from tandem.cli.status import Views

T = TypeVar("T")

_ASK_SECONDS = 1.0
# Hits are counted over the last readings: over a second alone the figure would jump, over all time it would stand.
_READINGS = 11


@dataclass(frozen=True)
class Reading:
    """What the services said at a moment (`at`, in seconds of a clock that only grows); None where one did not answer.

    commands, hits and misses are totals since the service's start.
    """

    at: float
    commands: float | None
    hits: float | None
    misses: float | None
    views: Views | None


class Meter:
    """Reads the services' metrics and the views' positions."""

    def __init__(self, command_server: Service, query_server: Service, views: Callable[[float], Views]) -> None:
        """views: asks the projector, within so many seconds, how far they are. It may raise grpc.RpcError."""
        self._command_server = command_server
        self._query_server = query_server
        self._views = views
        self._readings: deque[Reading] = deque(maxlen=_READINGS)

    def line(self) -> str:
        """The line for now; rates are since the call before."""
        self._readings.append(self._read())
        previous = self._readings[-2] if len(self._readings) > 1 else self._readings[-1]
        return describe(self._readings[0], previous, self._readings[-1])

    def _read(self) -> Reading:
        reads = "tandem_cache_reads_total"
        return Reading(
            at=time.monotonic(),
            commands=_or_none(lambda: self._command_server.metric("tandem_commands_total", outcome="stored")),
            hits=_or_none(lambda: self._query_server.metric(reads, result="hit")),
            misses=_or_none(lambda: self._query_server.metric(reads, result="miss")),
            views=_or_none(lambda: self._views(_ASK_SECONDS)),
        )


def _or_none(ask: Callable[[], T]) -> T | None:
    """A service that is away has no figures. The supervisor reports that it is away."""
    try:
        return ask()
    except (OSError, grpc.RpcError):
        return None


def describe(oldest: Reading, previous: Reading, now: Reading) -> str:
    """The line: rates since `previous`, cache hits since `oldest`. A dash stands for what is not known."""
    commands = _grown(previous.commands, now.commands)
    seconds = now.at - previous.at
    rate = "-" if commands is None or seconds <= 0 else f"{commands / seconds:,.0f}"
    return f"commands/s {rate} · {_feed(now.views)} · cache hits {_hit_ratio(oldest, now)}"


def _feed(known: Views | None) -> str:
    if known is None:
        return "feed head - · lag -"
    lags = ", ".join(f"{it.name} {it.lag_events:,}" for it in known.views)
    return f"feed head {known.feed_head:,} · lag {lags}"


def _hit_ratio(oldest: Reading, now: Reading) -> str:
    hits, misses = _grown(oldest.hits, now.hits), _grown(oldest.misses, now.misses)
    if hits is None or misses is None or hits + misses == 0:
        return "-"
    return f"{100 * hits / (hits + misses):.0f} %"


def _grown(before: float | None, now: float | None) -> float | None:
    """How much a total grew; None when unknown, or when the service started anew in between."""
    return None if before is None or now is None or now < before else now - before
