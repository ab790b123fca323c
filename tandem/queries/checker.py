"""What every query's request may hold, checked: ids, pages, and how fresh the answer must be."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar
from uuid import UUID

from google.protobuf.duration_pb2 import Duration

from tandem.feed.token import MalformedToken, Token, decode_token
from tandem.feed.token_signature import remembered
from tandem.queries.freshness import NOTHING_NEEDED, Need
from tandem.queries.page_token import MalformedPageToken
from tandem.runtime.checker import Checker, is_uuid

T = TypeVar("T")

MAX_BATCH = 100
MAX_PAGE_SIZE = 100
DEFAULT_PAGE_SIZE = 20
MAX_WAIT_SECONDS = 60
MAX_TOKENS = 20
MAX_HEARTBEAT_SECONDS = 60
DEFAULT_HEARTBEAT_SECONDS = 15.0


# Many calls of a caller carry the token of its last write: to decode one takes 3 µs.
@remembered(maxsize=4096)
def _decode(text: str) -> Token:
    """Without a generation: that is of one view, and a token may be of any. Raises MalformedToken."""
    token = decode_token(text)
    return replace(token, generation=0) if token.generation else token


# Stands for an id that is wrong; `finish` raises before anybody uses it.
_NO_ID = UUID(int=0)


class QueryChecker(Checker):
    def __init__(self, default_max_wait: float) -> None:
        """default_max_wait: seconds, for a request that does not say."""
        super().__init__()
        self._default_max_wait = default_max_wait

    @staticmethod
    def key_of(value: str) -> UUID:
        """Of a field that the contract says to be a UUID: what is wrong with it is named already."""
        return UUID(value) if is_uuid(value) else _NO_ID

    def key(self, field: str, value: str) -> UUID:
        return UUID(value) if self.uuid(field, value) else _NO_ID

    def keys(self, field: str, values: Sequence[str]) -> list[UUID]:
        """1 to MAX_BATCH ids, each once."""
        counted = self.count(field, values, MAX_BATCH, least=1)
        keys = [self.key(f"{field}[{number}]", value) for number, value in enumerate(counted)]
        seen: dict[UUID, int] = {}
        for number, key in enumerate(keys):
            first = seen.setdefault(key, number)
            if first != number and key != _NO_ID:
                self.wrong(f"{field}[{number}]", "DUPLICATE", f"is the same as {field}[{first}]")
        return keys

    def page_size(self, value: int) -> int:
        return self.number("page_size", value, 0, MAX_PAGE_SIZE) or DEFAULT_PAGE_SIZE

    def page_token(self, text: str, decode: Callable[..., T], *query: object) -> T | None:
        """Where the page begins; None for the first. decode: of the text and `query`; raises MalformedPageToken."""
        if text:
            try:
                return decode(text, *query)
            except MalformedPageToken:
                self.wrong("page_token", "MALFORMED", "must be the next_page_token of an answer to the same query")
        return None

    def consistency(self, value: Any) -> Need:
        """value: the request's `consistency`, a message with the fields that the engine's contract asks for:
        a oneof `requirement` of minimize_latency, at_least_as_fresh and fully_consistent; tokens; max_wait.
        """
        requirement = value.WhichOneof("requirement")
        need = NOTHING_NEEDED
        if requirement == "at_least_as_fresh":
            need = self._including(need, "consistency.at_least_as_fresh", value.at_least_as_fresh)
        elif requirement is not None and not getattr(value, requirement):
            self.wrong(f"consistency.{requirement}", "INVALID", "must be true when set")
        tokens = value.tokens
        if tokens:
            if requirement in ("minimize_latency", "fully_consistent"):
                self.wrong("consistency.tokens", "INVALID", f"must be empty where {requirement} is set")
            for number, text in enumerate(self.count("consistency.tokens", tokens, MAX_TOKENS)):
                need = self._including(need, f"consistency.tokens[{number}]", text)
        return Need(need.wanted, self._max_wait(value), requirement == "fully_consistent")

    def resume_from(self, need: Need, text: str) -> tuple[Need, Token | None]:
        """The need, and up to where an earlier watch showed the row; None for a new one."""
        if not text:
            return need, None
        try:
            token = decode_token(text)
        except MalformedToken:
            self.wrong("resume_from", "MALFORMED", "must be the as_of of a message of an earlier watch")
            return need, None
        return need.including(replace(token, generation=0), "resume_from"), token

    def heartbeat_interval(self, request: Any) -> float:
        """In seconds."""
        if not request.HasField("heartbeat_interval"):
            return DEFAULT_HEARTBEAT_SECONDS
        return self._seconds("heartbeat_interval", request.heartbeat_interval, 1, MAX_HEARTBEAT_SECONDS)

    def _including(self, need: Need, field: str, text: str) -> Need:
        try:
            return need.including(_decode(text), field)
        except MalformedToken:
            self.wrong(field, "MALFORMED", "must be the consistency_token of a receipt or the as_of of an answer")
            return need

    def _max_wait(self, value: Any) -> float:
        if not value.HasField("max_wait"):
            return self._default_max_wait
        return self._seconds("consistency.max_wait", value.max_wait, 0, MAX_WAIT_SECONDS)

    def _seconds(self, field: str, value: Duration, least: int, most: int) -> float:
        seconds: float = value.seconds + value.nanos / 1e9
        if not least <= seconds <= most or not 0 <= value.nanos < 1_000_000_000:
            self.wrong(field, "OUT_OF_RANGE", f"must be from {least} to {most} s")
        return seconds
