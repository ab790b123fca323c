"""Writes the table of faults into docs/reliability.md: `python -m tools.faults`, from docs/faults.json.

`make faults` writes that file: its last run.
"""

import json
from pathlib import Path
from typing import Any

_DOCS = Path(__file__).parents[1] / "docs"
PAGE, RESULT = _DOCS / "reliability.md", _DOCS / "faults.json"
_BEGIN = "<!-- Written by `make faults`, from docs/faults.json. -->\n"
_END = "<!-- The end of what `make faults` writes. -->\n"


def render(result: dict[str, Any]) -> str:
    """The section, without its heading."""
    tried = [it for it in result["kinds"] if it["runs"]]
    lines = [
        f"The last `make faults`: {result['minutes']} minutes, {result['clusters']} clusters,"
        f" {result['faults']:,} faults, {result['calls']:,} calls, {result['acknowledged']:,} acknowledged writes."
        f" {_lost(result['violations'])}",
        "",
        "| Fault | Runs | Bound | Writes | Reads | SERVING |",
        "|---|---|---|---|---|---|",
        *(
            f"| {it['name'][0].upper()}{it['name'][1:]} | {it['runs']} | {it['bound']:g} s |"
            f" {it['write']:.1f} s | {it['read']:.1f} s | {it['serving']:.1f} s |"
            for it in tried
        ),
    ]
    if result["failover"]:
        lines += [
            "",
            f"Then a standby was promoted that lacked {result['failover']['lost']} acknowledged writes"
            " (Histories, above): reads that needed one of them were refused, and nothing was mixed from two histories."
            " After `begin-epoch`, which a person runs, every view was right within"
            f" {result['failover']['back']:.1f} s.",
        ]
    skipped = [it["name"] for it in result["kinds"] if not it["runs"]]
    if skipped:
        lines += ["", f"Not tried in that run: {'; '.join(skipped)}."]
    return "".join(f"{line}\n" for line in lines)


def _lost(violations: int) -> str:
    if violations:
        return f"**{violations} times a guarantee was broken.**"
    return "Nothing was lost, done twice, shown too early or too late: no guarantee was broken."


def with_section(page: str, section: str) -> str:
    """The page with the section in its place."""
    before, rest = page.split(_BEGIN)
    _, after = rest.split(_END)
    return f"{before}{_BEGIN}{section}{_END}{after}"


if __name__ == "__main__":
    text = with_section(PAGE.read_text(encoding="utf-8"), render(json.loads(RESULT.read_text(encoding="utf-8"))))
    PAGE.write_text(text, encoding="utf-8")
