"""What stands around every call, once, whichever transport it came by: is there room, and who calls.

    unary call ──▶ Guards.admit ──▶ its worker
    stream     ──▶ StreamMethod.run ──▶ Guard.check, and again before each message
    reflection, unknown method ──▶ Guard.check          health ──▶ nothing

Who calls is proved by a token (`authorization: Bearer …`), by the connection's certificate, or by a sidecar's word
(`x-forwarded-client-cert`), as the settings say. A token goes before the others: it says for whom the holder of a
certificate calls. One that is wrong is refused, and nothing else is looked at; so is what is said twice. Where no
setting asks for any of them, calls are admitted, and nothing costs anything.
"""

import time
from collections.abc import Callable

from tandem.runtime import forwarded
from tandem.runtime.call import Admission, Context, Metadata, RemoteCall
from tandem.runtime.errors import TandemError, Unauthenticated
from tandem.runtime.identity import Identity
from tandem.runtime.settings import ServerSettings
from tandem.runtime.telemetry import log
from tandem.runtime.tokens import Tokens, expired


class Authenticator:
    """Says who calls, from any thread."""

    def __init__(self, settings: ServerSettings) -> None:
        """Raises SettingsError for a file of keys that cannot be used."""
        authentication = settings.authentication
        self.tokens = Tokens(authentication.token) if authentication.token is not None else None
        self._by_certificate = settings.tls is not None and settings.tls.client_ca_file is not None
        self._by_sidecar = authentication.forwarded_certificate

    def identity_of(self, call: Context) -> Identity:
        """Raises Unauthenticated, and Unavailable while the issuer's keys are not known."""
        tokens = self.tokens
        metadata = call.metadata()
        if tokens is not None and (authorization := _once(metadata, "authorization")) is not None:
            return tokens.identity_of(authorization)
        if self._by_sidecar and (said := _once(metadata, forwarded.HEADER)) is not None:
            return Identity(forwarded.subject_of(said), "sidecar")
        if self._by_certificate and (subject := call.certificate_subject()):
            return Identity(subject, "certificate")
        wanted = "a token, as `authorization: Bearer …`" if tokens is not None else "a client certificate"
        raise Unauthenticated(f"nothing says who calls: {wanted}, is required", reason="IDENTITY_REQUIRED")


def _once(metadata: Metadata, wanted: str) -> str | bytes | None:
    found = None
    for name, value in metadata:
        if name == wanted:
            if found is not None:
                raise Unauthenticated(f"{wanted} is given twice", reason="IDENTITY_INVALID")
            found = value
    return found


class Guard:
    """Of one RPC."""

    def __init__(self, path: str, identity_of: Callable[[Context], Identity]) -> None:
        self._path = path
        self._identity_of = identity_of

    def check(self, call: Context) -> None:
        """Says who calls. Raises TandemError, which is logged for the audit."""
        identity = call.identity
        try:
            if identity is None:
                identity = call.identity = self._identity_of(call)
            if identity.expires_at <= time.time():
                raise expired()
        except TandemError as error:
            log.warning(
                "audit: refused",
                rpc=self._path,
                subject=identity.subject if identity is not None else None,
                reason=error.reason,
                problem=error.message,
                reference=call.reference(),
            )
            raise


class Guards:
    """Of one server. `start` and `stop` what they need."""

    def __init__(self, settings: ServerSettings) -> None:
        """Raises SettingsError."""
        self.admission = Admission(settings.max_concurrent_calls)
        self._authenticator = Authenticator(settings) if settings.authenticates else None
        self.admit: Callable[[list[RemoteCall]], list[RemoteCall]] = (
            self.admission.admit if self._authenticator is None else self._admit_known
        )

    def of(self, path: str) -> Guard | None:
        """For an RPC; None where nobody is asked who he is."""
        return None if self._authenticator is None else Guard(path, self._authenticator.identity_of)

    @property
    def ready(self) -> bool:
        """Whether it can be found out who calls."""
        tokens = self._tokens
        return tokens is None or tokens.ready

    def start(self) -> None:
        if self._tokens is not None:
            self._tokens.start()

    def stop(self) -> None:
        if self._tokens is not None:
            self._tokens.stop()

    @property
    def _tokens(self) -> Tokens | None:
        return None if self._authenticator is None else self._authenticator.tokens

    def _admit_known(self, calls: list[RemoteCall]) -> list[RemoteCall]:
        known: list[RemoteCall] = []
        for call in calls:
            guard = call.method.guard
            assert guard is not None, "every RPC has one where callers are asked who they are"
            try:
                guard.check(call)
            except TandemError as error:
                call.fail(error)
                call.count_unadmitted()
            else:
                known.append(call)
        return self.admission.admit(known) if known else known
