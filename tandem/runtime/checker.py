"""What makes a request wrong in itself. Every wrong field is named, not the first; at most MAX_VIOLATIONS of them.

Texts are measured and elements counted before anything else is done with them: `text` and `count` say how.
"""

import re
import unicodedata
from collections.abc import Callable, Hashable, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from tandem.runtime.errors import InvalidArgument, Violation

# Both cases spelled out take 0.19 µs, and re.IGNORECASE 0.44 µs.
_UUID = re.compile("[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}")

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_CONTROLS_BUT_LINES = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029]")
_DIRECTIONS = re.compile("[\u202a-\u202e\u2066-\u2069]")
"""What orders a text otherwise than its letters do, so that it reads as another."""
# Marks, controls, formats and blanks; and the letters and the sign that are drawn as nothing.
_UNSEEN = frozenset({"Mn", "Mc", "Me", "Cc", "Cf", "Zs", "Zl", "Zp"})
_BLANK_LETTERS = frozenset("\u115f\u1160\u2800\u3164\uffa0")

MAX_VIOLATIONS = 20
"""More are not looked for: who sends a million wrong values gets these, and no more of our time."""

# Clocks of caller and server differ; a minute is more than NTP leaves.
_CLOCK_SKEW = timedelta(minutes=1)


class Problem(NamedTuple):
    """What is wrong with a value. kind: a FieldViolationReason of the contract. description: goes on from the field."""

    kind: str
    description: str


MISSING = Problem("REQUIRED", "is required")
IN_FUTURE = Problem("OUT_OF_RANGE", "must not be in the future")
"""Wrong at this moment alone."""
_NO_UUID = Problem("MALFORMED", "must be a UUID such as 0190b5a2-7c1e-7d30-8a44-1f2e3d4c5b6a")
_NO_TIME = Problem("MALFORMED", "must be a time from year 1 to 9999 with 0 to 999,999,999 nanoseconds")

T = TypeVar("T", bound=Hashable)
V = TypeVar("V")


def is_uuid(value: str) -> bool:
    return _UUID.fullmatch(value) is not None


def shows_something(value: str) -> bool:
    return any(unicodedata.category(it) not in _UNSEEN and it not in _BLANK_LETTERS for it in value)


def uuid_problem(value: str) -> Problem | None:
    """Of what must be a UUID."""
    if _UUID.fullmatch(value) is not None:
        return None
    return _NO_UUID if value else MISSING


def number_problem(value: int, least: int, most: int) -> Problem | None:
    if least <= value <= most:
        return None
    return Problem("OUT_OF_RANGE", f"is {value}; it must be from {least} to {most}")


def text_problem(
    value: str, most: int, *, required: bool = False, lines: bool = False, unseen: bool = False
) -> Problem | None:
    """Of what must be text, as Checker.text has it."""
    if len(value) > most:
        return Problem("TOO_LONG", f"is {len(value)} characters long; at most {most} are taken")
    if required and not value.strip():
        return MISSING
    if (_CONTROLS_BUT_LINES if lines else _CONTROLS).search(value):
        return Problem("MALFORMED", "must not hold control characters")
    if value.isascii() or unseen:
        return None
    if _DIRECTIONS.search(value):
        return Problem("MALFORMED", "must not hold characters that change the direction of text")
    return None if shows_something(value) else Problem("MALFORMED", "must hold a character that can be seen")


def moment_problem(value: Timestamp, now: datetime) -> Problem | None:
    """Of a moment that must not be in the future; in UTC."""
    try:
        moment = value.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        return _NO_TIME
    return IN_FUTURE if moment > now + _CLOCK_SKEW else None


class Checker:
    """Collects what is wrong. Each method takes the field's path as a caller writes it, `lines[2].quantity`.

    What a method returns counts only after `finish`. Any method raises InvalidArgument when it finds something wrong
    and MAX_VIOLATIONS were found before.
    """

    def __init__(self) -> None:
        self._violations: list[Violation] = []
        self._of_now = 0

    def finish(self) -> None:
        """Raises InvalidArgument if anything was wrong."""
        if self._violations:
            raise InvalidArgument(self._violations)

    @property
    def found_any(self) -> bool:
        """Whether anything is wrong so far."""
        return bool(self._violations)

    @property
    def only_now(self) -> bool:
        """Whether all that is wrong is wrong at this moment alone."""
        return self._of_now == len(self._violations)

    def wrong(self, field: str, kind: str, description: str) -> None:
        """kind: a FieldViolationReason of the contract. description: a sentence that goes on from the field's name."""
        if len(self._violations) == MAX_VIOLATIONS:
            description = f"there are more; these are the first {MAX_VIOLATIONS}"
            raise InvalidArgument([*self._violations, Violation("", description, "MORE_VIOLATIONS")])
        self._violations.append(Violation(field, description, kind))

    def is_right(self, field: str, problem: Problem | None) -> bool:
        """Whether there is no problem; notes the one that there is."""
        if problem is None:
            return True
        if problem is IN_FUTURE:
            self._of_now += 1
        self.wrong(field, problem.kind, problem.description)
        return False

    def uuid(self, field: str, value: str) -> bool:
        """Whether it is one; it is required."""
        return self.is_right(field, uuid_problem(value))

    def text(
        self,
        field: str,
        value: str,
        most: int,
        *,
        required: bool = False,
        lines: bool = False,
        unseen: bool = False,
    ) -> bool:
        """Whether it is text of at most `most` characters that can be read as it is written: without control characters
        and line separators, without what changes its direction, and with something to see.

        lines: admits line breaks and tabs. unseen: admits what shows nothing or changes the direction, for what is
        searched for and not kept. What takes longer than to look at each character is to be done with no other text.
        """
        return self.is_right(field, text_problem(value, most, required=required, lines=lines, unseen=unseen))

    def count(self, field: str, values: Sequence[V], most: int, *, least: int = 0) -> Sequence[V]:
        """The elements of a repeated field, without those past the limit. Nobody looks at the field but through this.

        `least` to `most` elements are right.
        """
        if least <= len(values) <= most:
            return values
        wanted = f"{least} to {most}" if least else f"at most {most}"
        self.wrong(field, "OUT_OF_RANGE", f"has {len(values)} elements; it may have {wanted}")
        return values[:most]

    def number(self, field: str, value: int, least: int, most: int) -> int:
        self.is_right(field, number_problem(value, least, most))
        return value

    def distinct(
        self, field: str, values: Sequence[str], most: int, read: Callable[[str], T | None], problem: str
    ) -> list[T]:
        """At most `most` values, each once; those that are right, in their order.

        read: a value in the form in which two are compared, None when it is wrong; `problem` then says why.
        """
        first: dict[T, int] = {}
        for number, value in enumerate(self.count(field, values, most)):
            key = read(value)
            if key is None:
                self.wrong(f"{field}[{number}]", "MALFORMED", problem)
            elif first.setdefault(key, number) != number:
                self.wrong(f"{field}[{number}]", "DUPLICATE", f"is the same as {field}[{first[key]}]")
        return list(first)
