"""The contract in proto/ as its descriptors and comments tell it.

Comments are read strictly, so that what they say of errors is complete and the same everywhere: see RULE.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    MethodOptions,
    ServiceDescriptorProto,
)
from google.rpc import code_pb2

from tandem.options.v1 import options_pb2
from tandem.options.v1.options_pb2 import FieldRule

ROOT = Path(__file__).parents[1]
REASONS, FIELD_REASONS = "ErrorReason", "FieldViolationReason"

RULE = """
The comment of an RPC ends with a paragraph that names the errors of its own, in one of these forms:

    // Errors: none of its own.
    // Errors: NOT_FOUND when the order is not known; FAILED_PRECONDITION (ORDER_NOT_PAID, OUT_OF_STOCK when …).

that is, codes of gRPC with `; ` between them, each with its reasons in parentheses and `, ` between those. A code
without parentheses has its own name as the reason. `when …` may follow a reason, or a code without reasons; it holds no
parenthesis and no semicolon. The comment of a service has such a paragraph that begins with `Errors of any call:`.
Every reason is a value of ErrorReason (proto/commerce/type/v1/error_reason.proto), with a comment of two paragraphs:
what it means, and `What to do: …`.
"""

_CLAUSE = re.compile(r"(?P<code>[A-Z_]+)(?: \((?P<reasons>[^();]+)\)|(?P<when> when [^();]+))?")
_REASON = re.compile(r"(?P<name>[A-Z][A-Z_]+)(?: when (?P<when>.+))?")
_CODES = set(code_pb2.Code.keys())
# The numbers of fields in descriptor.proto, of which the paths to comments are made.
_SERVICES, _ENUMS, _METHODS, _VALUES = (
    FileDescriptorProto.SERVICE_FIELD_NUMBER,
    FileDescriptorProto.ENUM_TYPE_FIELD_NUMBER,
    ServiceDescriptorProto.METHOD_FIELD_NUMBER,
    EnumDescriptorProto.VALUE_FIELD_NUMBER,
)


class ContractError(Exception):
    """A comment is not as RULE says; the message names where, what, and the rule."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}\n{RULE}")


@dataclass(frozen=True)
class Failure:
    """A code and a reason that a call may fail with. `when` may be empty."""

    code: str
    reason: str
    when: str = ""


@dataclass(frozen=True)
class Rpc:
    """An RPC. `text` is its comment without the errors."""

    name: str
    text: str
    errors: tuple[Failure, ...]
    request: str
    response: str
    streams: bool
    idempotent: str
    consistency: str


@dataclass(frozen=True)
class Service:
    """A service. `errors` are those of any call."""

    name: str
    text: str
    errors: tuple[Failure, ...]
    rpcs: tuple[Rpc, ...]


@dataclass(frozen=True)
class Reason:
    """A reason, without its prefix."""

    name: str
    meaning: str
    what_to_do: str = ""


@dataclass(frozen=True)
class Field:
    """A field of a request, or of a message in requests, whose rule the contract says.

    names: of a oneof, its fields.
    """

    message: str
    name: str
    rule: FieldRule
    is_enum: bool = False
    may_be_unset: bool = False
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contract:
    """All that the page says."""

    services: tuple[Service, ...]
    fields: tuple[Field, ...]
    reasons: tuple[Reason, ...]
    field_reasons: tuple[Reason, ...]

    def codes_of(self, reason: str) -> list[str]:
        """The codes that come with a reason, sorted."""
        every = [failure for service in self.services for failure in _all_errors(service)]
        return sorted({failure.code for failure in every if failure.reason == reason})


@cache
def load_contract() -> Contract:
    """The contract in proto/. Raises ContractError for a comment that cannot be read."""
    files = [file for file in descriptors().file if file.package.startswith("commerce.")]
    messages = {f".{file.package}.{message.name}": message for file in files for message in file.message_type}
    contract = Contract(
        tuple(service for file in files for service in _services(file, messages)),
        tuple(field for file in files for message in file.message_type for field in _fields(message)),
        tuple(reason for file in files for reason in _reasons(file, REASONS)),
        tuple(reason for file in files for reason in _reasons(file, FIELD_REASONS)),
    )
    _check(contract)
    return contract


def parse_errors(where: str, text: str) -> tuple[Failure, ...]:
    """What follows on `Errors:`. Raises ContractError."""
    if text == "none of its own.":
        return ()
    if not text.endswith("."):
        raise ContractError(where, "the errors do not end with a full stop")
    found: list[Failure] = []
    for clause in text.removesuffix(".").split("; "):
        match = _CLAUSE.fullmatch(clause)
        if match is None:
            raise ContractError(where, f"“{clause}” is not a code with its reasons")
        code = match["code"]
        if code not in _CODES or code == "OK":
            raise ContractError(where, f"{code} is not an error code of gRPC")
        if match["reasons"] is None:
            found.append(Failure(code, code, (match["when"] or "").removeprefix(" when ")))
            continue
        # A comma before a word that is not in capitals belongs to an explanation.
        for part in re.split(r", (?=[A-Z][A-Z_]+\b)", match["reasons"]):
            reason = _REASON.fullmatch(part)
            if reason is None:
                raise ContractError(where, f"“{part}” is not a reason, nor a reason with `when …`")
            found.append(Failure(code, reason["name"], reason["when"] or ""))
    return tuple(found)


