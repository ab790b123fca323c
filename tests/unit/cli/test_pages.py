"""What the pages tell people to run is there: each command is given to the parser that would run it."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import typer

from shop.cli import app

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUNBOOK = ROOT / "docs" / "runbook.md"
SERVICES = ("command_server", "projector", "query_server")

_FENCED = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`((?:tandem|python -m) [^`…][^`]*)`")
_PROMPT = re.compile(r"^\s*(?:\$ )?(?:\.venv/bin/)?(?=tandem |python -m )")


def commands(page: str) -> list[tuple[str, bool]]:
    """Each command, and whether it is shown whole: within a sentence its arguments may be missing."""
    found = [(it, False) for it in _INLINE.findall(_FENCED.sub("", page).replace("\n", " "))]
    for block in _FENCED.findall(page):
        lines = (line for line in block.splitlines() if _PROMPT.match(line))
        # What it does may be said behind it.
        found += [(re.split(r" {2,}", _PROMPT.sub("", line))[0], True) for line in lines]
    return found


def problem(command: str, *, whole: bool) -> str:
    """Why it cannot be run; empty when it can."""
    words = shlex.split(command.replace("[", "").replace("]", "").replace(" …", " x"), comments=True)
    if words[0] == "python":
        return _problem_of_module(words[2], words[3:])
    return _problem_of_tandem(words, whole=whole)


def _problem_of_module(module: str, words: list[str]) -> str:
    if module not in SERVICES:
        return ""
    actions = {"serve", *getattr(import_module(f"{module}.program"), "ACTIONS", {})}
    unknown = [it for it in words[:1] if it not in actions and not it.startswith("-")]
    return f"no action {unknown[0]}" if unknown else ""


def _problem_of_tandem(words: list[str], *, whole: bool) -> str:
    command, rest, parent = typer.main.get_command(app), words[1:], None
    while True:
        try:
            context = command.make_context(words[0], list(rest), parent=parent)
        except Exception as error:
            said = getattr(error, "message", "") or f"{type(error).__name__}: {error}"
            # A page names a group, the beginning of a command, and files of the reader's.
            allowed = "does not exist" in said or (not whole and ("issing" in type(error).__name__ or not rest))
            return "" if allowed else said
        names = getattr(command, "commands", None)
        if names is None:
            return ""
        [name, *rest] = [*context._protected_args, *context.args]
        if name not in names:
            return f"no command {name}"
        parent, command = context, names[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda it: it.name)
def test_each_command_of_a_page_is_one_that_can_be_run(page: Path) -> None:
    found = {command: problem(command, whole=whole) for command, whole in commands(page.read_text())}
    assert {command: it for command, it in found.items() if it} == {}


def test_the_test_finds_what_cannot_be_run() -> None:
    assert "no command repair" in problem("tandem repair", whole=False)
    assert "No such option" in problem("tandem status --loud", whole=False)
    assert problem("tandem parked redrive", whole=False) == ""
    assert problem("tandem parked redrive", whole=True) != ""
    assert "no action reset" in problem("python -m projector reset", whole=True)
    assert len(commands(RUNBOOK.read_text())) > 60


def test_of_each_alert_the_runbook_says_what_it_means_where_to_look_what_to_do_and_what_shows_it() -> None:
    sections = RUNBOOK.read_text().partition("\n## Alerts\n")[2].split("\n### ")[1:]
    for section in sections:
        name, _, text = section.partition("\n")
        assert re.findall(r"^- \*\*([\w ]+):\*\*", text, re.MULTILINE) == ["Means", "Look", "Do", "Shown by"], name
        shown_by = text.partition("- **Shown by:**")[2]
        files = re.findall(r"`(tests/[^`]+)`", shown_by)
        assert files or "the rule's own test alone" in shown_by, name
        assert [it for it in files if not (ROOT / it).exists()] == [], name
