"""How `tandem` speaks: `--json`, what it says on standard error, and its exit codes."""

import json
import os
import sys
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from typer.core import TyperGroup

FAILED = 1
"""Something is not well, or could not be done."""
WRONG_USAGE = 2
"""Options, arguments or settings are wrong; nothing was done."""
NOT_IN_TIME = 3
"""It was asked for and stays so, and was not done within `--wait`."""

EXIT_CODES = (
    f"Exit codes: 0 done, all well; {FAILED} something is not well, or could not be done; {WRONG_USAGE} wrong options,"
    f" arguments or settings, and nothing was done; {NOT_IN_TIME} asked for, and not done in time."
)

Json = Annotated[
    bool, typer.Option("--json", help="Print JSON, for programs; errors too, as a line each on standard error.")
]

# More than any table takes; none of them fills it.
_UNLIMITED = 100_000

_AS_JSON: ContextVar[bool] = ContextVar("as_json", default=False)


def complain(problem: str) -> None:
    """Says on standard error what is wrong: in words, or with `--json` as a line {"error": …}."""
    typer.echo(json.dumps({"error": problem}) if _AS_JSON.get() else f"tandem: {problem}", err=True)


def report(progress: str) -> None:
    """Says on standard error how it goes: in words, or with `--json` as a line {"progress": …}."""
    typer.echo(json.dumps({"progress": progress}) if _AS_JSON.get() else progress, err=True)


def fail(problem: str, code: int = FAILED) -> NoReturn:
    """Says what is wrong, and ends the command with an exit code."""
    complain(problem)
    raise typer.Exit(code)


def new_console(*, stderr: bool = False, least_width: int = 0) -> Console:
    """For tables. Nothing is cut where a file or a program takes them, unless COLUMNS says how much room there is.

    least_width: in characters, also on a narrower terminal, which breaks the lines.
    """
    console = Console(stderr=stderr)
    if not console.file.isatty() and "COLUMNS" not in os.environ:
        console.width = _UNLIMITED
    elif console.width < least_width:
        # Not set otherwise: a width that is set does not follow the terminal's any more.
        console.width = least_width
    return console


def print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2))


class Commands(TyperGroup):
    """The whole command. With `--json` wrong options and arguments are said as JSON too."""

    def main(self, args: Sequence[str] | None = None, *others: Any, **options: Any) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        options_alone = words[: words.index("--")] if "--" in words else words
        as_json = "--json" in options_alone
        token = _AS_JSON.set(as_json)
        try:
            return self._main_as_json(words, options) if as_json else super().main(args, *others, **options)
        finally:
            _AS_JSON.reset(token)

    def _main_as_json(self, words: list[str], options: dict[str, Any]) -> NoReturn:
        try:
            code = super().main(words, **options | {"standalone_mode": False})
        except typer.TyperException as error:
            # BadParameter and its like know more than their first argument.
            complain(error.format_message() if hasattr(error, "format_message") else str(error))
            code = getattr(error, "exit_code", WRONG_USAGE)
        sys.exit(code if isinstance(code, int) else 0)
