"""What a benchmark finds: samples of contenders that took turns, medians and ranges of them, and bars.

One machine's numbers drift, because others use it, or because it gets warm. So contenders take turns (A B A B), a ratio
is that of two neighbours, and what is reported of the ratios is their median, with the lowest and the highest. Before
and after each turn a fixed piece of work is timed: a turn in which the machine's speed changed is measured again.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

from benchmarks import calibration

MOST_MOVED = 0.2
"""By which part the calibration may differ before and after a turn."""
MOST_REPEATS = 2
"""How often a turn is measured again, before it counts as noisy."""
REPEATED_SHARE = 0.25
"""Of a scenario's turns, how many may be measured again."""


@dataclass(frozen=True)
class Sample:
    """One contender, measured once.

    rate: operations a second. p50, p99: seconds an operation; 0 where operations have no latency of their own. cpu:
    processor seconds an operation, by who spent them: "server", "stores", "load".

    began: when the turn did, in seconds since the epoch; 0 for what was no turn.
    calibration: seconds that the fixed piece of work took before and after the turn; empty where it was not timed.
    rejected: by which part they differed in those turns that were measured before this one, and did not count.
    """

    rate: float
    p50: float
    p99: float
    cpu: Mapping[str, float] = field(default_factory=dict)
    began: float = 0.0
    calibration: tuple[float, ...] = ()
    rejected: tuple[float, ...] = ()

    @property
    def shares(self) -> dict[str, float]:
        """Which part of the processor time was whose."""
        total = sum(self.cpu.values())
        return {who: seconds / total for who, seconds in self.cpu.items()} if total else {}

    @property
    def moved(self) -> float:
        """By which part the machine's speed differed before and after the turn."""
        return max(self.calibration) / min(self.calibration) - 1 if self.calibration else 0.0

    @property
    def is_noisy(self) -> bool:
        """Whether it counts only because it was measured often enough."""
        return self.moved > MOST_MOVED


@dataclass(frozen=True)
class Spread:
    """The median of some values, the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Bar:
    """What is asked of a measured value, and whether it holds: the median decides."""

    text: str
    measured: Spread
    limit: float
    at_least: bool

    @property
    def holds(self) -> bool:
        return self.measured.median >= self.limit if self.at_least else self.measured.median <= self.limit


@dataclass(frozen=True)
class Figure:
    """What is not a rate or a latency of calls: memory, a start, a rebuild. unit: as it is printed, such as "MiB"."""

    name: str
    spread: Spread
    unit: str


@dataclass(frozen=True)
class Result:
    """What a scenario found.

    samples: of each contender, in the order in which they took their turns; the n-th of all belong to round n.
    not_measured: what should have been, each with the reason.
    """

    name: str
    samples: Mapping[str, Sequence[Sample]] = field(default_factory=dict)
    figures: Sequence[Figure] = ()
    bars: Sequence[Bar] = ()
    not_measured: Sequence[str] = ()

    @property
    def turns(self) -> list[Sample]:
        """Of all contenders."""
        return [sample for samples in self.samples.values() for sample in samples]

    def spread(self, contender: str, value: Callable[[Sample], float]) -> Spread:
        """Of one contender's samples: `result.spread("Tandem", rate)`."""
        return Spread.of([value(sample) for sample in self.samples[contender]])

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "contenders": {
                contender: {
                    "rate": asdict(self.spread(contender, rate)),
                    "p50": asdict(self.spread(contender, p50)),
                    "p99": asdict(self.spread(contender, p99)),
                    "samples": [asdict(sample) for sample in samples],
                }
                for contender, samples in self.samples.items()
            },
            "figures": [asdict(figure) for figure in self.figures],
            "bars": [{**asdict(bar), "holds": bar.holds} for bar in self.bars],
            "not_measured": list(self.not_measured),
        }


def rate(sample: Sample) -> float:
    return sample.rate


def p50(sample: Sample) -> float:
    return sample.p50


def p99(sample: Sample) -> float:
    return sample.p99


S = TypeVar("S", bound=Sample)


def alternate(
    contenders: Mapping[str, Callable[[], S]],
    rounds: int,
    *,
    seldom: Mapping[str, Callable[[], S]] | None = None,
    seldom_rounds: int = 1,
    calibrate: Callable[[], float] = calibration.seconds,
    say: Callable[[str], None] | None = None,
) -> dict[str, list[S]]:
    """Measures all of them in turn, `rounds` times; those that are to be measured seldom in the first rounds alone.

    A turn is measured again, MOST_REPEATS times at most, where the machine's speed moved too much meanwhile; in all as
    many turns as REPEATED_SHARE of them, so that a machine that is never quiet is no reason to go on for ever.

    say: is told of each turn.
    """
    samples: dict[str, list[S]] = {name: [] for name in (*contenders, *(seldom or {}))}
    turns = len(contenders) * rounds + len(seldom or {}) * min(seldom_rounds, rounds)
    repeats = math.ceil(REPEATED_SHARE * turns)
    before = calibrate()
    for number in range(rounds):
        for name, measure in {**contenders, **(seldom or {} if number < seldom_rounds else {})}.items():
            sample = _turn(measure, before, calibrate, min(MOST_REPEATS, repeats))
            repeats -= len(sample.rejected)
            samples[name].append(sample)
            if say:
                say(f"{name}: {sample.rate:,.4g}/s{' (noisy)' if sample.is_noisy else ''}")
            before = sample.calibration[1]
    return samples


def _turn(measure: Callable[[], S], before: float, calibrate: Callable[[], float], most_repeats: int) -> S:
    rejected: list[float] = []
    while True:
        began = time.time()
        sample = measure()
        after = calibrate()
        sample = replace(sample, began=began, calibration=(before, after), rejected=tuple(rejected))
        if not sample.is_noisy or len(rejected) == most_repeats:
            return sample
        rejected.append(sample.moved)
        before = after


def ratios(
    samples: Mapping[str, Sequence[Sample]], over: str, under: str, value: Callable[[Sample], float] = rate
) -> list[float]:
    """One contender's value over another's, in each round that both have: `ratios(samples, "Tandem", "joins")`."""
    return [value(a) / value(b) for a, b in zip(samples[over], samples[under], strict=False)]


def at_least(text: str, values: Sequence[float], limit: float) -> Bar:
    return Bar(text, Spread.of(values), limit, at_least=True)


def at_most(text: str, values: Sequence[float], limit: float) -> Bar:
    return Bar(text, Spread.of(values), limit, at_least=False)
