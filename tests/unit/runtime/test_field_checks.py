"""What a contract says of its fields is checked; a rule that nobody could check is refused when a program starts."""

from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest
from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import Default
from google.protobuf.message_factory import GetMessageClass

from tandem.runtime.checker import Checker
from tandem.runtime.errors import InvalidArgument
from tandem.runtime.field_checks import FieldChecks
from tests.support.builders import identity

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
_NUMBERS = count()


def message(*fields: str, more: str = "", oneof: str = "") -> type[Any]:
    """A message `M` with fields such as `name: "text" type: TYPE_STRING | max_length: 3`: what it is, and its rule.

    more: other messages and enums of the file. oneof: the options of a oneof.
    """
    parts = []
    for number, field in enumerate(fields, start=1):
        kind, _, rule = field.partition("|")
        label = "" if "label:" in kind else "label: LABEL_OPTIONAL"
        options = f"options {{ [tandem.options.v1.field] {{ {rule} }} }}" if rule else ""
        parts.append(f"field {{ number: {number} {label} {kind} {options} }}")
    package = f"of_tests.number_{next(_NUMBERS)}"
    text = f"""
        name: "{package}.proto" package: "{package}" syntax: "proto3"
        dependency: ["tandem/options/v1/options.proto", "google/protobuf/timestamp.proto"]
        message_type {{ name: "M" {" ".join(parts)} {oneof} }} {more}
    """
    pool = Default()
    pool.Add(text_format.Parse(text.replace("PACKAGE", f".{package}"), FileDescriptorProto()))
    return GetMessageClass(pool.FindMessageTypeByName(f"{package}.M"))


def wrong(request: Any, now: datetime = NOW) -> dict[str, str]:
    check = Checker()
    FieldChecks(request.DESCRIPTOR).check(request, check, now=now)
    try:
        check.finish()
    except InvalidArgument as error:
        return {it.subject: it.kind for it in error.violations}
    return {}


TEXT, IDENTITY, NUMBER = 'name: "text" type: TYPE_STRING', 'name: "id" type: TYPE_STRING', 'name: "n" type: TYPE_INT32'
TIME = 'name: "at" type: TYPE_MESSAGE type_name: ".google.protobuf.Timestamp"'
LIST = 'name: "them" label: LABEL_REPEATED'
COLOUR = """enum_type { name: "Colour"
    value { name: "COLOUR_UNSPECIFIED" number: 0 }
    value { name: "COLOUR_RED" number: 1 }
}"""
ENUM = 'type: TYPE_ENUM type_name: "PACKAGE.Colour"'


@pytest.mark.parametrize(
    ("field", "kinds"),
    [
        (f"{TEXT} | max_length: 3", {"": "", "abc": "", " ": "", "abcd": "TOO_LONG", "a\n": "MALFORMED"}),
        (f"{TEXT} | max_length: 3 lines: true", {"a\n": "", "a\0": "MALFORMED"}),
        (f"{TEXT} | max_length: 3 unseen: true", {"\u200b": "", "\u202e": ""}),
        (f"{TEXT} | max_length: 3", {"\u200b": "MALFORMED", "\u202e": "MALFORMED"}),
        (f"{TEXT} | max_length: 3 trimmed: true", {"": "", " ": "", " a": "MALFORMED", "a ": "MALFORMED"}),
        (f"{TEXT} | required: true max_length: 3", {"": "REQUIRED", " \t": "REQUIRED", "a": ""}),
        (f'{TEXT} | pattern: "[A-Z]{{2}}" such: "two"', {"": "", "AB": "", "ABC": "MALFORMED", "AB\\n": "MALFORMED"}),
        (f'{TEXT} | required: true pattern: "[A-Z]" such: "one"', {"": "REQUIRED", "A": "", " ": "MALFORMED"}),
        (f"{TEXT} | uuid: true", {"": "", "x": "MALFORMED", identity("it").upper(): ""}),
        (f"{TEXT} | required: true uuid: true", {"": "REQUIRED", "x": "MALFORMED", identity("it"): ""}),
        (f"{TEXT} | required: true uuid: true", {identity("it") + "\n": "MALFORMED", "\u0130" * 36: "MALFORMED"}),
    ],
)
def test_texts(field: str, kinds: dict[str, str]) -> None:
    of_kind = message(field)
    assert {text: wrong(of_kind(text=text)).get("text", "") for text in kinds} == kinds


def test_numbers() -> None:
    both, above, unsigned = (
        message(f"{NUMBER} | min: -1 max: 2"),
        message(f"{NUMBER} | min: 1"),
        message('name: "n" type: TYPE_UINT64 | max: 9'),
    )
    assert [n for n in range(-3, 5) if wrong(both(n=n))] == [-3, -2, 3, 4]
    assert wrong(above(n=0)) == {"n": "OUT_OF_RANGE"}
    assert wrong(above(n=2**31 - 1)) == {}
    assert wrong(unsigned(n=2**64 - 1)) == {"n": "OUT_OF_RANGE"}


def test_an_enum_is_one_that_the_contract_names() -> None:
    known = message(f'name: "c" {ENUM} | known: true', more=COLOUR)
    needed = message(f'name: "c" {ENUM} | required: true', more=COLOUR)
    several = message(f"{LIST} {ENUM} | required: true max_elements: 3", more=COLOUR)
    assert [wrong(known(c=it)).get("c") for it in (0, 1, 2)] == [None, None, "MALFORMED"]
    assert [wrong(needed(c=it)).get("c") for it in (0, 1, 2)] == ["REQUIRED", None, "MALFORMED"]
    assert wrong(several(them=[1, 0, 7])) == {"them[1]": "MALFORMED", "them[2]": "MALFORMED"}
    assert wrong(several(them=[1] * 4)) == {"them": "OUT_OF_RANGE"}


