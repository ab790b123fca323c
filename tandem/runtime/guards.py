"""What stands around every call, once, whichever transport it came by: is there room, who calls, and may he.

    unary call ──▶ Guards.admit ──▶ its worker
    stream     ──▶ StreamMethod.run ──▶ Guard.check, and again before each message
    reflection, unknown method ──▶ Guard.check          health ──▶ nothing

Who calls is proved by a token (`authorization: Bearer …`), by the connection's certificate, or by a sidecar's word
(`tandem-claims`, `x-forwarded-client-cert`), as the settings say. A token goes before the others: it says for whom the
holder of a certificate calls. One that is wrong is refused, and nothing else is looked at; so is what is said twice.

What a caller may is the policy's to say (policy.py), by roles. Where a role gives no more than what is the caller's
own, `call.owner` says whose that is: a request that names its owner is checked here, and rows where they are read.
Somebody else's is NOT_FOUND. Where no setting asks who calls, there are no guards.
"""

import time
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Literal

from tandem.runtime import audit, forwarded
from tandem.runtime.call import Admission, Context, Metadata, RemoteCall
from tandem.runtime.errors import NotFound, NotPermitted, TandemError, Unauthenticated
from tandem.runtime.identity import UNASKED, Identities, Identity, Permission
from tandem.runtime.policy import EVERYBODY, Policy, PolicyFile
from tandem.runtime.settings import ServerSettings
from tandem.runtime.tokens import Tokens, expired

# What of a name or an id that a caller gives is said again.
_LONGEST_NAME = 200
# Identities whose rights are known at once; more are decided anew.
_MOST_GRANTED = 10_000


class Authenticator:
    """Says who calls, from any thread."""

    def __init__(self, settings: ServerSettings) -> None:
        """Raises SettingsError for a file of keys that cannot be used."""
        authentication = settings.authentication
        self.tokens: Tokens | None = None
        self._claimants: Identities | None = None
        if (token := authentication.token) is not None:
            if token.verified_by_sidecar:
                self._claimants = Identities(token.remembered, partial(forwarded.claimant, token))
            else:
                self.tokens = Tokens(token)
        self._by_certificate = settings.tls is not None and settings.tls.client_ca_file is not None
        self._by_sidecar = authentication.forwarded_certificate

    def identity_of(self, call: Context) -> Identity:
        """Raises Unauthenticated, and Unavailable while the issuer's keys are not known."""
        tokens, claimants = self.tokens, self._claimants
        metadata = call.metadata()
        if claimants is not None:
            # It says so of everybody: a sidecar that does not would let callers say it.
            if (claims := _once(metadata, forwarded.CLAIMS)) is None:
                raise Unauthenticated(f"the sidecar must say {forwarded.CLAIMS}", reason="IDENTITY_REQUIRED")
            if claims != forwarded.NOTHING_CLAIMED:
                return claimants[claims]
            if _once(metadata, "authorization") is not None:
                raise Unauthenticated("the sidecar took `authorization` for no token", reason="IDENTITY_INVALID")
        elif tokens is not None and (authorization := _once(metadata, "authorization")) is not None:
            return tokens.identities[authorization]
        if self._by_sidecar and (said := _once(metadata, forwarded.CERTIFICATE)) is not None:
            return _certified(forwarded.subject_of(said), "sidecar")
        if self._by_certificate and (subject := call.certificate_subject()):
            return _certified(subject, "certificate")
        by_token = tokens is not None or claimants is not None
        wanted = "a token, as `authorization: Bearer …`" if by_token else "a client certificate"
        raise Unauthenticated(f"nothing says who calls: {wanted}, is required", reason="IDENTITY_REQUIRED")


@lru_cache(maxsize=4096)
def _certified(subject: str, proof: Literal["certificate", "sidecar"]) -> Identity:
    """The same object each time, as for a token that is remembered."""
    return Identity(subject, proof)


def _once(metadata: Metadata, wanted: str) -> str | bytes | None:
    found = None
    for name, value in metadata:
        if name == wanted:
            if found is not None:
                raise Unauthenticated(f"{wanted} is given twice", reason="IDENTITY_INVALID")
            found = value
    return found


class _Permissions(dict[Identity, Permission]):
    """What a policy gives to whom, decided when it is first looked up; who may not call is decided anew each time."""

    def __init__(self, guard: "Guard", policy: Policy | None) -> None:
        """policy: None where everybody may call whose identity is known."""
        super().__init__()
        self.policy = policy
        self._guard = guard

    def __missing__(self, identity: Identity) -> Permission:
        """Raises NotPermitted."""
        permission = self._guard.decide(self.policy, identity)
        if len(self) >= _MOST_GRANTED:
            self.clear()
        self[identity] = permission
        return permission


