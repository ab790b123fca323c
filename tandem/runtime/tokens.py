"""JSON Web Tokens: verified with the issuer's public keys, which are fetched, cached and rotated.

A thread fetches the keys: at the start, every `refresh_seconds`, and when a token names one that is not known; a file
it looks at every second. A token of an unknown key is UNAVAILABLE until the keys were fetched: its caller tries again
and comes through. Where they cannot be fetched, those that were known stay.

What was verified is remembered until it expires or other keys come.
"""

import json
import threading
import time
import urllib.request
from collections.abc import Mapping
from functools import partial
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client import Counter, Gauge

from tandem.runtime.errors import Unauthenticated, Unavailable
from tandem.runtime.identity import Identities, Identity
from tandem.runtime.settings import SettingsError, TokenSettings
from tandem.runtime.supervised import SupervisedThread
from tandem.runtime.telemetry import log

if TYPE_CHECKING:
    # Imported where it is used: it takes a twentieth of a server's start, and not all verify tokens.
    import jwt

FETCHES = Counter("tandem_token_keys_fetches_total", "Times that the issuer's keys were read, by outcome", ["outcome"])
AGE = Gauge("tandem_token_keys_age_seconds", "How long ago the issuer's keys were last read well")

_BEARER = "bearer "
# grpcio takes 8 KiB for all that a call says.
_LONGEST_TOKEN = 6 * 1024
_LONGEST_SUBJECT = 256
_MOST_KEY_BYTES = 1024 * 1024
_FETCH_SECONDS = 5.0
# Anybody may name a key that is not known: at most so often the keys are fetched for that.
_PAUSE_SECONDS = 5.0
# How often a file is read, and a URL that has failed.
_LOOK_SECONDS = 1.0


class _Keys(NamedTuple):
    """The issuer's public keys by their ids, as they were read."""

    by_id: "Mapping[str, jwt.PyJWK]"
    source: bytes


