"""What a sidecar says of a caller, in headers: the certificate that it has seen, the claims of a verified token."""

import json
import re
from typing import Any

from tandem.runtime.errors import Unauthenticated
from tandem.runtime.identity import Identity
from tandem.runtime.settings import TokenSettings
from tandem.runtime.tokens import identity_of, wrong

CLAIMS = "tandem-claims"
"""When the token expires, its issuer, audience, roles, owner and subject, with `^` in between.

A short text, and not the whole payload: headers of many callers are no use to HTTP/2's compression, and each character
costs the server time. Lists are JSON, as Envoy writes them; a text is as it is. One with `^` in it makes a field too
many and is refused, so that nobody's name can be read as roles.
"""
NOTHING_CLAIMED = "^^^^^"
"""What the sidecar says of a caller who has sent no token."""
CERTIFICATE = "x-forwarded-client-cert"

# Key, value, and what ends them. A value that holds a separator is quoted.
_PAIR = re.compile(r'(By|Hash|Cert|Chain|Subject|URI|DNS)=("(?:[^"\\]|\\.)*"|[^",;=]*)(;|,|$)')
_HASH = re.compile(r"[0-9a-fA-F]{64}")


_SECONDS = re.compile(r"[0-9]{1,12}(\.[0-9]+)?")


def claimant(settings: TokenSettings, value: str | bytes) -> Identity:
    """Whom CLAIMS names. Raises Unauthenticated. Whether the token has expired is seen by who asks."""
    fields = value.split("^") if isinstance(value, str) else []
    if len(fields) != len(NOTHING_CLAIMED) + 1:
        raise _invalid(f"{CLAIMS} is not the six fields that a sidecar writes")
    expires, issuer, audience, roles, owner, subject = fields
    if issuer != settings.issuer:
        raise wrong("it is another issuer's")
    if settings.audience not in ([audience] if not audience.startswith("[") else _list(audience)):
        raise wrong("it is for others")
    if not _SECONDS.fullmatch(expires):
        raise wrong("it does not say when it expires")
    # An object names no roles, and neither that nor a list an owner: as in a token.
    listed = "" if roles.startswith("{") else _list(roles) if roles.startswith("[") else roles
    named = "" if owner.startswith(("{", "[")) else owner
    return identity_of(subject, listed, named, float(expires) + settings.leeway_seconds)


def _list(text: str) -> list[Any]:
    """Raises Unauthenticated."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list):
        raise _invalid(f"{CLAIMS} has what is no list of JSON")
    return found


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
        raise _invalid(f"{CERTIFICATE} is not the one element that a sidecar writes")
    hashes, uris, subjects = (found.get(it, []) for it in ("Hash", "URI", "Subject"))
    if len(hashes) != 1 or not _HASH.fullmatch(hashes[0]):
        raise _invalid(f"{CERTIFICATE} names no verified certificate: its Hash is required")
    named = [it for it in uris if it] or [it for it in subjects if it]
    if len(named) != 1 or not named[0].isprintable():
        raise _invalid(f"{CERTIFICATE} must name one URI, or else one Subject")
    return named[0]


def _invalid(problem: str) -> Unauthenticated:
    return Unauthenticated(problem, reason="IDENTITY_INVALID")
