"""The results as a table, as JSON, and as a picture of throughput against latency."""

import json
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Bar, Result, Sample, Spread, p50, p99, rate


def table(results: Sequence[Result]) -> str:
    return "\n".join(line for result in results for line in ("", *_lines(result)))


def write_json(path: Path, results: Sequence[Result], *, quick: bool) -> None:
    machine = {"processors": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    content: dict[str, Any] = {
        "quick": quick,
        "machine": machine,
        "results": [result.to_json() for result in results],
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def draw(path: Path, results: Sequence[Result]) -> None:
    """A point for each contender of each scenario, with the ranges: rate to the right, latency upwards."""
    # Here, because it takes a second, and most of a test of this module does without it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    shown = [result for result in results if any(sample.p50 for it in result.samples.values() for sample in it)]
    columns = min(3, len(shown)) or 1
    rows = -(-len(shown) // columns) or 1
    figure = Figure(figsize=(6 * columns, 4.5 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for number, result in enumerate(shown, start=1):
        axes = figure.add_subplot(rows, columns, number)
        for colour, (contender, samples) in enumerate(result.samples.items()):
            for value, marker, label in ((p50, "o", f"{contender}, p50"), (p99, "^", "p99")):
                x, y = result.spread(contender, rate), result.spread(contender, value)
                axes.errorbar(
                    [x.median],
                    [1e3 * y.median],
                    xerr=_error(x),
                    yerr=[[1e3 * it] for [it] in _error(y)],
                    marker=marker,
                    color=f"C{colour}",
                    capsize=3,
                    label=f"{label} ({len(samples)} runs)" if value is p50 else None,
                )
        axes.set(title=result.name, xlabel="calls a second", ylabel="ms (● p50, ▲ p99)", xscale="log", yscale="log")
        axes.grid(visible=True, which="both", alpha=0.2)
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def _error(spread: Spread) -> list[list[float]]:
    return [[spread.median - spread.low], [spread.high - spread.median]]


def _lines(result: Result) -> Iterator[str]:
    yield result.name
    if result.samples:
        yield f"  {'':26}{'rate/s':>9}{'(range)':>19}{'ratio':>8}{'p50 ms':>9}{'p99 ms':>9}  processor ms a call"
        first = next(iter(result.samples))
        for contender, samples in result.samples.items():
            speed = result.spread(contender, rate)
            yield (
                f"  {contender:26}{speed.median:>9,.0f}{f'({speed.low:,.0f}..{speed.high:,.0f})':>19}"
                f"{result.spread(first, rate).median / speed.median:>7.2f}x"
                f"{_milliseconds(result.spread(contender, p50))}{_milliseconds(result.spread(contender, p99))}"
                f"  {_processor(samples)}"
            )
    for figure in result.figures:
        yield f"  {figure.name:40}{_spread(figure.spread)} {figure.unit}"
    for bar in result.bars:
        yield f"  {_verdict(bar):15}{bar.text}: {_spread(bar.measured)}"


def _verdict(bar: Bar) -> str:
    return "holds" if bar.holds else "DOES NOT HOLD"


def _spread(spread: Spread) -> str:
    return f"{spread.median:,.3g} ({spread.low:,.3g}..{spread.high:,.3g})"


def _milliseconds(spread: Spread) -> str:
    return f"{1e3 * spread.median:>9.2f}" if spread.median else f"{'':>9}"


def _processor(samples: Sequence[Sample]) -> str:
    middle = sorted(samples, key=rate)[len(samples) // 2]
    total = 1e3 * sum(middle.cpu.values())
    if not total:
        return ""
    return f"{total:.3f}: " + ", ".join(f"{who} {share:.0%}" for who, share in middle.shares.items())