class Tokens:
    """Verifies tokens, from any thread. `start` and `stop` its own."""

    def __init__(self, settings: TokenSettings) -> None:
        """Raises SettingsError for a file of keys that cannot be used."""
        self._settings = settings
        self._keys: _Keys | None = None
        self.identities = Identities(settings.remembered, _unknown)
        """By `authorization` as a caller sent it. Look-ups raise Unauthenticated, and Unavailable without keys."""
        self._read_at = self._looked_at = time.monotonic()
        self._failed = False
        self._wake = threading.Event()
        self._stopping = False
        self._thread = SupervisedThread("token-keys", self._run)
        AGE.set_function(lambda: time.monotonic() - self._read_at)
        if settings.keys_file is not None:
            try:
                self._take(self._read())
            except (OSError, ValueError) as error:
                raise SettingsError(f"authentication.token.keys_file: {settings.keys_file}: {error}") from error

    @property
    def ready(self) -> bool:
        """Whether tokens can be verified."""
        return self._keys is not None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()
        self._thread.join()

    def _verified(self, keys: _Keys, authorization: str | bytes) -> Identity:
        """Raises Unauthenticated, and Unavailable."""
        if not isinstance(authorization, str) or authorization[:7].lower() != _BEARER:
            raise _invalid("authorization must be `Bearer` and a token")
        import jwt  # noqa: PLC0415 - see above

        token = authorization[7:]
        settings = self._settings
        if len(token) > _LONGEST_TOKEN:
            raise wrong(f"it has more than {_LONGEST_TOKEN} characters")
        try:
            key = self._key(keys, jwt.get_unverified_header(token).get("kid"))
            # A token whose algorithm is not its key's is refused here.
            claims = jwt.decode(
                token,
                key,
                algorithms=list(settings.algorithms),
                issuer=settings.issuer,
                audience=settings.audience,
                leeway=settings.leeway_seconds,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.ExpiredSignatureError:
            raise expired() from None
        except jwt.PyJWTError as error:
            raise wrong(str(error)) from None
        return identity_of(
            claims["sub"],
            _claim(claims, settings.roles_claim),
            _claim(claims, settings.owner_claim),
            float(claims["exp"]) + settings.leeway_seconds,
        )

    def _key(self, keys: _Keys, key_id: str | None) -> "jwt.PyJWK":
        if key_id is None and len(keys.by_id) == 1:
            return next(iter(keys.by_id.values()))
        key = keys.by_id.get(key_id or "")
        if key is not None:
            return key
        if time.monotonic() - self._looked_at > _PAUSE_SECONDS:
            self._wake.set()
            raise _fetching()
        if self._failed:
            raise _fetching()
        raise wrong("it is signed with no key of the issuer")

    # The thread.

    def _run(self) -> None:
        while not self._stopping:
            self._look()
            often = self._settings.keys_file is not None or self._failed
            if self._wake.wait(_LOOK_SECONDS if often else self._settings.refresh_seconds):
                self._wake.clear()

    def _look(self) -> None:
        try:
            self._take(self._read())
        except (OSError, ValueError) as error:
            if not self._failed:
                log.error("the issuer's keys cannot be read; those that were known stay", error=repr(error)[:500])
            self._failed = True
            self._looked_at = time.monotonic()
            FETCHES.labels("failed").inc()

    def _read(self) -> bytes:
        """A JSON Web Key Set. Raises OSError."""
        if self._settings.keys_file is not None:
            return self._settings.keys_file.read_bytes()
        assert self._settings.keys_url is not None, "one of the two is set"
        try:
            with _OPENER.open(self._settings.keys_url, timeout=_FETCH_SECONDS) as answer:
                content: bytes = answer.read(_MOST_KEY_BYTES)
        except HTTPException as error:
            raise OSError(f"no answer of HTTP: {error!r}") from error
        return content

    def _take(self, content: bytes) -> None:
        """Raises ValueError for what is no set of keys."""
        if self._keys is None or content != self._keys.source:
            by_id = _keys_of(content)
            log.info("the issuer's keys were read", keys=sorted(by_id))
            self._keys = keys = _Keys(by_id, content)
            # What was verified with keys that are gone now is verified again.
            self.identities = Identities(self._settings.remembered, partial(self._verified, keys))
        self._read_at = self._looked_at = time.monotonic()
        self._failed = False
        FETCHES.labels("read").inc()


def _opener() -> urllib.request.OpenerDirector:
    """Without redirects: keys are where the setting says, and not with somebody else or at plain HTTP."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


_OPENER = _opener()


def _keys_of(content: bytes) -> "dict[str, jwt.PyJWK]":
    """Raises ValueError. A secret is no key here: who verifies with it could sign."""
    import jwt  # noqa: PLC0415 - see above

    try:
        listed = [it for it in json.loads(content)["keys"] if it["kty"] != "oct" and it.get("use", "sig") == "sig"]
        keys = jwt.PyJWKSet(listed).keys
    except (jwt.PyJWTError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no set of JSON Web Keys: {error!r}") from error
    by_id = {it.key_id or "": it for it in keys}
    if len(by_id) < len(keys):
        raise ValueError("two keys have the same `kid`, or none")
    return by_id


def _claim(claims: Mapping[str, Any], path: str) -> Any:
    """None where there is none. `realm_access.roles` is the claim `roles` within `realm_access`."""
    if path in claims:
        return claims[path]
    found: Any = claims
    for name in path.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def identity_of(subject: str, roles: Any, owner: Any, expires_at: float) -> Identity:
    """Of a token's claims. Raises Unauthenticated for a subject that is none.

    roles: a list, or a text with blanks in between, as `scope` has them. owner: a text, or nobody's rows are its own.
    """
    if not 1 <= len(subject) <= _LONGEST_SUBJECT or not subject.isprintable():
        raise wrong(f"its subject must be 1 to {_LONGEST_SUBJECT} printable characters")
    listed = roles.split() if isinstance(roles, str) else roles if isinstance(roles, list) else ()
    named = frozenset(it for it in listed if isinstance(it, str))
    return Identity(subject, "token", named, owner.lower() if isinstance(owner, str) else "", expires_at)


def expired() -> Unauthenticated:
    return Unauthenticated("the token has expired", reason="TOKEN_EXPIRED")


def wrong(problem: str) -> Unauthenticated:
    return _invalid(f"the token is not valid: {problem}")


def _invalid(problem: str) -> Unauthenticated:
    return Unauthenticated(problem, reason="IDENTITY_INVALID")


def _unknown(_: str | bytes) -> Identity:
    """While no keys are known."""
    raise _fetching()


def _fetching() -> Unavailable:
    return Unavailable("the issuer's keys are being fetched", reason="KEYS_UNAVAILABLE")
