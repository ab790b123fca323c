"""What goes on, over and over: a table that is redrawn in place on a terminal, a line each time elsewhere.

`tandem up` and `tandem status --watch` both show it.
"""

import json
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from types import FrameType
from typing import Any

import typer
from rich.console import Console, ConsoleDimensions, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tandem.cli import status
from tandem.cli.status import Report, ServiceHealth, View

# Hits are counted over the last readings: over a second alone the figure would jump, over all time it would stand.
_READINGS = 11
_LOOK_AT_SIZE_SECONDS = 0.2


@dataclass(frozen=True)
class Totals:
    """Since the services' start: commands that were stored, reads that hit the cache and that missed it.

    None where a service did not answer.
    """

    commands: float | None = None
    hits: float | None = None
    misses: float | None = None


@dataclass(frozen=True)
class Reading:
    """What is known at a moment (`at`, in seconds of a clock that only grows).

    stores: those that we started ourselves. totals: None where nobody asks for metrics.
    """

    at: float
    report: Report
    stores: tuple[ServiceHealth, ...] = ()
    totals: Totals | None = None

    @property
    def processes(self) -> tuple[ServiceHealth, ...]:
        return (*self.stores, *self.report.services)


def watch(
    read: Callable[[], Reading],
    console: Console,
    seconds: float,
    *,
    as_line: Callable[[Sequence[Reading]], str] | None = None,
    plain_every: int = 1,
    before_each: Callable[[], None] = lambda: None,
) -> None:
    """Reads every so many seconds and shows it, until an exception ends it: KeyboardInterrupt, or one of `before_each`.

    as_line: the line for the last readings, also on a terminal; by default the table there, and `describe` elsewhere.
    plain_every: of so many readings one is printed as a line.
    """
    readings: deque[Reading] = deque(maxlen=_READINGS)
    in_place = as_line is None and can_redraw(console)
    with Live(console=console, auto_refresh=False) if in_place else nullcontext() as live:
        for number in count():
            before_each()
            if live or number % plain_every == 0:
                readings.append(read())
            if live:
                _draw_until(time.monotonic() + seconds, readings, live)
            else:
                if number % plain_every == 0:
                    typer.echo((as_line or describe)(readings))
                time.sleep(seconds)


def watch_until_stopped(report: Callable[[], Report], console: Console, seconds: float, *, as_json: bool) -> None:
    """Shows reports until a signal to stop, which is a good end."""
    at_a_signal_to_stop(signal.default_int_handler)

    def read() -> Reading:
        return Reading(time.monotonic(), report())

    try:
        watch(read, console, seconds, as_line=in_json if as_json else None)
    except KeyboardInterrupt:
        return


def can_redraw(console: Console) -> bool:
    """Whether it is a terminal that moves its cursor; environment variables that ask for colours do not make it one."""
    return console.is_terminal and console.file.isatty() and not console.is_dumb_terminal


def _draw_until(deadline: float, readings: Sequence[Reading], live: Live) -> None:
    """Draws, and draws again when the terminal is given another size: its lines may be broken then."""
    size = live.console.size
    live.update(screen(readings, size), refresh=True)
    while (rest := deadline - time.monotonic()) > 0:
        time.sleep(min(rest, _LOOK_AT_SIZE_SECONDS))
        if live.console.size != size:
            size = live.console.size
            live.console.clear()
            live.update(screen(readings, size), refresh=True)


