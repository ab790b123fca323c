"""The views of a domain, and how each is in this program.

A view's life in this program, as `ViewState` says it, and who changes it:

    STANDBY ──────▶ RUNNING    Session._take makes the view ours: nobody owns it, or its owner is gone. The write
       │                       database may be away: then the view says what it has. One that could not go on with its
       │                       owner before is FAILED, and tried again at once.
       │ ◀──────────── any     Session._release: we cannot read the feed, and another projector can.
       │            RUNNING    The view follows the feed, together with all views that are at the same position.
       │            RUNNING ──▶ FAILED    Session._fail: an event or its rows cannot be taken in, or the feed does not
       │                                  go on from where the view is.
       │                        FAILED    It is tried again alone, every `retry_seconds`.
       │            RUNNING ──▶ WAITING   Session._postpone: a lock or a time-out keeps its rows from being read or
       │                                  written. The other views go on.
       │                        WAITING   It is tried again alone, after a pause that grows up to `retry_seconds`.
       │            RUNNING ◀── FAILED, WAITING    Session._write: it takes a batch in; Session._recover: the feed goes
       │                                           on from there, and has no more yet.
       └──────────▶ HELD       Session._take makes the view ours, and its rows are of another epoch than the feed's.
                    RUNNING ◀── HELD      Session._bring_over: the feed had that epoch before. The view goes on in the
                                          one that it has now, or is made anew.
                               HELD       It is of a feed from elsewhere. It stays ours, or the next round would take
                                          it again. An operator must rebuild the view.

The error of a view that is FAILED, or of a feed from elsewhere, stands in its row of `projection` and is announced.

When the session ends it owns nothing, and each view is on STANDBY again: Following._run.
"""

import uuid
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from sqlalchemy import Table

from tandem.feed.events import EventContract
from tandem.feed.verification import Difference
from tandem.projection.passed import Passed
from tandem.projection.projection import Projection
from tandem.read_store.tables import is_other, noun_of, served_of

# That are kept for operators; the log has all.
_FINDINGS = 100


class Phase(Enum):
    """Where a view is in its life: see this module's docstring."""

    STANDBY = auto()
    HELD = auto()
    RUNNING = auto()
    WAITING = auto()
    FAILED = auto()


@dataclass(frozen=True)
class ViewState:
    """A view as this program has it. position: its last known one. mark: of the event there. parked: how many of its
    keys are parked.

    epoch: of a HELD view, which is not the feed's. error: why it cannot go on; empty while it is on STANDBY or RUNNING,
    and while it is not known of a HELD one. problem: the same as a reason of errors; empty while it is WAITING, which
    passes. retry_at: when a view that is not RUNNING is tried again, on the clock of time.monotonic(). pause: before
    that, in seconds.
    """

    phase: Phase = Phase.STANDBY
    position: int = 0
    mark: int = 0
    generation: int = 0
    parked: int = 0
    epoch: uuid.UUID | None = None
    problem: str = ""
    error: str = ""
    retry_at: float = 0.0
    pause: float = 0.0

    @property
    def is_followed(self) -> bool:
        """Whether the view is ours and belongs to the feed that is there."""
        return self.phase in {Phase.RUNNING, Phase.WAITING, Phase.FAILED}


@dataclass
class Progress:
    """How far this program is. Other threads may read it: each state is replaced as a whole.

    head: the last position of the feed that was seen. passed: when the views that are ours were where.
    differences: how many the auditor has found, by view. compared_at: when it last had compared a whole view, on the
    clock of time.time(). findings: the last ones, each with when it was found, on the same clock.
    """

    states: dict[str, ViewState]
    head: int = 0
    passed: Passed = field(default_factory=Passed)
    differences: Counter[str] = field(default_factory=Counter)
    compared_at: dict[str, float] = field(default_factory=dict)
    findings: deque[tuple[float, Difference]] = field(default_factory=lambda: deque(maxlen=_FINDINGS))


def projections_of(package: str, views: Mapping[str, Table]) -> list[Projection]:
    """The projections of some views, by name: all that stand in the modules of a package that are called as a view is.

    A module may hold several. Raises ValueError for a view without a projection, and for a projection of another view.
    """
    found: dict[str, Projection] = {}
    for noun in map(noun_of, views.values()):
        if find_spec(f"{package}.{noun}") is not None:
            module = import_module(f"{package}.{noun}")
            found.update({it.view: it for it in vars(module).values() if isinstance(it, Projection)})
    if without := ", ".join(f"{package}/{noun_of(views[it])}.py" for it in views if it not in found):
        raise ValueError(f"there are views without a projection: write {without}")
    if others := ", ".join(found.keys() - views.keys()):
        raise ValueError(f"there are projections of what is no view: {others}")
    return [found[it] for it in views]


class Views:
    """The views of a domain, by name. contract: what its events are. cached: the views with entries in the cache."""

    def __init__(
        self, contract: EventContract[Any], projections: Iterable[Projection], *, cached: Collection[str]
    ) -> None:
        """Raises ValueError for rules of events that the domain does not have."""
        self.contract = contract
        self.kinds = frozenset(contract.kinds)
        self.projections = {it.view: it for it in projections}
        self.cached = frozenset(cached)
        for view, it in self.projections.items():
            unknown = {*it.rules, *it.parts, *it.beginning} - self.kinds
            if unknown:
                raise ValueError(f"{view} has rules for what is no kind of event: {', '.join(sorted(unknown))}")
        if not self.cached <= self.projections.keys():
            raise ValueError(f"cached, and no view: {', '.join(self.cached - self.projections.keys())}")

    def logging(self, views: Collection[str]) -> "Views":
        """The same, with a change log of these views too."""
        logged = [replace(it, logged=True) if it.view in views else it for it in self.projections.values()]
        return Views(self.contract, logged, cached=self.cached)

    def projection(self, view: str) -> Projection:
        """Of a view of this program, or of its other generation."""
        served = self.projections[served_of(view)]
        return served.other_generation() if is_other(view) else served
