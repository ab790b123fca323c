"""Looks for known vulnerabilities of all that requirements.lock pins: `python -m tools.audit [--strict]`.

One request to a service with OSV's API, which has the advisories of Python's packages; then one for each finding. It
fails for a finding that [tool.tandem.audit] in pyproject.toml does not accept with a reason. Where the service cannot
be reached it says so, and fails with --strict alone: a build must not depend on another's server.
"""

import argparse
import http.client
import json
import re
import sys
import tomllib
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote

ROOT = Path(__file__).parents[1]
SERVICE = "https://api.osv.dev"
_TIMEOUT_SECONDS = 10.0
# Our request is wrong then, and must not be taken for a service that is away.
_OUR_FAULT = (400, 404)


class NotAuditedError(Exception):
    """The service did not answer, or not as itself."""


@dataclass(frozen=True)
class Finding:
    """A known vulnerability of a pinned package. names: the advisory's id and its aliases. fixed: in these versions."""

    package: str
    version: str
    names: tuple[str, ...]
    summary: str
    fixed: tuple[str, ...]

    def __str__(self) -> str:
        mended = f"fixed in {', '.join(self.fixed)}" if self.fixed else "no version without it"
        return f"{self.package} {self.version}: {' '.join(self.names)}: {self.summary} ({mended})"


def find(service: str, pinned: Mapping[str, str]) -> list[Finding]:
    """All known ones. pinned: versions by name. Raises NotAuditedError."""
    waiting: list[dict[str, Any]] = [
        {"package": {"name": name, "ecosystem": "PyPI"}, "version": version} for name, version in pinned.items()
    ]
    found: list[Finding] = []
    while waiting:
        results = _ask(f"{service}/v1/querybatch", {"queries": waiting})["results"]
        further = []
        for query, result in zip(waiting, results, strict=True):
            name = query["package"]["name"]
            found += [_finding(service, name, pinned[name], it["id"]) for it in result.get("vulns", ())]
            if result.get("next_page_token"):
                further.append(query | {"page_token": result["next_page_token"]})
        waiting = further
    return found


def _finding(service: str, package: str, version: str, name: str) -> Finding:
    advisory = _ask(f"{service}/v1/vulns/{quote(name)}")
    events = [
        event
        for affected in advisory.get("affected", ())
        if affected.get("package", {}).get("name", "").lower() == package
        for one_range in affected.get("ranges", ())
        if one_range.get("type") == "ECOSYSTEM"
        for event in one_range.get("events", ())
    ]
    return Finding(
        package,
        version,
        (name, *advisory.get("aliases", ())),
        advisory.get("summary") or "without a summary",
        tuple(it["fixed"] for it in events if "fixed" in it),
    )


def _ask(url: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310 - of our own making
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310
            found: dict[str, Any] = json.load(answer)
            return found
    except HTTPError as error:
        if error.code in _OUR_FAULT:
            raise
        with error:
            raise NotAuditedError(f"{url} answers {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise NotAuditedError(f"{url}: {error}") from error


def main(arguments: Sequence[str], say: Callable[[str], object]) -> int:
    """The exit code: 1 for a finding, and with --strict where nothing could be asked."""
    parser = argparse.ArgumentParser(prog="make audit", description="Looks for known vulnerabilities.")
    parser.add_argument("--service", default=SERVICE, help="a server with OSV's API, such as a company's mirror")
    parser.add_argument("--strict", action="store_true", help="fail where it cannot be reached")
    parser.add_argument("--project", type=Path, default=ROOT, help="the folder of pyproject.toml and requirements.lock")
    chosen = parser.parse_args(arguments)
    lock = (chosen.project / "requirements.lock").read_text()
    pinned = dict(re.findall(r"^([a-z0-9][\w.-]*)==([^ ;\\]+)", lock, re.MULTILINE))
    tools = tomllib.loads((chosen.project / "pyproject.toml").read_text()).get("tool", {})
    accepted: dict[str, str] = tools.get("tandem", {}).get("audit", {}).get("accepted", {})
    try:
        findings = find(chosen.service, pinned)
    except NotAuditedError as error:
        say(f"NOT AUDITED, so known vulnerabilities of {len(pinned)} packages may be there: {error}")
        return 1 if chosen.strict else 0
    refused = [it for it in findings if not accepted.keys() & set(it.names)]
    for it in refused:
        say(f"vulnerable: {it}")
    for name, reason in accepted.items():
        hit = [it for it in findings if name in it.names]
        say(f"accepted ({reason}): {hit[0]}" if hit else f"{name} is accepted and not found any more: take it out")
    say(f"{len(pinned)} packages, {len(refused)} known vulnerabilities that nobody accepted")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], print))
