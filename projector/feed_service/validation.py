"""What makes a SubscribeRequest wrong in itself. Every violated field is named, not the first."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from uuid import UUID

from commerce.feed.v1.feed_service_pb2 import SubscribeRequest
from projector.feed_service.batch import Selection
from shop.events import EVENTS
from tandem.feed.token import MalformedToken, Token, decode_token
from tandem.runtime.errors import InvalidArgument, Violation

MAX_FILTERS = 100
MAX_BATCH_EVENTS = 1000
DEFAULT_BATCH_EVENTS = 100
MIN_HEARTBEAT_SECONDS, MAX_HEARTBEAT_SECONDS = 1, 60
DEFAULT_HEARTBEAT_SECONDS = 15.0

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)


class Place(Enum):
    """Where to begin, other than after a cursor."""

    BEGINNING = auto()
    NOW = auto()


@dataclass(frozen=True)
class Wish:
    """A request, checked. heartbeat_seconds: the time between messages while there are no events."""

    start: Token | Place
    selection: Selection
    heartbeat_seconds: float


def check(request: SubscribeRequest) -> Wish:
    """Raises InvalidArgument."""
    checker = _Checker()
    wish = Wish(
        checker.start(request),
        Selection(
            checker.listed("event_types", request.event_types, _kind, "is no type of event"),
            checker.listed("aggregate_ids", request.aggregate_ids, _id, "must be a UUID"),
            checker.max_events(request.max_batch_events),
        ),
        checker.heartbeat(request),
    )
    if checker.violations:
        raise InvalidArgument(checker.violations)
    return wish


def _kind(text: str) -> str | None:
    return text if text in EVENTS.kinds else None


def _id(text: str) -> str | None:
    """As events have it."""
    return str(UUID(text)) if _UUID.fullmatch(text) else None


class _Checker:
    """Collects what is wrong; what is returned counts only when nothing is."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []

    def start(self, request: SubscribeRequest) -> Token | Place:
        match request.WhichOneof("start"):
            case "from_beginning":
                if not request.from_beginning:
                    self.wrong("from_beginning", "INVALID", "must be true when set")
                return Place.BEGINNING
            case "after_cursor":
                try:
                    return decode_token(request.after_cursor)
                except MalformedToken:
                    self.wrong("after_cursor", "MALFORMED", "must be the cursor of a message, or a consistency token")
            case "from_now":
                if not request.from_now:
                    self.wrong("from_now", "INVALID", "must be true when set")
            case _:
                self.wrong("start", "REQUIRED", "one of from_beginning, after_cursor and from_now is required")
        return Place.NOW

    def listed(
        self, field: str, values: Sequence[str], normal: Callable[[str], str | None], problem: str
    ) -> frozenset[str]:
        """`normal`: a value in its one form, None when it is wrong; `problem` then says why."""
        if len(values) > MAX_FILTERS:
            self.wrong(field, "OUT_OF_RANGE", f"has {len(values)} entries; it may have {MAX_FILTERS}")
        seen: dict[str, int] = {}
        for number, value in enumerate(values[:MAX_FILTERS]):
            key = normal(value)
            if key is None:
                self.wrong(f"{field}[{number}]", "MALFORMED", problem)
            elif seen.setdefault(key, number) != number:
                self.wrong(f"{field}[{number}]", "DUPLICATE", f"is the same as {field}[{seen[key]}]")
        return frozenset(seen)

    def max_events(self, value: int) -> int:
        if not 0 <= value <= MAX_BATCH_EVENTS:
            self.wrong("max_batch_events", "OUT_OF_RANGE", f"is {value}; it must be from 1 to {MAX_BATCH_EVENTS}")
        return value or DEFAULT_BATCH_EVENTS

    def heartbeat(self, request: SubscribeRequest) -> float:
        if not request.HasField("heartbeat_interval"):
            return DEFAULT_HEARTBEAT_SECONDS
        value = request.heartbeat_interval
        seconds = value.seconds + value.nanos / 1e9
        if not MIN_HEARTBEAT_SECONDS <= seconds <= MAX_HEARTBEAT_SECONDS or not 0 <= value.nanos < 1_000_000_000:
            limits = f"{MIN_HEARTBEAT_SECONDS} to {MAX_HEARTBEAT_SECONDS} s"
            self.wrong("heartbeat_interval", "OUT_OF_RANGE", f"must be from {limits}")
        return seconds

    def wrong(self, field: str, kind: str, description: str) -> None:
        self.violations.append(Violation(field, description, kind))
