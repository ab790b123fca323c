"""What makes a request wrong in itself. Every violated field is named, not the first."""

import re
from collections.abc import Sequence
from datetime import date
from uuid import UUID

from commerce.query.v1.query_service_pb2 import WatchOrderDetailsRequest
from commerce.type.v1.consistency_pb2 import Consistency
from commerce.type.v1.subscription_status_pb2 import SubscriptionStatus
from query_server.page_token import (
    FIRST_PAGE,
    Cursor,
    MalformedPageToken,
    SearchCursor,
    decode_page_token,
    decode_search_token,
)
from query_server.views import Need
from tandem.feed.token import MalformedToken, Token, decode_token
from tandem.runtime.errors import InvalidArgument, Violation

MAX_BATCH = 100
MAX_PAGE_SIZE = 100
DEFAULT_PAGE_SIZE = 20
MAX_WAIT_SECONDS = 60
MAX_HEARTBEAT_SECONDS = 60
DEFAULT_HEARTBEAT_SECONDS = 15.0
MAX_DAYS = 366

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
# Unicode's category Cc.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CURRENCY = re.compile(r"[A-Z]{3}")
# Stands for an id that is wrong; `finish` raises before anybody uses it.
_NO_ID = UUID(int=0)


class Checker:
    """Collects what is wrong, and returns what is right in the form that the program uses.

    Fields are named as a caller writes them: `order_ids[3]`. What is returned counts only after `finish`.
    """

    def __init__(self, default_max_wait: float) -> None:
        self._default_max_wait = default_max_wait
        self._violations: list[Violation] = []

    def finish(self) -> None:
        """Raises InvalidArgument if anything was wrong."""
        if self._violations:
            raise InvalidArgument(self._violations)

    def uuid(self, field: str, value: str) -> UUID:
        if _UUID.fullmatch(value):
            return UUID(value)
        if value:
            self.wrong(field, "MALFORMED", "must be a UUID such as 0190b5a2-7c1e-7d30-8a44-1f2e3d4c5b6a")
        else:
            self.wrong(field, "REQUIRED", "is required")
        return _NO_ID

    def uuids(self, field: str, values: Sequence[str]) -> list[UUID]:
        """1 to MAX_BATCH ids, each once."""
        if not 1 <= len(values) <= MAX_BATCH:
            self.wrong(field, "OUT_OF_RANGE", f"holds {len(values)} ids; it must hold 1 to {MAX_BATCH}")
        keys = [self.uuid(f"{field}[{number}]", value) for number, value in enumerate(values[:MAX_BATCH])]
        seen: dict[UUID, int] = {}
        for number, key in enumerate(keys):
            first = seen.setdefault(key, number)
            if first != number and key != _NO_ID:
                self.wrong(f"{field}[{number}]", "DUPLICATE", f"is the same as {field}[{first}]")
        return keys

    def optional_uuid(self, field: str, value: str) -> UUID | None:
        return self.uuid(field, value) if value else None

    def statuses(self, field: str, values: Sequence[int]) -> tuple[int, ...]:
        """Values of SubscriptionStatus, each once, in one order however they came."""
        known = set(SubscriptionStatus.values()) - {SubscriptionStatus.SUBSCRIPTION_STATUS_UNSPECIFIED}
        for number, value in enumerate(values):
            if value not in known:
                self.wrong(f"{field}[{number}]", "MALFORMED", f"{value} is no status of a subscription")
        return tuple(sorted(set(values)))

    def dates(self, first: str, first_value: str, last: str, last_value: str) -> tuple[date, date]:
        """A range of 1 to MAX_DAYS days, both ends included, by the fields' names and values; no last is the first."""
        start = self._date(first, first_value)
        end = self._date(last, last_value) if last_value else start
        if start and end:
            days = (end - start).days + 1
            if days < 1:
                self.wrong(last, "OUT_OF_RANGE", f"must not be before {first}")
            elif days > MAX_DAYS:
                self.wrong(last, "OUT_OF_RANGE", f"ends a range of {days} days; it must have at most {MAX_DAYS}")
        return start or date.min, end or date.min

    def _date(self, field: str, value: str) -> date | None:
        try:
            if _DATE.fullmatch(value):
                return date.fromisoformat(value)
        except ValueError:
            pass  # the 30th of February
        if value:
            self.wrong(field, "MALFORMED", "must be a day of the calendar such as 2026-01-31")
        else:
            self.wrong(field, "REQUIRED", "is required")
        return None

    def currency_code(self, field: str, value: str) -> str:
        """May be empty."""
        if value and not _CURRENCY.fullmatch(value):
            self.wrong(field, "MALFORMED", "must be an ISO 4217 code such as USD")
        return value

    def number(self, field: str, value: int, least: int, most: int) -> int:
        if not least <= value <= most:
            self.wrong(field, "OUT_OF_RANGE", f"is {value}; it must be from {least} to {most}")
        return value

    def page_size(self, value: int) -> int:
        return self.number("page_size", value, 0, MAX_PAGE_SIZE) or DEFAULT_PAGE_SIZE

    def page_token(self, text: str, *query: str) -> Cursor:
        """Where the page begins. `query`: the query's name and all its arguments but the page size."""
        if not text:
            return FIRST_PAGE
        try:
            return decode_page_token(text, *query)
        except MalformedPageToken:
            self.wrong("page_token", "MALFORMED", "must be the next_page_token of an answer to the same query")
            return FIRST_PAGE

    def search_token(self, value: str, words: int, *query: str) -> SearchCursor | None:
        """Where the page of a search of so many words begins; None for the first page."""
        if not value:
            return None
        try:
            return decode_search_token(value, words, *query)
        except MalformedPageToken:
            self.wrong("page_token", "MALFORMED", "must be the next_page_token of an answer to the same query")
            return None

    def text(self, field: str, value: str, most: int) -> None:
        """Text of at most `most` characters without control characters."""
        if len(value) > most:
            self.wrong(field, "TOO_LONG", f"is {len(value)} characters long; at most {most} are taken")
        elif _CONTROL.search(value):
            self.wrong(field, "MALFORMED", "must not hold control characters")

    def consistency(self, value: Consistency) -> Need:
        token: Token | None = None
        requirement = value.WhichOneof("requirement")
        if requirement == "at_least_as_fresh":
            try:
                token = decode_token(value.at_least_as_fresh)
            except MalformedToken:
                self.wrong(
                    "consistency.at_least_as_fresh",
                    "MALFORMED",
                    "must be the consistency_token of a receipt or the as_of of an answer",
                )
        elif requirement is not None and not getattr(value, requirement):
            self.wrong(f"consistency.{requirement}", "INVALID", "must be true when set")
        all_writes = requirement == "fully_consistent"
        if not value.HasField("max_wait"):
            return Need(token, self._default_max_wait, all_writes)
        seconds = value.max_wait.seconds + value.max_wait.nanos / 1e9
        if not 0 <= seconds <= MAX_WAIT_SECONDS or not 0 <= value.max_wait.nanos < 1_000_000_000:
            self.wrong("consistency.max_wait", "OUT_OF_RANGE", f"must be from 0 to {MAX_WAIT_SECONDS} s")
        return Need(token, seconds, all_writes)

    def resume_from(self, text: str) -> Token | None:
        """Up to where an earlier watch showed the row; None for a new one."""
        if not text:
            return None
        try:
            return decode_token(text)
        except MalformedToken:
            self.wrong("resume_from", "MALFORMED", "must be the as_of of a message of an earlier watch")
            return None

    def heartbeat_interval(self, request: WatchOrderDetailsRequest) -> float:
        """In seconds."""
        if not request.HasField("heartbeat_interval"):
            return DEFAULT_HEARTBEAT_SECONDS
        given = request.heartbeat_interval
        seconds = given.seconds + given.nanos / 1e9
        if not 1 <= seconds <= MAX_HEARTBEAT_SECONDS or not 0 <= given.nanos < 1_000_000_000:
            self.wrong("heartbeat_interval", "OUT_OF_RANGE", f"must be from 1 to {MAX_HEARTBEAT_SECONDS} s")
        return seconds

    def wrong(self, field: str, kind: str, description: str) -> None:
        self._violations.append(Violation(field, description, kind))
