"""Starts children again that die, and gives up on one that dies again and again."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tandem.cli.child import Child, StackError, ending

# A child that lived this long has not died of its start.
QUICK_SECONDS = 10.0
MAX_QUICK_DEATHS = 5
_FIRST_PAUSE_SECONDS = 0.5


@dataclass
class _Watch:
    started_at: float
    quick_deaths: int = 0
    restart_at: float | None = None


class Supervisor:
    """Watches children that were started already. `say` is told of deaths and restarts.

    clock: seconds that only grow.
    """

    def __init__(
        self, children: Sequence[Child], say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._say = say
        self._clock = clock
        self._watched = {child: _Watch(clock()) for child in children}

    def check(self) -> None:
        """Looks after each child once, without waiting. Raises StackError for a child that cannot be kept alive."""
        for child, watch in self._watched.items():
            if watch.restart_at is None:
                if child.exit_code() is not None:
                    self._take_note(child, watch, _obituary(child))
            elif self._clock() >= watch.restart_at:
                self._restart(child, watch)

    def _take_note(self, child: Child, watch: _Watch, problem: str) -> None:
        quick = self._clock() - watch.started_at < QUICK_SECONDS
        watch.quick_deaths = watch.quick_deaths + 1 if quick else 1
        if watch.quick_deaths >= MAX_QUICK_DEATHS:
            raise StackError(f"{problem}\n{child.name} died {MAX_QUICK_DEATHS} times in a row, giving up")
        pause = _FIRST_PAUSE_SECONDS * 2 ** (watch.quick_deaths - 1)
        watch.restart_at = self._clock() + pause
        self._say(f"{problem}\n{child.name} is started again in {pause:g} s")

    def _restart(self, child: Child, watch: _Watch) -> None:
        watch.restart_at = None
        watch.started_at = self._clock()
        try:
            child.launch()
        except StackError as error:
            self._take_note(child, watch, str(error))
        else:
            self._say(f"{child.name} was started again")


def _obituary(child: Child) -> str:
    said = child.last_words()
    code = child.stop()
    return f"{child.name} died ({ending(code)}); {said}"
