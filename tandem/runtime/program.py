"""What `python -m <service> [action]` does: reads the settings, and serves or does one thing."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy.exc import DBAPIError

from tandem.runtime.actions import Action, ActionRefused
from tandem.runtime.server import Application, run
from tandem.runtime.settings import ServiceSettings, SettingsError, load_settings
from tandem.runtime.telemetry import configure_logging, version
from tandem.runtime.tracing import TRACING


def main(
    name: str,
    settings_class: type[ServiceSettings],
    build: Callable[[Any], Application],
    actions: Mapping[str, Action],
    help_of_serve: str,
) -> int:
    """Returns the exit code: 2 for wrong settings, 1 for what failed. What went wrong is said on standard error."""
    helps = [f"serve (default): {help_of_serve}", *(f"{it}: {action.help}" for it, action in actions.items())]
    parser = argparse.ArgumentParser(prog=f"python -m {name}")
    parser.add_argument("action", nargs="?", default="serve", choices=("serve", *actions), help=". ".join(helps))
    parser.add_argument("words", nargs="*", help="for: " + ", ".join(_takers(actions) or ["no action"]))
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="serve beyond this machine without authentication, as SERVER__INSECURE says it: in a network that lets"
        " nobody in who may not read and write everything",
    )
    parser.add_argument("--json", action="store_true", help="print what was done as JSON, for programs")
    arguments = parser.parse_args()
    chosen = arguments.action
    try:
        words = [_of(actions.get(chosen), it) for it in arguments.words]
    except ValueError as error:
        parser.error(f"{chosen}: {error}")
    try:
        settings = load_settings(settings_class, **({"server": {"insecure": True}} if arguments.insecure else {}))
        configure_logging(settings.log.level, name)
        if chosen == "serve":
            TRACING.begin(settings.trace, name, version())
            try:
                return run(build(settings))
            finally:
                TRACING.end()
        done = actions[chosen].do(settings, *words)
        sys.stdout.write(f"{json.dumps(done.fields, indent=2) if arguments.json else done.text}\n")
    except SettingsError as error:
        sys.stderr.write(f"{name}: {error}\n")
        return 2
    except ActionRefused as error:
        sys.stderr.write(f"{name}: {error}\n")
        return 1
    except DBAPIError as error:
        sys.stderr.write(f"{name}: {chosen} failed: {error.orig}\n")
        return 1
    return 0


def _takers(actions: Mapping[str, Action]) -> list[str]:
    return [name for name, it in actions.items() if it.takes is not None]


def _of(action: Action | None, word: str) -> Any:
    """Raises ValueError."""
    if action is None or action.takes is None:
        raise ValueError(f"nothing is named behind it, and not {word}")
    return action.takes(word)
