"""What a session has written, and so must see: the consistency tokens that its queries carry.

Tokens are opaque here: nothing says which of two is newer. A session still holds few, because it knows what came after
what (docs/adr/0022-several-tokens.md):

- A command's receipt stands for every token that the session held when the command was sent: those were acknowledged
  before, and the feed has them before it.
- Of two receipts the one with the higher `position` stands for the other.
- An answer's `as_of` stands for every token that its query carried.

Who learns tokens and never reads reaches the contract's limit all the same. A session that would hold more than
MOST_TOKENS holds EVERYTHING instead: its next query is `fully_consistent`, whose answer includes every command that was
acknowledged before, and so all that the tokens stood for. A server that is not set up for that refuses (NotConfigured);
none answers with less.
"""

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tandem.client.command import command
from tandem.client.errors import CallFailed, InvalidRequest, TokenOutdated

MOST_TOKENS = 20
"""The contract's limit for one query."""
EVERYTHING = "~"
"""In place of tokens: every command that is acknowledged by now."""
# Tokens are of letters, digits, "-" and "_"; this is as safe as they are in URLs and cookies.
_BETWEEN = "~"
# Many times what a token has.
_LONGEST = 1000


@dataclass
class Sent:
    """A request as it is sent. `included`: tokens that the session held then and that the answer includes."""

    request: Any
    included: tuple[str, ...] = ()


class Horizon:
    """The tokens of a session. For any number of threads or tasks.

    monotonic_reads: whether what a query showed is remembered too, so that no later one shows an older state.
    """

    def __init__(self, token: str = "", *, monotonic_reads: bool = False) -> None:
        """token: what an earlier session had as `token`; empty stands for nothing."""
        self._lock = threading.Lock()
        self._positions: dict[str, int] = {}
        """Of each token held, in the order in which they came; 0 where it is not known."""
        self._monotonic_reads = monotonic_reads
        self.learn(token)

    @property
    def token(self) -> str:
        """All tokens as one text: a single token is itself, several have a "~" between them. Empty without any."""
        return _BETWEEN.join(reversed(self._held()))

    def learn(self, token: str) -> None:
        """Includes what another token stands for, or the tokens of a session's `token`."""
        for it in [EVERYTHING] if token == EVERYTHING else token.split(_BETWEEN):
            # What is no token whatever its server: a cookie holds what somebody has put there.
            if it.isascii() and it.isprintable() and len(it) <= _LONGEST:
                self._take(it)

    def prepare(self, request: Any) -> Sent:
        """What is to be sent for the caller's request.

        The caller's own message stays as it is. A command without request_id is given one. A query that may be answered
        from the past (its `consistency` is not set, or has tokens) gets the session's tokens too; `minimize_latency`
        and `fully_consistent` stay as they are.
        """
        fields = request.DESCRIPTOR.fields_by_name
        held = self._held()
        if "request_id" in fields:
            return Sent(request if request.request_id else command(request), held)
        if not held or "consistency" not in fields:
            return Sent(request)
        match request.consistency.WhichOneof("requirement"):
            case "minimize_latency":
                return Sent(request)
            case "fully_consistent":
                return Sent(request, held)
        copy = type(request)()
        copy.CopyFrom(request)
        _require(copy.consistency, held)
        return Sent(copy, held)

    def answered(self, sent: Sent, response: Any) -> None:
        """Remembers a command's receipt and, where that was asked for or makes tokens fewer, how fresh an answer is."""
        fields = response.DESCRIPTOR.fields_by_name
        if "receipt" in fields:
            receipt = response.receipt
            # One that is replayed may be older than what the session held.
            included = () if receipt.replayed else sent.included
            self._take(receipt.consistency_token, included, receipt.position)
        elif "as_of" in fields and response.as_of:
            left = [it for it in sent.included if it in self._held()]
            if self._monotonic_reads or len(left) > 1 or EVERYTHING in left:
                self._take(response.as_of, sent.included)
                # A stream moves forward: its next message includes this one.
                sent.included = (response.as_of,)

    def failed(self, sent: Sent, error: CallFailed) -> bool:
        """Forgets a token that is none, or that can never be reached again: what it stood for may be gone with the
        restore. The server names its field. Where it names none, all are outdated that were sent, and none that came
        since.

        Returns whether the session had put something into the query that is no token: without it the caller's query may
        be right.
        """
        named = {it.subject for it in error.violations}
        tokens = [token for field, token in _fields(sent.request) if field in named]
        if isinstance(error, TokenOutdated):
            with self._lock:
                self._forget(tokens or sent.included)
        if not isinstance(error, InvalidRequest):
            return False
        with self._lock:
            bad = [it for it in tokens if it in self._positions]
            self._forget(bad)
        return bool(bad)

    def _held(self) -> tuple[str, ...]:
        """The newest first."""
        with self._lock:
            return tuple(reversed(self._positions))

    def _take(self, token: str, included: Iterable[str] = (), position: int = 0) -> None:
        """Holds a token in place of those that it includes. position: of a receipt."""
        with self._lock:
            self._forget(included)
            if not token or token in self._positions or EVERYTHING in self._positions:
                return
            if position:
                if position <= max(self._positions.values(), default=0):
                    return
                self._forget([it for it, known in self._positions.items() if known])
            self._positions[token] = position
            if token == EVERYTHING or len(self._positions) > MOST_TOKENS:
                self._positions = {EVERYTHING: 0}

    def _forget(self, tokens: Iterable[str]) -> None:
        for it in tokens:
            self._positions.pop(it, None)


def _fields(request: Any) -> list[tuple[str, str]]:
    """The tokens of a query, with the names of their fields. None for another request."""
    if "consistency" not in request.DESCRIPTOR.fields_by_name:
        return []
    numbered = [(f"consistency.tokens[{number}]", it) for number, it in enumerate(request.consistency.tokens)]
    return [("consistency.at_least_as_fresh", request.consistency.at_least_as_fresh), *numbered]


def _require(consistency: Any, held: tuple[str, ...]) -> None:
    """Adds tokens to those that the caller asks for itself.

    A single one goes where servers of every release read it.
    """
    wanted = dict.fromkeys([consistency.at_least_as_fresh, *consistency.tokens, *held])
    wanted.pop("", None)
    del consistency.tokens[:]
    if EVERYTHING in wanted or len(wanted) > MOST_TOKENS:
        consistency.fully_consistent = True
    else:
        consistency.at_least_as_fresh, *others = wanted
        consistency.tokens.extend(others)
