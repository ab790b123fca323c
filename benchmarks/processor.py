"""What processes spend: processor time."""

from collections.abc import Iterable

import psutil


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """What they and their children have used, those that have ended too."""
    return sum(map(_of_family, processes))


def _of_family(process: psutil.Process) -> float:
    while True:
        # All four fields: user and system time of its own, and of the children that it has waited for.
        try:
            return sum(sum(it.cpu_times()[:4]) for it in (process, *process.children(recursive=True)))
        except psutil.NoSuchProcess as error:
            if error.pid == process.pid:
                raise
            # A child ended meanwhile, as PostgreSQL's often do: its time is its parent's now.
