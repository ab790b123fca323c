"""Writes docs/contract.md from the contract's descriptors and comments: `make docs`."""

import re
import sys

from tools.descriptors import Contract, ContractError, Failure, Service, load_contract, short

_HEAD = """# The contract

<!-- Generated from proto/ by `make docs`. -->

What can be called, what it answers and how it fails. The fields and their limits stand in [proto/](../proto);
[examples.md](examples.md) calls every RPC, and [consistency.md](consistency.md) says what tokens promise.

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


def render() -> str:
    """The whole page. Raises ContractError."""
    contract = load_contract()
    parts = [_HEAD]
    parts += [_section(service) for service in sorted(contract.services, key=_place)]
    return "\n".join([*parts, _reasons(contract), _field_reasons(contract)])


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
