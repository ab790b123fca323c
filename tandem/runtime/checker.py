"""What makes a request wrong in itself. Every wrong field is named, not the first."""

import re
import unicodedata
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from tandem.runtime.errors import InvalidArgument, Violation

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)

T = TypeVar("T", bound=Hashable)


def is_uuid(value: str) -> bool:
    return _UUID.fullmatch(value) is not None


class Checker:
    """Collects what is wrong. Each method takes the field's path as a caller writes it, `lines[2].quantity`.

    What a method returns counts only after `finish`.
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

    def text(self, field: str, value: str, most: int, *, required: bool = False, lines: bool = False) -> None:
        """Text of at most `most` characters without control characters; `lines` admits line breaks and tabs."""
        if required and not value.strip():
            self.wrong(field, "REQUIRED", "is required")
        elif len(value) > most:
            self.wrong(field, "TOO_LONG", f"is {len(value)} characters long; at most {most} are taken")
        elif any(unicodedata.category(c) == "Cc" and not (lines and c in "\n\r\t") for c in value):
            self.wrong(field, "MALFORMED", "must not hold control characters")

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
        if len(values) > most:
            self.wrong(field, "OUT_OF_RANGE", f"has {len(values)} entries; it may have {most}")
        first: dict[T, int] = {}
        for number, value in enumerate(values[:most]):
            key = read(value)
            if key is None:
                self.wrong(f"{field}[{number}]", "MALFORMED", problem)
            elif first.setdefault(key, number) != number:
                self.wrong(f"{field}[{number}]", "DUPLICATE", f"is the same as {field}[{first[key]}]")
        return list(first)
