"""A command server that kills itself, as `kill -9` does, at a step of its reactions; DIES names the step."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from command_server.app import build
from command_server.program import ACTIONS
from command_server.settings import Settings
from tandem.reactions import doing, following
from tandem.runtime.program import main

STEPS = {
    "before an event is taken in": (following, "insert_tasks", "before"),
    "after the commit of the event": (following.Follower, "look", "after"),
    "before a claim is committed": (doing, "claim", "after"),
    "before the command is given": (doing.Commands, "_give", "before"),
    "after the command was stored": (doing.Commands, "_give", "after"),
    "before it is noted that it was done": (doing, "settle", "after"),
    "after it was noted": (doing, "note_settled", "before"),
}
"""By what is said of it: a function that something real is given to, and when the process ends."""


def _is_real(function: str, arguments: tuple[Any, ...], found: Any) -> bool:
    """Whether there was anything to do: a look at a feed that has nothing new is no step."""
    if function == "look":
        return _has_tasks(arguments[0])
    return bool(found if function == "claim" else arguments[-1])


def _has_tasks(follower: following.Follower) -> bool:
    with follower._engine.connect() as connection:
        return bool(connection.exec_driver_sql("SELECT count(*) FROM tandem_write.reaction_task").scalar_one())


def die_at(step: str) -> None:
    owner, function, when = STEPS[step]
    original: Callable[..., Any] = getattr(owner, function)

    def dying(*arguments: Any, **named: Any) -> Any:
        found = None if when == "before" else original(*arguments, **named)
        if _is_real(function, arguments, found):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **named) if when == "before" else found

    setattr(owner, function, dying)


if __name__ == "__main__":
    die_at(os.environ.pop("DIES"))
    sys.exit(main("command_server", Settings, build, ACTIONS, "answer calls until it dies"))
