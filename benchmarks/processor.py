"""What processes spend: processor time."""

from collections.abc import Iterable

import psutil


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """What they and their children have used, those that have ended too."""
    family = [it for process in processes for it in (process, *process.children(recursive=True))]
    # All four fields: user and system time of its own, and of the children that it has waited for.
    return sum(sum(it.cpu_times()[:4]) for it in family)
