"""Who a caller is, how that was proved, and what that gives."""

import hashlib
import math
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

# Of an actor in an event's envelope: see tandem.feed.envelope.
_PSEUDONYM = re.compile(r"[!-?A-~]{1,128}")


@dataclass(frozen=True, eq=False)
class Identity:
    """Who calls.

    subject: the token's `sub`, or the SPIFFE id or the distinguished name of a certificate. roles: as the token says
    them. owner: whose rows are the caller's own; empty where it owns none. expires_at: on the clock of time.time().

    One that is remembered is the same object each time: that is what it is known by.
    """

    subject: str
    proof: Literal["token", "certificate", "sidecar"]
    roles: frozenset[str] = frozenset()
    owner: str = ""
    expires_at: float = math.inf

    @cached_property
    def actor(self) -> str:
        """As events keep it for ever: pseudonymous, so a name or an e-mail address is there as its hash alone."""
        if _PSEUDONYM.fullmatch(self.subject):
            return self.subject
        return f"sha256:{hashlib.sha256(self.subject.encode()).hexdigest()[:32]}"


class Identities(dict[str | bytes, Identity]):
    """Who calls, by what was sent: found out when it is first looked up. From any thread.

    At most `most` are remembered. Who was found out first is forgotten first, as the one that expires first.
    """

    def __init__(self, most: int, find_out: Callable[[str | bytes], Identity]) -> None:
        """find_out: raises TandemError for what says nobody, and a look-up with it."""
        super().__init__()
        self._most = most
        self._find_out = find_out
        self._adding = threading.Lock()

    def __missing__(self, sent: str | bytes) -> Identity:
        identity = self._find_out(sent)
        with self._adding:
            if len(self) >= self._most:
                del self[next(iter(self))]
            self[sent] = identity
        return identity


@dataclass(frozen=True, slots=True)
class Permission:
    """What a caller may see of what it called.

    identity: None where nobody is asked. owner: whose rows alone, in lower case; None for all. sees_personal_data:
    whether the feed's events are shown with it.
    """

    identity: Identity | None = None
    owner: str | None = None
    sees_personal_data: bool = True


UNASKED = Permission()
"""Of a call that nobody was asked about, or not yet."""
