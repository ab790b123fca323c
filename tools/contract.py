"""Writes docs/contract.md from the contract's descriptors and comments: `make docs`."""

import re
import sys

from tools.descriptors import Contract, ContractError, Failure, Field, Service, load_contract, short

_HEAD = """# The contract

<!-- Generated from proto/ by `make docs`. -->

What can be called, what it answers and how it fails. All fields stand in [proto/](../proto), and
[what they may hold](#what-fields-may-hold) below; [examples.md](examples.md) calls every RPC, and
[consistency.md](consistency.md) says what tokens promise.

- **Errors** of the table come on top of those of any call, above it. Each is a gRPC code with its reasons, which are in
  `google.rpc.ErrorInfo`, and [below](#error-reasons) with what to do. A code without reasons is its own reason.
- **Idempotent**: whether a call may be repeated without a second effect. A command is, when it carries a `request_id`.
- **Consistency**: a *receipt's token* stands for what a command wrote. A query takes one (*token in*) and answers with
  no older state; its answer says in turn how fresh it is (*`as_of` out*).
"""

_REASONS_HEAD = """## Error reasons

The values of `commerce.type.v1.ErrorReason`: the `reason` in `google.rpc.ErrorInfo`, whose `domain` is `tandem`. A
broken business rule is also the `type` of a violation in `google.rpc.PreconditionFailure`, which names every broken
rule. New reasons come with time: treat one that you do not know like its code.

| reason | code | meaning | what to do |
|---|---|---|---|
"""

_FIELDS_HEAD = """## What is wrong with a field

The values of `commerce.type.v1.FieldViolationReason`: the `reason` of a field violation in `google.rpc.BadRequest`.
Every wrong field is named, not the first alone.

| reason | meaning |
|---|---|
"""


_RULES_HEAD = """## What fields may hold

What is checked in requests, as the contract's options say it
([options.proto](../proto/tandem/options/v1/options.proto)). The id that an RPC is about, a `request_id`, `consistency`
and pages are checked as their comments say.

Text can be read as it is written: it has no control characters and no line separators, and none that change its
direction (U+202A to U+202E, U+2066 to U+2069; the marks U+200E and U+200F are taken). What is not empty has a character
that can be seen: zero-width characters, byte order marks, fillers and combining marks alone are none.

| message | field | may hold |
|---|---|---|
"""


def render() -> str:
    """The whole page. Raises ContractError."""
    contract = load_contract()
    parts = [_HEAD]
    parts += [_section(service) for service in sorted(contract.services, key=_place)]
    return "\n".join([*parts, _rules(contract), _reasons(contract), _field_reasons(contract)])


def _place(service: Service) -> tuple[bool, bool, str]:
    """Commands first, then queries, then the others by name."""
    return ".command." not in service.name, ".query." not in service.name, service.name


def _section(service: Service) -> str:
    title = short(service.name)
    rows = [
        _row(
            f"`{rpc.name}`",
            _first_sentence(rpc.text),
            f"`{rpc.request}`",
            f"stream of `{rpc.response}`" if rpc.streams else f"`{rpc.response}`",
            _errors(rpc.errors) or "—",
            rpc.idempotent,
            rpc.consistency,
        )
        for rpc in service.rpcs
    ]
    common = [
        "".join(
            [
                f"- `{it.code}`",
                f" (`{it.reason}`)" if it.reason != it.code else "",
                f" when {it.when}" if it.when else "",
            ]
        )
        for it in service.errors
    ]
    lines = [
        *(f"## {title}", "", f"`{service.name}`", "", service.text, ""),
        *("Errors of any call:", "", *common, ""),
        "| RPC | | request | response | errors | idempotent | consistency |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]
    return "\n".join(lines) + "\n"


def _rules(contract: Contract) -> str:
    rows = [(it, words) for it in contract.fields if (words := in_words(it))]
    lines = []
    for number, (it, words) in enumerate(rows):
        is_first = number == 0 or rows[number - 1][0].message != it.message
        lines.append(_row(f"`{it.message}`" if is_first else "", f"`{it.name}`", words))
    return _RULES_HEAD + "\n".join(lines) + "\n"


def in_words(field: Field) -> str:
    """What the field may hold; empty where its rule leaves that to others."""
    rule = field.rule
    least, most = (getattr(rule, it) if rule.HasField(it) else None for it in ("min", "max"))
    phrases = {
        "a UUID": rule.uuid,
        f"{_range(1 if rule.required else None, rule.max_length)} characters": rule.max_length,
        rule.such: rule.pattern,
        "also line breaks and tabs": rule.lines,
        "no blanks at its ends": rule.trimmed,
        "also what shows nothing": rule.unseen,
        _range(least, most): (least, most) != (None, None),
        "a value of its enum": field.is_enum,
        "a time that is not in the future": rule.past,
        f"one of {', '.join(f'`{it}`' for it in field.names)}": field.names,
        "required": rule.required and not rule.max_length and not rule.max_elements,
    }
    text = ", ".join(words for words, are_true in phrases.items() if are_true)
    if field.may_be_unset and rule.required:
        text = f"where it is set: {text}"
    if not rule.max_elements:
        return text
    elements = _range(rule.min_elements or None, rule.max_elements) + " elements"
    once = f"each `{rule.unique}` once, whatever its case and its Unicode normalization form" if rule.unique else ""
    return ", ".join(filter(None, [elements, once])) + (f"; each {text}" if text else "")


def _range(least: int | None, most: int | None) -> str:
    if least is None or most is None:
        return f"at most {most or 0:,}" if least is None else f"{least:,} or more"
    return f"{least:,} to {most:,}"


def _errors(errors: tuple[Failure, ...]) -> str:
    by_code: dict[str, list[str]] = {}
    for it in errors:
        by_code.setdefault(it.code, []).append(it.reason)
    return "; ".join(
        f"`{code}`" if reasons == [code] else f"`{code}`: " + ", ".join(f"`{reason}`" for reason in reasons)
        for code, reasons in by_code.items()
    )


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.])\s", text, maxsplit=1)[0]


def _reasons(contract: Contract) -> str:
    rows = []
    for it in contract.reasons:
        codes = ", ".join(f"`{code}`" for code in contract.codes_of(it.name))
        rows.append(_row(f"`{it.name}`", codes, it.meaning, it.what_to_do[0].upper() + it.what_to_do[1:]))
    return _REASONS_HEAD + "\n".join(rows) + "\n"


def _field_reasons(contract: Contract) -> str:
    return _FIELDS_HEAD + "\n".join(_row(f"`{it.name}`", it.meaning) for it in contract.field_reasons) + "\n"


if __name__ == "__main__":
    try:
        sys.stdout.write(render())
    except ContractError as error:
        sys.exit(str(error))
