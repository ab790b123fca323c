"""The certificate that a sidecar has seen, as Envoy says it in a header."""

import re

from tandem.runtime.errors import Unauthenticated

HEADER = "x-forwarded-client-cert"

# Key, value, and what ends them. A value that holds a separator is quoted.
_PAIR = re.compile(r'(By|Hash|Cert|Chain|Subject|URI|DNS)=("(?:[^"\\]|\\.)*"|[^",;=]*)(;|,|$)')
_HASH = re.compile(r"[0-9a-fA-F]{64}")


def subject_of(value: str | bytes) -> str:
    """Whom the header names: the URI (SPIFFE id) of the certificate, its subject where it has none.

    Raises Unauthenticated for all but the one element that a sidecar writes of a certificate that it has verified. A
    second element is of a proxy before it, and verified by nobody here.
    """
    found: dict[str, list[str]] = {}
    place, end = 0, ";"
    while isinstance(value, str) and end == ";" and (match := _PAIR.match(value, place)):
        key, text, end = match.groups()
        found.setdefault(key, []).append(re.sub(r"\\(.)", r"\1", text[1:-1]) if text.startswith('"') else text)
        place = match.end()
    if end or place != len(value):
        raise _invalid(f"{HEADER} is not the one element that a sidecar writes")
    hashes, uris, subjects = (found.get(it, []) for it in ("Hash", "URI", "Subject"))
    if len(hashes) != 1 or not _HASH.fullmatch(hashes[0]):
        raise _invalid(f"{HEADER} names no verified certificate: its Hash is required")
    named = [it for it in uris if it] or [it for it in subjects if it]
    if len(named) != 1 or not named[0].isprintable():
        raise _invalid(f"{HEADER} must name one URI, or else one Subject")
    return named[0]


def _invalid(problem: str) -> Unauthenticated:
    return Unauthenticated(problem, reason="IDENTITY_INVALID")
