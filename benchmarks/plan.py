"""How much of everything `make bench` and `make bench-quick` measure."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """How much.

    orders: that the world begins with. rounds: turns that each contender takes, and side_rounds: where no bar of
    README.md's first table is about it. seconds: of measuring in a turn, and warm_up: before it. in_flight: calls under
    way at once. grown: orders at the larger size of the growth scenario, and factor: how many times the smaller ones.
    """

    orders: int
    rounds: int
    seconds: float
    warm_up: float
    grown: int
    say: Callable[[str], None]
    """Prints a line of progress."""
    side_rounds: int = 1
    in_flight: int = 64
    factor: int = 20


def progress() -> Callable[[str], None]:
    """Prints lines with the seconds that have passed since now, on standard error."""
    began = time.monotonic()

    def say(line: str) -> None:
        sys.stderr.write(f"{time.monotonic() - began:6.0f} s  {line}\n")

    return say


def full(say: Callable[[str], None]) -> Plan:
    return Plan(orders=30_000, rounds=4, side_rounds=2, seconds=1.0, warm_up=0.4, grown=200_000, say=say)


def quick(say: Callable[[str], None]) -> Plan:
    return Plan(orders=5_000, rounds=1, side_rounds=1, seconds=0.5, warm_up=0.3, grown=50_000, say=say)
