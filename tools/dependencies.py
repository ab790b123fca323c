"""What a distribution needs to run, of what is installed here: for the bill of materials, licences and tests."""

from collections.abc import Iterable, Sequence
from importlib.metadata import Distribution, distribution
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


class Needed(NamedTuple):
    """A distribution that is needed, and the names of those that it needs itself."""

    distribution: Distribution
    needs: frozenset[str]


def needed(requires: Iterable[str], extras: Sequence[str] = ()) -> dict[str, Needed]:
    """By canonical name, whatever is needed on this machine, however far away.

    requires: as `Requires-Dist` of METADATA has them. Raises PackageNotFoundError for one that is not installed.
    """
    found: dict[str, Needed] = {}
    taken: dict[str, set[str]] = {}
    waiting = _that_apply(requires, extras)
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in taken and requirement.extras <= taken[name]:
            continue
        taken.setdefault(name, set()).update(requirement.extras)
        its = distribution(name)
        further = _that_apply(its.requires or (), sorted(taken[name]))
        found[name] = Needed(its, frozenset(canonicalize_name(it.name) for it in further))
        waiting += further
    return found


def _that_apply(requires: Iterable[str], extras: Sequence[str]) -> list[Requirement]:
    """Those without a marker, and those whose marker holds here for one of the extras or for none."""
    parsed = map(Requirement, requires)
    return [
        it for it in parsed if it.marker is None or any(it.marker.evaluate({"extra": extra}) for extra in ("", *extras))
    ]
