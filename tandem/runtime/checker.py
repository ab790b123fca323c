"""What makes a request wrong in itself. Every wrong field is named, not the first; at most MAX_VIOLATIONS of them.

Texts are measured and elements counted before anything else is done with them: `text` and `count` say how.
"""

import re
import unicodedata
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from tandem.runtime.errors import InvalidArgument, Violation

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_CONTROLS_BUT_LINES = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029]")
_DIRECTIONS = re.compile("[\u202a-\u202e\u2066-\u2069]")
"""What orders a text otherwise than its letters do, so that it reads as another."""
# Marks, controls, formats and blanks; and the letters and the sign that are drawn as nothing.
_UNSEEN = frozenset({"Mn", "Mc", "Me", "Cc", "Cf", "Zs", "Zl", "Zp"})
_BLANK_LETTERS = frozenset("\u115f\u1160\u2800\u3164\uffa0")

MAX_VIOLATIONS = 20
"""More are not looked for: who sends a million wrong values gets these, and no more of our time."""

T = TypeVar("T", bound=Hashable)
V = TypeVar("V")


def is_uuid(value: str) -> bool:
    return _UUID.fullmatch(value) is not None


def shows_something(value: str) -> bool:
    return any(unicodedata.category(it) not in _UNSEEN and it not in _BLANK_LETTERS for it in value)


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
    def only_now(self) -> bool:
        """Whether all that is wrong is wrong at this moment alone."""
        return self._of_now == len(self._violations)

    def wrong(self, field: str, kind: str, description: str) -> None:
        """kind: a FieldViolationReason of the contract. description: a sentence that goes on from the field's name."""
        if len(self._violations) == MAX_VIOLATIONS:
            description = f"there are more; these are the first {MAX_VIOLATIONS}"
            raise InvalidArgument([*self._violations, Violation("", description, "MORE_VIOLATIONS")])
        self._violations.append(Violation(field, description, kind))

    def wrong_now(self, field: str, kind: str, description: str) -> None:
        """As `wrong`, for what another server, or this one later, may find right."""
        self._of_now += 1
        self.wrong(field, kind, description)

    def uuid(self, field: str, value: str) -> bool:
        """Whether it is one; it is required."""
        if is_uuid(value):
            return True
        if value:
            self.wrong(field, "MALFORMED", "must be a UUID such as 0190b5a2-7c1e-7d30-8a44-1f2e3d4c5b6a")
        else:
            self.wrong(field, "REQUIRED", "is required")
        return False

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
        if len(value) > most:
            self.wrong(field, "TOO_LONG", f"is {len(value)} characters long; at most {most} are taken")
        elif required and not value.strip():
            self.wrong(field, "REQUIRED", "is required")
        elif (_CONTROLS_BUT_LINES if lines else _CONTROLS).search(value):
            self.wrong(field, "MALFORMED", "must not hold control characters")
        elif value.isascii() or unseen:
            return True
        elif _DIRECTIONS.search(value):
            self.wrong(field, "MALFORMED", "must not hold characters that change the direction of text")
        elif not shows_something(value):
            self.wrong(field, "MALFORMED", "must hold a character that can be seen")
        else:
            return True
        return False

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
        if not least <= value <= most:
            self.wrong(field, "OUT_OF_RANGE", f"is {value}; it must be from {least} to {most}")
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