class Guard:
    """Of one RPC."""

    def __init__(
        self,
        path: str,
        identity_of: Callable[[Context], Identity],
        policy_file: PolicyFile | None = None,
        *,
        owner_field: str = "",
        audited: bool = False,
        personal_data: bool = False,
    ) -> None:
        """policy_file: None where everybody may call it whose identity is known. audited: whether each call is logged.

        owner_field: of the request, which names the owner of what is asked for; empty where nothing there does.
        personal_data: whether the answer shows it, so that it takes a role for that too.
        """
        self._path = path
        self._identity_of = identity_of
        self._policy_file = policy_file
        self._permissions = _Permissions(self, None)
        self.reads_requests = audited or bool(owner_field)
        self._owner_field = owner_field
        self._audited = audited
        self._personal_data = personal_data

    def check(self, call: Context) -> None:
        """Says who calls, and what of the rows the caller may see. Raises TandemError."""
        before = call.permission
        identity = before.identity
        try:
            if identity is None:
                identity = self._identity_of(call)
            policy = None if self._policy_file is None else self._policy_file.said
            permissions = self._permissions
            if policy is not permissions.policy:
                permissions = self._permissions = _Permissions(self, policy)
            permission = permissions[identity]
            if before is not UNASKED and permission != before:
                raise NotPermitted("the caller's rights have changed since the call began")
            if identity.expires_at <= time.time():
                raise expired()
        except TandemError as error:
            audit.refused(call, self._path, error, identity)
            raise
        call.permission = permission

    def looks_at(self, call: Context) -> bool:
        """Whether `check_request` is to be called too."""
        return self._audited or (call.owner is not None and bool(self._owner_field))

    def check_request(self, call: Context, request: Any) -> None:
        """Of a call that was checked. Raises TandemError."""
        if self._audited:
            audit.called(call, self._path, request)
        field, owner = self._owner_field, call.owner
        if owner is None or not field:
            return
        named: str = getattr(request, field)
        if named.lower() == owner:
            return
        error: TandemError = (
            NotFound(field.removesuffix("_id"), f"{field.removesuffix('_id')}s/{named[:_LONGEST_NAME]}")
            if named
            else NotPermitted(f"{field} must be the caller's own")
        )
        audit.refused(call, self._path, error)
        raise error

    def decide(self, policy: Policy | None, identity: Identity) -> Permission:
        """policy: None as for `policy_file`. Raises NotPermitted."""
        if policy is None:
            return Permission(identity, sees_personal_data=False)
        everything, own = policy.rules[self._path]
        roles = policy.roles_of(identity)
        personal = EVERYBODY in policy.personal or not roles.isdisjoint(policy.personal)
        if self._personal_data and not personal:
            raise NotPermitted("the caller has no role that may see personal data")
        if EVERYBODY in everything or not roles.isdisjoint(everything):
            return Permission(identity, None, personal)
        if identity.owner and (EVERYBODY in own or not roles.isdisjoint(own)):
            return Permission(identity, identity.owner, personal)
        raise NotPermitted("the caller has no role that may call this")


class Guards:
    """Of one server. RPCs are added, then it is started."""

    def __init__(self, settings: ServerSettings) -> None:
        """Raises SettingsError."""
        self.admission = Admission(settings.max_concurrent_calls)
        self._authenticator = Authenticator(settings) if settings.authenticates else None
        self._guards: dict[str, Guard] = {}
        self._owned: dict[str, bool] = {}
        self._policy_file = None if settings.policy_file is None else PolicyFile(settings.policy_file, self._owned)
        self.admit: Callable[[list[RemoteCall]], list[RemoteCall]] = (
            self.admission.admit if self._authenticator is None else self._admit_permitted
        )

    def add(
        self, path: str, *, owner_field: str | None = None, audited: bool = False, personal_data: bool = False
    ) -> Guard | None:
        """The guard of an RPC; None where nobody is asked who he is. audited, personal_data: as Guard has them.

        owner_field: of its request, which names the owner of what is asked for; empty where its handler looks at the
        rows itself (`call.owner`); None where it is about nobody's rows.
        """
        if self._authenticator is None:
            return None
        assert self._policy_file is not None, "the settings ask for it"
        self._owned[path] = owner_field is not None
        guard = self._guards[path] = Guard(
            path,
            self._authenticator.identity_of,
            self._policy_file,
            owner_field=owner_field or "",
            audited=audited,
            personal_data=personal_data,
        )
        return guard

    def of(self, path: str) -> Guard | None:
        """The guard of any path: what is not there is said to those alone whose identity is known."""
        if self._authenticator is None:
            return None
        return self._guards.get(path) or Guard(path[:_LONGEST_NAME], self._authenticator.identity_of)

    @property
    def ready(self) -> bool:
        """Whether it can be found out who calls."""
        tokens = None if self._authenticator is None else self._authenticator.tokens
        return tokens is None or tokens.ready

    def start(self) -> None:
        """Raises SettingsError for a policy that cannot be used."""
        if self._authenticator is None:
            return
        assert self._policy_file is not None, "the settings ask for it"
        self._policy_file.start()
        if self._authenticator.tokens is not None:
            self._authenticator.tokens.start()

    def stop(self) -> None:
        if self._policy_file is None:
            return
        self._policy_file.stop()
        if self._authenticator is not None and self._authenticator.tokens is not None:
            self._authenticator.tokens.stop()

    def _admit_permitted(self, calls: list[RemoteCall]) -> list[RemoteCall]:
        permitted: list[RemoteCall] = []
        for call in calls:
            guard = call.method.guard
            assert guard is not None, "every RPC has one where callers are asked who they are"
            try:
                guard.check(call)
                if guard.reads_requests and guard.looks_at(call):
                    guard.check_request(call, call.request)
            except Exception as error:  # also a bug is one call's, and the others of the batch go on
                call.fail(error)
                call.count_unadmitted()
            else:
                permitted.append(call)
        return self.admission.admit(permitted) if permitted else permitted
