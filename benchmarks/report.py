"""The results as a table, as JSON, and as a picture of throughput against latency."""

import json
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.measure import Bar, Result, Sample, Spread, p50, p99, rate

RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True)
class Took:
    """Seconds. start_up: until the first turn began."""

    all: float
    start_up: float

    @classmethod
    def of(cls, results: Sequence[Result], *, began: float, ended: float) -> "Took":
        first = min((turn.began for result in results for turn in result.turns if turn.began), default=ended)
        return cls(ended - began, first - began)

    def __str__(self) -> str:
        return f"{self.all:.0f} s, of which {self.start_up:.0f} s to start ({self.start_up / self.all:.0%})"


def table(results: Sequence[Result], took: Took) -> str:
    """What each scenario found, then all bars in one place, then how steady the machine was, and how long it took."""
    parts = [*(_lines(result) for result in results), _bars(results), [*_calibration(results), f"It took {took}"]]
    return "\n".join(line for part in parts for line in ("", *part))


def bars_table(results: Sequence[Result]) -> str:
    """All bars as README.md shows them, in Markdown."""
    rows = [
        f"| {result.name} | {bar.text} | {_limit(bar)} | {_spread(bar.measured)} | {'holds' if bar.holds else 'no'} |"
        for result in results
        for bar in result.bars
    ]
    missing = [f"| {result.name} | {it} | | | |" for result in results for it in result.not_measured]
    return "\n".join(["| | | bar | measured (range) | |", "|---|---|---|---|---|", *rows, *missing]) + "\n"


def write_json(path: Path, results: Sequence[Result], took: Took, *, quick: bool) -> None:
    machine = {
        "processors": os.cpu_count(),
        "memory": psutil.virtual_memory().total,
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    content: dict[str, Any] = {
        "quick": quick,
        "machine": machine,
        "seconds": asdict(took),
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
        ours = next((name for name in result.samples if name.startswith("Tandem")), next(iter(result.samples)))
        for contender, samples in result.samples.items():
            speed = result.spread(contender, rate)
            yield (
                f"  {contender:26}{speed.median:>9,.0f}{f'({speed.low:,.0f}..{speed.high:,.0f})':>19}"
                f"{result.spread(ours, rate).median / speed.median:>7.2f}x"
                f"{_milliseconds(result.spread(contender, p50))}{_milliseconds(result.spread(contender, p99))}"
                f"  {_processor(samples)}"
            )
    for figure in result.figures:
        yield f"  {figure.name:55}{_spread(figure.spread)} {figure.unit}"
    for bar in result.bars:
        yield f"  {_verdict(bar):15}{bar.text}: {_spread(bar.measured)}, asked for: {_limit(bar)}"
    for missing in result.not_measured:
        yield f"  {'NOT MEASURED':15}{missing}"
    if any(turn.calibration for turn in result.turns):
        yield f"  calibration: {_steadiness(result.turns)}"
        for contender, samples in result.samples.items():
            if noisy := [sample.moved for sample in samples if sample.is_noisy]:
                yield f"  NOISY: the machine's speed moved by {max(noisy):.0%} in {len(noisy)} turns of {contender}"


def _bars(results: Sequence[Result]) -> Iterator[str]:
    bars = [bar for result in results for bar in result.bars]
    missing = sum(len(result.not_measured) for result in results)
    yield f"Bars: {sum(bar.holds for bar in bars)} of {len(bars)} hold, {missing} are not measured"
    for result in results:
        yield from (f"  DOES NOT HOLD  {result.name}: {bar.text}" for bar in result.bars if not bar.holds)
        yield from (f"  NOT MEASURED   {result.name}: {it}" for it in result.not_measured)


def _calibration(results: Sequence[Result]) -> Iterator[str]:
    turns = [turn for result in results for turn in result.turns if turn.calibration]
    if not turns:
        return
    took = Spread.of([1e3 * it for turn in turns for it in turn.calibration])
    yield f"How noisy the machine was: {_steadiness(turns)}"
    yield f"  the fixed piece of work took {_spread(took)} ms"


def _steadiness(turns: Sequence[Sample]) -> str:
    moved = Spread.of([turn.moved for turn in turns])
    again, noisy = sum(len(turn.rejected) for turn in turns), sum(turn.is_noisy for turn in turns)
    return (
        f"moved by {moved.median:.0%} in a turn, {moved.high:.0%} at most;"
        f" of {len(turns)} turns {again} were measured again, and {noisy} stayed noisy"
    )


def _limit(bar: Bar) -> str:
    return f"{'≥' if bar.at_least else '≤'} {bar.limit:g}"


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