def at_a_signal_to_stop(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> None:
    """For SIGINT, SIGTERM and SIGHUP; that one is none under `nohup`, which has it ignored."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    for number in (signal.SIGINT, signal.SIGTERM, *([] if ignored else [signal.SIGHUP])):
        signal.signal(number, handler)


def in_json(readings: Sequence[Reading]) -> str:
    """The last reading, in one line: as `tandem status --json`, and when it was."""
    return json.dumps({"at": datetime.now(UTC).isoformat(), **status.as_fields(readings[-1].report)})


def describe(readings: Sequence[Reading]) -> str:
    """The last reading in one line. A dash stands for what is not known."""
    now = readings[-1]
    away = [f"{it.name} {it.health}" for it in now.processes if it.health != "serving"]
    stopped = [f"{it.name} stopped" for it in now.report.views if it.error]
    lags = ", ".join(f"{it.name} {it.lag_events:,}" for it in now.report.views) or "-"
    return " · ".join([*away, *stopped, *_figures(readings), f"lag {lags}"])


def _figures(readings: Sequence[Reading]) -> list[str]:
    """Rates are since the reading before, cache hits since the oldest one."""
    oldest, previous, now = readings[0], readings[-2 if len(readings) > 1 else -1], readings[-1]
    seconds, head = now.at - previous.at, now.report.feed_head
    figures = [
        f"feed head {'-' if head is None else f'{head:,}'}",
        f"events/s {_rate(_grown(previous.report.feed_head, head), seconds)}",
    ]
    if now.totals is None or previous.totals is None or oldest.totals is None:
        return figures
    commands = _rate(_grown(previous.totals.commands, now.totals.commands), seconds)
    return [*figures, f"commands/s {commands}", f"cache hits {_hit_ratio(oldest.totals, now.totals)}"]


def _rate(gained: float | None, seconds: float) -> str:
    return "-" if gained is None or seconds <= 0 else f"{gained / seconds:,.0f}"


def _hit_ratio(oldest: Totals, now: Totals) -> str:
    hits, misses = _grown(oldest.hits, now.hits), _grown(oldest.misses, now.misses)
    if hits is None or misses is None or hits + misses == 0:
        return "-"
    return f"{100 * hits / (hits + misses):.0f} %"


def _grown(before: float | None, now: float | None) -> float | None:
    """How much a total grew; None when unknown, or when the service started anew in between."""
    return None if before is None or now is None or now < before else now - before


def screen(readings: Sequence[Reading], size: ConsoleDimensions) -> Group:
    """The last reading on a terminal of that size: figures, processes, views, and what is wrong as far as it fits."""
    now = readings[-1]
    figures = _line(" · ".join([datetime.now().astimezone().strftime("%H:%M:%S"), *_figures(readings)]), "bold")
    # Two lines are empty, and two are heads of tables.
    views, left_out = _most_urgent(now.report.views, size.height - len(now.processes) - 5)
    parts: list[Any] = [figures, "", _processes(now.processes)]
    if views:
        parts += ["", _views(views, now.report)]
    if left_out:
        parts.append(_line(f"and {left_out} more views: `tandem status` shows all", "yellow"))
    room = size.height - len(now.processes) - len(views) - bool(left_out) - (5 if views else 3)
    return Group(*parts, *_problems(now, size.width, room))


def _most_urgent(views: Sequence[View], room: int) -> tuple[Sequence[View], int]:
    """All views where there is room, else those that need somebody most; and how many are left out."""
    if len(views) <= room:
        return views, 0
    kept = max(1, room - 1)
    urgent = sorted(views, key=lambda it: (bool(it.error), it.parked_keys, it.lag_events), reverse=True)
    return urgent[:kept], len(views) - kept


def _processes(processes: Sequence[ServiceHealth]) -> Table:
    table = _table("service", "address", "health")
    for it in processes:
        table.add_row(_line(it.name), _line(it.address), _line(it.health, "green" if it.health == "serving" else "red"))
    return table


def _views(views: Sequence[View], report: Report) -> Table:
    table = _table("view", "state")
    for column in ("position", "behind", "for", "parked"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("generation", no_wrap=True)
    others = {it["view"]: it for it in report.generations}
    for it in views:
        table.add_row(
            _line(it.name),
            _line(it.state, "red" if it.error else "green"),
            f"{it.position:,}",
            f"{it.lag_events:,}",
            _line(_age(it.lag_seconds), "yellow" if it.is_late else ""),
            _line(f"{it.parked_keys:,}", "yellow" if it.parked_keys else ""),
            _line(_generation(others.get(it.name), report.feed_head)),
        )
    return table


def _generation(other: Mapping[str, Any] | None, head: int | None) -> str:
    """What is done with the generation that is not served; empty where there is none."""
    if other is None:
        return ""
    part = f" {other['position'] / head:.0%}" if other["state"] == "filling" and head else ""
    return f"{other['state']}{part}"


def _age(seconds: float) -> str:
    """At most six characters."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def _problems(now: Reading, width: int, room: int) -> list[Text]:
    """So many lines of them as there is room."""
    away = [f"{it.name} does not run at {it.address}" for it in now.stores if it.health != "serving"]
    lines: list[Text] = []
    console = Console(width=width)
    for problem in [*away, *status.problems(now.report)]:
        lines += Text(problem, "red").wrap(console, width)
    if len(lines) > room:
        lines = [*lines[: max(0, room - 1)], _line("… `tandem status` says all", "red")]
    return lines[: max(0, room)]


def _line(text: str, style: str = "") -> Text:
    """One that is cut where there is no room for it. A text has no markup: an error may hold brackets."""
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def _table(*columns: str) -> Table:
    return Table(*columns, box=None, pad_edge=False)
