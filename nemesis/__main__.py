"""`python -m nemesis`: faults for an hour, or for as long as is said; `--quick` for a minute or two."""

import argparse
import json
import random
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nemesis.checker import by_guarantee
from nemesis.episode import Episode, run_episode
from nemesis.failover import LOST, Failover, run_failover
from nemesis.faults import KINDS, Kind
from tandem.testing import ports

_EPISODE_FAULTS = 9
"""Of one cluster: a replay of its history stays short, and what was found has one of them as its reason."""
_HOLD_SECONDS, _QUICK_HOLD_SECONDS = 6.0, 1.5
_QUICK_SETTINGS = {
    "PROJECTOR": {"FOLLOW__HUNG_SECONDS": "3", "FOLLOW__RELEASE_SECONDS": "1", "FOLLOW__RETRY_SECONDS": "1"},
    "COMMAND": {"EXECUTOR__RETRY_SECONDS": "1"},
}
_QUICK_KINDS = (
    "a projector is stopped for long (SIGSTOP)",
    "a command server is killed",
    "between clients and a server: cut off",
    "a cache node comes back with old content",
    "a database is killed",
    "between a server and the read database: silent",
    "the clock of a command server steps",
)
_PORTS = range(13_000, 15_000)
"""None of those that tests choose from, which may run at the same time."""
_SHOWN = 10
"""Violations of each guarantee that are printed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 1 where a guarantee was broken, or something was not back in time."""
    parser = argparse.ArgumentParser(prog="make faults", description="Breaks things, and proves that nothing broke.")
    parser.add_argument("--minutes", type=float, default=60.0, help="for how long to go on (60); ends what it began")
    parser.add_argument("--seed", type=int, help="the first cluster's; a cluster that failed prints its own")
    parser.add_argument("--clusters", type=int, help="how many, one after the other, instead of a time")
    parser.add_argument("--only", default="", help="a part of the names of the faults to try, such as 'disk'")
    parser.add_argument("--quick", action="store_true", help="one cluster and few faults, with short time-outs")
    parser.add_argument("--json", type=Path, help="a file for the result, for python -m tools.faults")
    chosen = parser.parse_args(arguments)
    seed = chosen.seed if chosen.seed is not None else (1 if chosen.quick else random.SystemRandom().randrange(10**6))
    ports.QUIET_PORTS = _PORTS
    began = time.monotonic()

    def say(text: str) -> None:
        sys.stdout.write(f"{time.monotonic() - began:7.1f} s  {text}\n")
        sys.stdout.flush()

    episodes: list[Episode] = []
    clusters = 1 if chosen.quick else chosen.clusters
    while clusters is None or len(episodes) < clusters:
        say(f"a new cluster, --seed {seed}{' --quick' if chosen.quick else ' --clusters 1'}")
        kinds = _quick_kinds() if chosen.quick else _kinds_of(seed, chosen.only)
        hold, settings = (_QUICK_HOLD_SECONDS, _QUICK_SETTINGS) if chosen.quick else (_HOLD_SECONDS, {})
        episodes.append(run_episode(seed, kinds, hold=hold, settings=settings, say=say))
        for guarantee, found in by_guarantee(episodes[-1].violations).items():
            for violation in found[:_SHOWN]:
                say(str(violation))
            say(f"{guarantee} was broken {len(found)} times, --seed {seed}")
        seed += 1
        if clusters is None and time.monotonic() - began > chosen.minutes * 60:
            break
    failover = None if chosen.quick else run_failover(say)
    result = summary(episodes, failover, minutes=round((time.monotonic() - began) / 60))
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(result, indent=1) + "\n")
    for violation in failover.violations if failover is not None else ():
        say(str(violation))
    late = [it for episode in episodes for it in episode.recoveries if it.is_late]
    for it in late if not chosen.quick else ():
        say(f"not back within {it.bound:g} s: {it}")
    say(f"{result['faults']} faults, {result['acknowledged']} writes acknowledged, {result['violations']} violations")
    return 1 if result["violations"] or (late and not chosen.quick) else 0


def _quick_kinds() -> list[Kind]:
    by_name = {it.name: it for it in KINDS}
    return [by_name[it] for it in _QUICK_KINDS]


def _kinds_of(seed: int, only: str) -> list[Kind]:
    """Clusters with seeds in a row have every kind among them, each as often as any other.

    only: what the names of the kinds hold.
    """
    wanted = [it for it in KINDS if only in it.name]
    parts = -(-len(wanted) // _EPISODE_FAULTS)
    if not parts:
        sys.exit(f"no fault is called {only!r}; there are: {'; '.join(it.name for it in KINDS)}")
    shuffled = random.Random(seed // parts).sample(wanted, len(wanted))
    return shuffled[seed % parts :: parts]


def summary(episodes: Iterable[Episode], failover: Failover | None, *, minutes: int) -> dict[str, Any]:
    """What tools.faults writes into docs/reliability.md."""
    listed = list(episodes)
    violations = sum(len(it.violations) for it in listed)
    if failover is not None:
        violations += len(failover.violations)
    recoveries = [it for episode in listed for it in episode.recoveries]
    return {
        "minutes": minutes,
        "clusters": len(listed),
        "faults": len(recoveries),
        "calls": sum(it.calls for it in listed),
        "acknowledged": sum(it.acknowledged for it in listed),
        "violations": violations,
        "failover": None if failover is None else {"lost": LOST, "back": round(failover.back, 1)},
        "kinds": [
            {
                "name": kind.name,
                "runs": len(runs),
                "bound": kind.bound,
                **{
                    what: round(max(getattr(it, what) for it in runs), 1) if runs else None
                    for what in ("write", "read", "serving")
                },
            }
            for kind in KINDS
            for runs in [[it for it in recoveries if it.kind == kind.name]]
        ],
    }


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped before its end: nothing is proved")
