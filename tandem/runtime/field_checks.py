"""The checks of a request's fields that the contract says: proto/tandem/options/v1/options.proto tells what it can say.

Made from a message's descriptor when a program starts. What concerns several fields, or needs more than the request, is
checked by hand beside them, with the same Checker.
"""

import re
import unicodedata
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from tandem.options.v1 import options_pb2
from tandem.options.v1.options_pb2 import FieldRule
from tandem.runtime.checker import (
    MISSING,
    Checker,
    Problem,
    moment_problem,
    number_problem,
    text_problem,
    uuid_problem,
)

_MOST = 2**63 - 1
_UNBOUNDED = 2**31

Find = Callable[[Any], Problem | None]
"""What is wrong with a field's value."""


def rule_of(field: FieldDescriptor) -> FieldRule:
    """What the contract says of the field; empty where it says nothing."""
    return field.GetOptions().Extensions[options_pb2.field]


class FieldChecks:
    """The checks of one message, in the order of its fields as far as they are of one kind."""

    def __init__(self, message: Descriptor, but: Collection[str] = (), within: tuple[Descriptor, ...] = ()) -> None:
        """but: fields that somebody else checks. within: the messages around it.

        Raises ValueError for a rule that does not fit its field.
        """
        self._around = (*within, message)
        self._values: list[tuple[str, Find]] = []
        self._settable: list[tuple[str, Find]] = []
        self._moments: list[str] = []
        self._required: list[str] = []
        self._messages: list[tuple[str, FieldChecks]] = []
        self._lists: list[_ListChecks] = []
        self._oneofs = [
            (it.name, [field.name for field in it.fields])
            for it in message.oneofs
            if it.GetOptions().Extensions[options_pb2.required]
        ]
        for field in message.fields:
            if field.name not in but:
                self._add(field, rule_of(field))
        of_others = (self._settable, self._moments, self._required, self._messages, self._lists, self._oneofs)
        self._is_flat = not any(of_others)
        self.are_any = bool(self._values) or not self._is_flat

    def _add(self, field: FieldDescriptor, rule: FieldRule) -> None:
        _must_fit(field, rule)
        if field.is_repeated:
            checks = _ListChecks(field, rule, self._nested(field, rule))
            if checks.are_any:
                self._lists.append(checks)
        elif rule.past:
            self._moments.append(field.name)
        elif field.message_type is not None:
            if rule.required:
                self._required.append(field.name)
            if (nested := self._nested(field, rule)) is not None:
                self._messages.append((field.name, nested))
        elif (find := _find(field, rule)) is not None:
            (self._settable if field.has_presence else self._values).append((field.name, find))

    def _nested(self, field: FieldDescriptor, rule: FieldRule) -> "FieldChecks | None":
        """Of the fields of a field's message; None where there are none."""
        message = field.message_type
        if message is None or rule.unruled or message.file.package == "google.protobuf":
            return None
        if message in self._around:
            raise ValueError(f"{field.full_name} holds itself without an end: say `unruled`, and check it by hand")
        checks = FieldChecks(message, within=self._around)
        return checks if checks.are_any else None

    def check(self, message: Any, check: Checker, path: str = "", now: datetime | None = None) -> None:
        """Names every wrong field to `check`. path: what the fields' names begin with. now: the server's clock."""
        for name, find in self._values:
            if (problem := find(getattr(message, name))) is not None:
                check.is_right(path + name, problem)
        has = message.HasField
        for name, find in self._settable:
            if has(name) and (problem := find(getattr(message, name))) is not None:
                check.is_right(path + name, problem)
        for name in self._moments:
            if has(name):
                assert now is not None, f"{name} is compared with a clock"
                check.is_right(path + name, moment_problem(getattr(message, name), now))
        if self._required or self._oneofs:
            self._name_missing(message, check, path)
        for name, nested in self._messages:
            if has(name):
                nested.check(getattr(message, name), check, f"{path}{name}.", now)
        for it in self._lists:
            it.check(getattr(message, it.name), check, path, now)

    def _name_missing(self, message: Any, check: Checker, path: str) -> None:
        for name in self._required:
            if not message.HasField(name):
                check.is_right(path + name, MISSING)
        for oneof, names in self._oneofs:
            if message.WhichOneof(oneof) is None:
                check.wrong(path + names[0], "REQUIRED", f"one of {', '.join(names)} is required")

    def is_right(self, message: Any) -> bool:
        """Whether nothing is wrong; False where only `check` can say."""
        if not self._is_flat:
            return False
        # Without a generator: every line of an order comes here.
        for name, find in self._values:  # noqa: SIM110
            if find(getattr(message, name)) is not None:
                return False
        return True