def test_a_moment_in_the_future_is_wrong_at_this_moment_alone() -> None:
    of_kind = message(f"{TIME} | past: true")
    request = of_kind(at={"seconds": int(NOW.timestamp()) + 61})
    assert wrong(of_kind()) == {}
    assert wrong(request) == {"at": "OUT_OF_RANGE"}
    assert wrong(request, NOW + timedelta(seconds=1)) == {}
    check = Checker()
    FieldChecks(of_kind.DESCRIPTOR).check(request, check, now=NOW)
    assert check.only_now
    assert wrong(of_kind(at={"nanos": -1})) == {"at": "MALFORMED"}


def test_what_is_set_is_checked_and_what_need_not_be_set_is_not_asked_for() -> None:
    optional = message(
        f"{TEXT} proto3_optional: true oneof_index: 0 | required: true max_length: 3",
        oneof='oneof_decl { name: "_text" }',
    )
    assert wrong(optional()) == {}
    assert wrong(optional(text="")) == {"text": "REQUIRED"}
    either = message(
        f"{TEXT} oneof_index: 0 | required: true max_length: 3",
        f"{NUMBER} oneof_index: 0 | min: 1",
        oneof='oneof_decl { name: "either" options { [tandem.options.v1.required]: true } }',
    )
    assert wrong(either()) == {"text": "REQUIRED"}
    assert wrong(either(n=0)) == {"n": "OUT_OF_RANGE"}
    assert wrong(either(text="abcd")) == {"text": "TOO_LONG"}


INNER = f"""message_type {{ name: "Inner"
    field {{
        number: 1 label: LABEL_OPTIONAL {TEXT}
        options {{ [tandem.options.v1.field] {{ required: true max_length: 3 }} }}
    }}
    field {{ number: 2 label: LABEL_OPTIONAL {IDENTITY} options {{ [tandem.options.v1.field] {{ uuid: true }} }} }}
}}"""
OF_INNER = 'type: TYPE_MESSAGE type_name: "PACKAGE.Inner"'


def test_the_rules_of_a_message_hold_wherever_it_stands_but_where_a_field_says_that_they_do_not() -> None:
    of_kind = message(
        f'name: "one" {OF_INNER} | required: true',
        f'name: "maybe" {OF_INNER}',
        f'name: "other" {OF_INNER} | unruled: true',
        f"{LIST} {OF_INNER} | max_elements: 2",
        more=INNER,
    )
    assert wrong(of_kind()) == {"one": "REQUIRED"}
    assert wrong(of_kind(one={"id": "x"}, maybe={}, other={"id": "x"}, them=[{"text": "a"}, {"id": "x"}])) == {
        "one.text": "REQUIRED",
        "one.id": "MALFORMED",
        "maybe.text": "REQUIRED",
        "them[1].text": "REQUIRED",
        "them[1].id": "MALFORMED",
    }


def test_elements_come_once_and_those_that_are_wrong_are_not_compared() -> None:
    by_text = message(f'{LIST} {OF_INNER} | min_elements: 1 max_elements: 9 unique: "text"', more=INNER)
    by_id = message(f'{LIST} {OF_INNER} | max_elements: 3 unique: "id"', more=INNER)
    assert wrong(by_text()) == {"them": "OUT_OF_RANGE"}
    names = ["\u00e9", "abcd", "abcd", "E\u0301", "", ""]
    assert wrong(by_text(them=[{"text": it} for it in names])) == {
        "them[1].text": "TOO_LONG",
        "them[2].text": "TOO_LONG",
        "them[3].text": "DUPLICATE",
        "them[4].text": "REQUIRED",
        "them[5].text": "REQUIRED",
    }
    one = identity("one")
    alike = [{"text": "a", "id": it} for it in (one, one.upper(), one, one)]
    assert wrong(by_id(them=alike)) == {"them": "OUT_OF_RANGE", "them[1].id": "DUPLICATE", "them[2].id": "DUPLICATE"}


@pytest.mark.parametrize(
    "field",
    [
        f"{NUMBER} | max_length: 3",
        f"{NUMBER} | required: true",
        f"{NUMBER} | past: true",
        f"{NUMBER} | known: true",
        f"{NUMBER} | unruled: true",
        f"{NUMBER} | max_elements: 3",
        f"{TEXT} | min: 3",
        f"{TEXT} | required: true",
        f"{TEXT} | trimmed: true",
        f'{TEXT} | pattern: "a"',
        f'{LIST} {OF_INNER} | unique: "nothing"',
        f"{TIME} label: LABEL_REPEATED | past: true",
    ],
)
def test_a_rule_that_says_nothing_of_its_field_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=r"the rule of of_tests\..*\.M\.\w+ does not fit the field: \w+"):
        FieldChecks(message(field, more=INNER).DESCRIPTOR)


def test_a_message_that_holds_itself_is_refused_unless_somebody_else_checks_it() -> None:
    itself = 'type: TYPE_MESSAGE type_name: "PACKAGE.M"'
    with pytest.raises(ValueError, match="holds itself without an end"):
        FieldChecks(message(f"{LIST} {itself}").DESCRIPTOR)
    of_kind = message(f"{TEXT} | max_length: 3", f"{LIST} {itself} | max_elements: 1 unruled: true")
    assert wrong(of_kind(text="abcd", them=[{"text": "abcd"}] * 2)) == {"text": "TOO_LONG", "them": "OUT_OF_RANGE"}
