"""Who may call what: a file that says it, read again when it changes.

    [rpcs."package.Service"]
    GetThing = ["clerk", "customer:own"]   # clerks all things, customers their own
    ListKinds = ["*"]                      # everybody whose identity is known; "*:own" for what is theirs
    "*" = ["operator"]                     # all RPCs of the service that are not named

    [subjects]                             # the roles of those whom a certificate names; a token says its own
    "spiffe://example.org/relay" = ["follower"]

    [personal_data]                        # who sees it in the feed, beside what the RPC takes
    roles = ["privacy"]

What is not in it nobody may call. A file that cannot be used changes nothing: what was said before stays in force.
"""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client import Counter, Gauge

from tandem.runtime.identity import Identity
from tandem.runtime.watched_file import WatchedFile

READS = Counter("tandem_policy_reads_total", "Times that the policy's file had changed, by outcome", ["outcome"])
OUTDATED = Gauge("tandem_policy_outdated", "1 while the policy's file cannot be used, and an earlier one is in force")

EVERYBODY = "*"
_OWN = ":own"
_SECTIONS = {"rpcs", "subjects", "personal_data"}
_NONE: frozenset[str] = frozenset()


class Rule(NamedTuple):
    """Of an RPC. everything: roles for which all is to be had; own: roles that get what is theirs."""

    everything: frozenset[str] = _NONE
    own: frozenset[str] = _NONE


class Policy(NamedTuple):
    """rules: by path, of all that is served. subjects: roles of those whom a certificate names."""

    rules: Mapping[str, Rule]
    subjects: Mapping[str, frozenset[str]]
    personal: frozenset[str]

    def roles_of(self, identity: Identity) -> frozenset[str]:
        if identity.proof == "token" or not self.subjects:
            return identity.roles
        return identity.roles | self.subjects.get(identity.subject, _NONE)


class PolicyFile(WatchedFile[Policy]):
    """The policy that is in force, once it is started: nothing is permitted by a policy that was not read."""

    def __init__(self, file: Path, owned: Mapping[str, bool]) -> None:
        """owned: by path of what is served, whether it is known whose rows it is about. Complete when it is started."""
        super().__init__(
            "policy",
            file,
            lambda content: parse(content, owned),
            setting="policy_file",
            changed="audit: another policy is in force",
            reads=READS,
            outdated=OUTDATED,
        )

    @property
    def policy(self) -> Policy:
        return self.said


def parse(content: str, owned: Mapping[str, bool]) -> Policy:
    """owned: as PolicyFile has it. Raises ValueError, which names all that is wrong."""
    said = tomllib.loads(content)
    problems = [f"[{it}] is no section: {', '.join(sorted(_SECTIONS))} are" for it in sorted(said.keys() - _SECTIONS)]
    services = _tables(said, "rpcs", problems)
    rules: dict[str, Rule] = {}
    for path, has_owner in owned.items():
        _, service, name = path.split("/")
        table = services.get(service, {})
        key = name if name in table else EVERYBODY
        where = f'[rpcs."{service}"] {key}'
        words = _roles(table.get(key, []), where, problems)
        own = frozenset(it.removesuffix(_OWN) for it in words if it.endswith(_OWN))
        if own and not has_owner and key != EVERYBODY:
            problems.append(f"{where}: it is not known whose {name} is, so nobody can have {_OWN[1:]} rows of it")
        rules[path] = Rule(frozenset(it for it in words if not it.endswith(_OWN)), own if has_owner else _NONE)
    for service in services:
        served = {path.split("/")[2] for path in owned if path.startswith(f"/{service}/")}
        unknown = services[service].keys() - served - {EVERYBODY}
        # Other services are served elsewhere, by the same file.
        problems += [f'[rpcs."{service}"] {it}: there is no such RPC' for it in sorted(unknown) if served]
    subjects = {
        it: _roles(roles, f'[subjects] "{it}"', problems) for it, roles in _table(said, "subjects", problems).items()
    }
    personal = _table(said, "personal_data", problems)
    problems += [f"[personal_data] {it}: roles is all that there is" for it in sorted(personal.keys() - {"roles"})]
    found = Policy(rules, subjects, _roles(personal.get("roles", []), "[personal_data] roles", problems))
    if problems:
        raise ValueError("; ".join(problems))
    return found


def _tables(said: Mapping[str, Any], name: str, problems: list[str]) -> dict[str, dict[str, Any]]:
    found = _table(said, name, problems)
    wrong = [it for it, table in found.items() if not isinstance(table, dict)]
    problems += [f'[{name}."{it}"] must be a section, with a list of roles for each RPC' for it in wrong]
    return {it: table for it, table in found.items() if it not in wrong}


def _table(said: Mapping[str, Any], name: str, problems: list[str]) -> dict[str, Any]:
    found = said.get(name, {})
    if isinstance(found, dict):
        return found
    problems.append(f"[{name}] must be a section")
    return {}


def _roles(words: object, where: str, problems: list[str]) -> frozenset[str]:
    if isinstance(words, Sequence) and not isinstance(words, str) and all(_is_role(it) for it in words):
        return frozenset(words)
    problems.append(f"{where} must be a list of roles, words without blanks")
    return _NONE


def _is_role(word: object) -> bool:
    return isinstance(word, str) and word.removesuffix(_OWN) != "" and not any(map(str.isspace, word))