class _ListChecks:
    """The checks of a repeated field: of its number of elements, and of each."""

    def __init__(self, field: FieldDescriptor, rule: FieldRule, nested: FieldChecks | None) -> None:
        self.name = field.name
        self._least, self._most = rule.min_elements, rule.max_elements or _UNBOUNDED
        self._unique = rule.unique.split()
        self._find = _find(field, rule) if field.message_type is None else None
        self._nested = nested
        self._find_unique: list[Find] = []
        if self._unique:
            assert field.message_type is not None
            by = [field.message_type.fields_by_name[it] for it in self._unique]
            self._find_unique = [_find(it, rule_of(it)) or _nothing for it in by]

    @property
    def are_any(self) -> bool:
        return bool(self._least or self._most < _UNBOUNDED or self._find or self._nested)

    def check(self, values: Sequence[Any], check: Checker, path: str, now: datetime | None) -> None:
        field = path + self.name
        counted = check.count(field, values, self._most, least=self._least)
        if (find := self._find) is not None:
            for number, value in enumerate(counted):
                if (problem := find(value)) is not None:
                    check.is_right(f"{field}[{number}]", problem)
        elif (nested := self._nested) is not None:
            is_right, unique = nested.is_right, self._unique
            first: dict[tuple[str, ...], int] = {}
            for number, value in enumerate(counted):
                # Most are right: the names of fields are made for the others alone.
                if not is_right(value):
                    nested.check(value, check, f"{field}[{number}].", now)
                    # What is wrong, too long above all, is not compared.
                    finds = zip(unique, self._find_unique, strict=True)
                    if any(find(getattr(value, name)) is not None for name, find in finds):
                        continue
                if unique:
                    compared = tuple([compared_loosely(getattr(value, name)) for name in unique])
                    before = first.setdefault(compared, number)
                    if before != number:
                        wrong = f"{field}[{number}].{unique[-1]}"
                        check.wrong(wrong, "DUPLICATE", f"is that of {field}[{before}] too")


@cache
def field_checks(message: Descriptor) -> FieldChecks:
    """Of all fields of a request. Raises ValueError."""
    return FieldChecks(message)


def compared_loosely(text: str) -> str:
    """Equal for texts that a reader takes for the same name: whatever the case and the composition of their letters."""
    return unicodedata.normalize("NFC", text.casefold())


def _nothing(_value: Any) -> None:
    return None


def _find(field: FieldDescriptor, rule: FieldRule) -> Find | None:
    """What looks at one value of the field; None where anything is right."""
    if rule.uuid:
        return uuid_problem if rule.required or field.is_repeated else _unless_empty(uuid_problem)
    if _is_text(rule):
        return _text(rule)
    if _is_number(rule):
        return _number(rule.min if rule.HasField("min") else -_MOST, rule.max if rule.HasField("max") else _MOST)
    if field.enum_type is not None and (rule.known or rule.required):
        return _enum(field, required=rule.required)
    return None


def _is_text(rule: FieldRule) -> bool:
    return bool(rule.max_length or rule.pattern)


def _is_number(rule: FieldRule) -> bool:
    return rule.HasField("min") or rule.HasField("max")


def _unless_empty(find: Find) -> Find:
    return lambda value: find(value) if value else None


def _number(least: int, most: int) -> Find:
    return lambda value: None if least <= value <= most else number_problem(value, least, most)


def _text(rule: FieldRule) -> Find:
    most, required, lines, unseen, trimmed = rule.max_length, rule.required, rule.lines, rule.unseen, rule.trimmed
    pattern = re.compile(rule.pattern) if rule.pattern else None
    no_match = Problem("MALFORMED", f"must be {rule.such}")

    def find(value: str) -> Problem | None:
        if not value:
            return MISSING if required else None
        # A pattern alone bounds the text, and says what may be in it.
        if most:
            problem = text_problem(value, most, required=required, lines=lines, unseen=unseen)
            if problem is not None:
                return problem
        if trimmed and value.strip() and value != value.strip():
            return Problem("MALFORMED", "must not begin or end with a blank")
        return None if pattern is None or pattern.fullmatch(value) else no_match

    return find


def _enum(field: FieldDescriptor, *, required: bool) -> Find:
    assert field.enum_type is not None
    name, known = field.enum_type.name, set(field.enum_type.values_by_number)
    zero = None
    if required:
        known.discard(0)
        # An element is there, whatever it is.
        zero = None if field.is_repeated else MISSING

    def find(value: int) -> Problem | None:
        if value in known:
            return None
        return zero if zero and value == 0 else Problem("MALFORMED", f"{value} is no {name}")

    return find


_NUMBERS = {
    FieldDescriptor.CPPTYPE_INT32,
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT32,
    FieldDescriptor.CPPTYPE_UINT64,
}


def _must_fit(field: FieldDescriptor, rule: FieldRule) -> None:
    """Raises ValueError for a rule that says nothing of such a field: nobody would check what it promises."""
    message, is_text = field.message_type, field.cpp_type == FieldDescriptor.CPPTYPE_STRING
    fits = [
        not rule.required or rule.uuid or _is_text(rule) or field.enum_type is not None or message is not None,
        # Another field of the oneof may be set: the oneof says that one must.
        not rule.required or message is None or field.containing_oneof is None,
        not (rule.uuid or _is_text(rule)) or is_text,
        _is_text(rule) or not (rule.lines or rule.unseen or rule.trimmed),
        bool(rule.pattern) == bool(rule.such),
        not _is_number(rule) or field.cpp_type in _NUMBERS,
        not rule.known or field.enum_type is not None,
        not rule.past
        or (message is not None and message.full_name == "google.protobuf.Timestamp" and not field.is_repeated),
        not (rule.min_elements or rule.max_elements or rule.unique) or field.is_repeated,
        not rule.unique or (message is not None and set(rule.unique.split()) <= set(message.fields_by_name)),
        not rule.unruled or message is not None,
    ]
    if not all(fits):
        raise ValueError(f"the rule of {field.full_name} does not fit the field: {' '.join(str(rule).split())}")
