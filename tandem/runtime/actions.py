"""What a service's program does other than serve: one thing, which ends."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class ActionRefused(Exception):
    """The action cannot be done now; the message says why."""


class Done(NamedTuple):
    """What an action has done or found. text: for people. fields: the same for programs."""

    text: str
    fields: Mapping[str, Any]


class Action(NamedTuple):
    """help: what it does, for `--help`. do: gets the settings, and what is named behind the action.
    takes: makes each of these of its word, such as Path or int; None where there are none.
    """

    help: str
    do: Callable[..., Done]
    takes: Callable[[str], Any] | None = None