@cache
def descriptors() -> FileDescriptorSet:
    """With comments, which the descriptors in gen/ lack."""
    beside = Path(sys.executable).with_name("buf")
    command = [str(beside) if beside.exists() else "buf", "build", "--as-file-descriptor-set", "--output=-"]
    output = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    return FileDescriptorSet.FromString(output)


def _services(file: FileDescriptorProto, messages: dict[str, DescriptorProto]) -> Iterator[Service]:
    for number, service in enumerate(file.service):
        path = (_SERVICES, number)
        name = f"{file.package}.{service.name}"
        text, errors = _split(name, _comment(file, path), "Errors of any call:")
        rpcs = tuple(
            _rpc(f"{service.name}.{method.name}", method, _comment(file, (*path, _METHODS, position)), messages)
            for position, method in enumerate(service.method)
        )
        yield Service(name, text, errors, rpcs)


def _fields(message: DescriptorProto) -> Iterator[Field]:
    for it in message.field if not message.options.HasExtension(options_pb2.view) else ():
        if it.options.HasExtension(options_pb2.field):
            rule = it.options.Extensions[options_pb2.field]
            is_enum = it.type == FieldDescriptorProto.TYPE_ENUM
            yield Field(message.name, it.name, rule, is_enum, it.HasField("oneof_index"))
    for number, oneof in enumerate(message.oneof_decl):
        if oneof.options.Extensions[options_pb2.required]:
            names = tuple(it.name for it in message.field if it.HasField("oneof_index") and it.oneof_index == number)
            yield Field(message.name, oneof.name, FieldRule(required=True), names=names)


def _rpc(where: str, method: MethodDescriptorProto, comment: str, messages: dict[str, DescriptorProto]) -> Rpc:
    text, errors = _split(where, comment, "Errors:")
    takes = {field.name for field in messages[method.input_type].field}
    gives = {field.name for field in messages[method.output_type].field}
    return Rpc(
        name=method.name,
        text=text,
        errors=errors,
        request=short(method.input_type),
        response=short(method.output_type),
        streams=method.server_streaming,
        idempotent=_idempotent(method, takes),
        consistency=_consistency(takes, gives),
    )


def _idempotent(method: MethodDescriptorProto, takes: set[str]) -> str:
    if method.options.idempotency_level != MethodOptions.IDEMPOTENCY_UNKNOWN:
        return "yes"
    return "with `request_id`" if "request_id" in takes else "no"


def _consistency(takes: set[str], gives: set[str]) -> str:
    if "receipt" in gives:
        return "receipt's token"
    parts = ["token in" if "consistency" in takes else "", "`as_of` out" if "as_of" in gives else ""]
    return ", ".join(filter(None, parts)) or "—"


def _reasons(file: FileDescriptorProto, name: str) -> Iterator[Reason]:
    for number, enum in enumerate(file.enum_type):
        if enum.name != name:
            continue
        prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", name).upper() + "_"
        for position, value in enumerate(enum.value):
            if value.number == 0:
                continue
            comment = _comment(file, (_ENUMS, number, _VALUES, position))
            meaning, _, what_to_do = _joined(comment).partition(" What to do: ")
            if name == REASONS and not what_to_do:
                raise ContractError(value.name, "the comment does not say what to do")
            yield Reason(value.name.removeprefix(prefix), meaning, what_to_do)


def _check(contract: Contract) -> None:
    known = {reason.name for reason in contract.reasons}
    for service in contract.services:
        for where, failures in [(service.name, service.errors), *((rpc.name, rpc.errors) for rpc in service.rpcs)]:
            for failure in failures:
                if failure.reason not in known:
                    raise ContractError(where, f"the reason {failure.reason} is not a value of ErrorReason")
    for name in sorted(known):
        if not contract.codes_of(name):
            raise ContractError(f"ErrorReason {name}", "no service and no RPC names it among its errors")


def _all_errors(service: Service) -> Iterator[Failure]:
    yield from service.errors
    for rpc in service.rpcs:
        yield from rpc.errors


def _split(where: str, comment: str, mark: str) -> tuple[str, tuple[Failure, ...]]:
    """The comment before `mark`, and the errors after it, which are its last paragraph."""
    paragraphs = [_joined(paragraph) for paragraph in comment.split("\n\n")]
    errors = [paragraph for paragraph in paragraphs if paragraph.startswith(mark)]
    if len(errors) != 1 or not paragraphs[0] or paragraphs[0] == errors[0]:
        raise ContractError(where, f"the comment has no text, or not one paragraph that begins with `{mark}`")
    text = "\n\n".join(paragraph for paragraph in paragraphs if paragraph != errors[0])
    return text, parse_errors(where, errors[0].removeprefix(mark).strip())


def _comment(file: FileDescriptorProto, path: tuple[int, ...]) -> str:
    """The comment above a declaration, without the blank that follows each `//`; empty when there is none."""
    for location in file.source_code_info.location:
        if tuple(location.path) == path:
            return "\n".join(line.removeprefix(" ") for line in location.leading_comments.strip().splitlines())
    return ""


def _joined(text: str) -> str:
    return " ".join(text.split())


def short(type_name: str) -> str:
    return type_name.rsplit(".", 1)[1]
