"""What a benchmark finds: samples of contenders that took turns, medians and ranges of them, and bars.

One machine's numbers drift, because others use it, or because it gets warm. So contenders take turns (A B A B), a ratio
is that of two neighbours, and what is reported of the ratios is their median, with the lowest and the highest.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sample:
    """One contender, measured once.

    rate: operations a second. p50, p99: seconds an operation; 0 where operations have no latency of their own. cpu:
    processor seconds an operation, by who spent them: "server", "stores", "load".
    """

    rate: float
    p50: float
    p99: float
    cpu: Mapping[str, float] = field(default_factory=dict)

    @property
    def shares(self) -> dict[str, float]:
        """Which part of the processor time was whose."""
        total = sum(self.cpu.values())
        return {who: seconds / total for who, seconds in self.cpu.items()} if total else {}


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
    """

    name: str
    samples: Mapping[str, Sequence[Sample]] = field(default_factory=dict)
    figures: Sequence[Figure] = ()
    bars: Sequence[Bar] = ()

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
        }


def rate(sample: Sample) -> float:
    return sample.rate


def p50(sample: Sample) -> float:
    return sample.p50


def p99(sample: Sample) -> float:
    return sample.p99


def alternate(contenders: Mapping[str, Callable[[], Sample]], rounds: int) -> dict[str, list[Sample]]:
    """Measures all of them in turn, `rounds` times."""
    samples: dict[str, list[Sample]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, measure in contenders.items():
            samples[name].append(measure())
    return samples


def ratios(
    samples: Mapping[str, Sequence[Sample]], over: str, under: str, value: Callable[[Sample], float] = rate
) -> list[float]:
    """One contender's value over another's, in each round: `ratios(samples, "Tandem", "joins")`."""
    return [value(a) / value(b) for a, b in zip(samples[over], samples[under], strict=True)]


def at_least(text: str, values: Sequence[float], limit: float) -> Bar:
    return Bar(text, Spread.of(values), limit, at_least=True)


def at_most(text: str, values: Sequence[float], limit: float) -> Bar:
    return Bar(text, Spread.of(values), limit, at_least=False)
