"""What the contract says of errors is what the code does: every reason, and every command's own errors."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
from google.protobuf.message import Message

from command_server.app import DOMAIN
from tandem.runtime import errors
from tools.descriptors import load_contract

ROOT = Path(__file__).parents[2]
PACKAGES = ("tandem", "shop", "command_server", "query_server", "projector")

# Where a call's reason stands: the argument's name, and its place among the positional ones.
REASON_OF_CALL = {
    "refusal": ("kind", 0),
    "wrong": ("kind", 1),
    "_wrong": ("kind", 1),
    "Problem": ("kind", 0),
    "Violation": ("kind", 2),
}

_OWN = "refuses a command that the server gives itself"
NEVER_SEEN = {"PERIOD_NOT_OVER": _OWN, "SUBSCRIPTION_GOES_ON": _OWN}
"""Reasons that no caller gets, and why."""

PUBLIC_COMMANDS = [it for it in DOMAIN.kinds if it.DESCRIPTOR.file.package == "commerce.command.v1"]


def literals(node: ast.expr) -> list[str]:
    """The texts that an expression may be; none for one that passes another's reason on."""
    match node:
        case ast.Constant(value=str() as text):
            return [text]
        case ast.IfExp(body=body, orelse=orelse):
            return [*literals(body), *literals(orelse)]
        case ast.Name(id="kind" | "reason") | ast.Attribute(attr="kind" | "reason"):
            return []
        case ast.Attribute(value=ast.Subscript(), attr="kind"):
            return []
    raise AssertionError(f"line {node.lineno}: a reason is written out where it is raised, not computed")


def callee(call: ast.Call) -> str:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def raised_in(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """The function that is called with a reason, and the reason."""
    known = {name for name in vars(errors) if name[0].isupper()} | {"__init__", "ErrorInfo", "add"}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            defaults = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            yield from (
                (node.name, str(it.value))
                for argument, it in defaults
                if argument.arg == "reason" and isinstance(it, ast.Constant)
            )
        if not isinstance(node, ast.Call):
            continue
        name = callee(node)
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        if name in REASON_OF_CALL:
            keyword, place = REASON_OF_CALL[name]
            argument = given.get(keyword, node.args[place] if place < len(node.args) else None)
            default = errors.Violation("", "").kind
            yield from ((name, text) for text in (literals(argument) if argument else [default]))
        elif name in known:
            for keyword in ("reason", "type"):
                if keyword in given:
                    yield from ((name, text) for text in literals(given[keyword]))


@cache
def raised() -> set[tuple[str, str]]:
    # The client library reads reasons; it raises none of its own.
    client = ROOT / "tandem" / "client"
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if client not in path.parents]
    return {it for path in paths for it in raised_in(ast.parse(path.read_text()))}


def test_every_reason_that_is_raised_is_in_the_contract_and_the_other_way_round() -> None:
    in_code = {reason for _, reason in raised()}
    reasons, fields = ({it.name for it in group} for group in (load_contract().reasons, load_contract().field_reasons))
    assert in_code - reasons - fields == set(NEVER_SEEN), "raised, but not in ErrorReason or FieldViolationReason"
    assert (reasons | fields) - in_code == set(), "in the contract, but never raised"


def test_a_broken_rule_is_an_error_reason_and_a_wrong_field_a_field_violation_reason() -> None:
    reasons, fields = ({it.name for it in group} for group in (load_contract().reasons, load_contract().field_reasons))
    assert {reason for call, reason in raised() if call == "refusal"} <= reasons | set(NEVER_SEEN)
    assert {reason for call, reason in raised() if call in {"wrong", "_wrong", "Problem"}} <= fields


def test_what_is_raised_is_found_in_code() -> None:
    source = """
    def rule(request, kind, *, reason: str = "BY_DEFAULT"):
        check.wrong("field", "WRONG_FIELD", "text")
        raise refusal("REFUSED" if request else "NOT_REFUSED", "subject", "text")
        raise Unavailable("text", reason="AWAY")
        raise PreconditionFailed([Violation("subject", "text", "VIOLATED"), Violation("subject", "text", kind)])
        other("text", reason="of something else")
    """
    found = {reason for _, reason in raised_in(ast.parse(textwrap.dedent(source)))}
    assert found == {"BY_DEFAULT", "WRONG_FIELD", "REFUSED", "NOT_REFUSED", "AWAY", "VIOLATED"}


def test_a_reason_that_is_computed_is_refused() -> None:
    with pytest.raises(AssertionError, match="written out"):
        list(raised_in(ast.parse("refusal(f'ORDER_NOT_{status}', '', '')")))


RULES = ("command_server.", "tandem.commands.")


def functions_of(rule: Callable[..., Any]) -> set[FunctionType]:
    """The function and all functions of the rules that it calls."""
    found: set[FunctionType] = set()
    waiting = [rule]
    while waiting:
        function = waiting.pop()
        assert isinstance(function, FunctionType)
        if function in found:
            continue
        found.add(function)
        called: list[object] = []
        for node in ast.walk(tree_of(function)):
            match node:
                case ast.Name(id=name):
                    called.append(function.__globals__.get(name))
                case ast.Attribute(value=ast.Name(id=name), attr=method):
                    called.append(getattr(type(function.__globals__.get(name)), method, None))
        waiting += [it for it in called if isinstance(it, FunctionType) and it.__module__.startswith(RULES)]
    return found


def tree_of(function: FunctionType) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(function)))


def errors_of(rule: Callable[..., Any]) -> set[tuple[str, str]]:
    """The codes and reasons that a rule may refuse with."""
    found: set[tuple[str, str]] = set()
    for function in functions_of(rule):
        tree = tree_of(function)
        found |= {("FAILED_PRECONDITION", it) for call, it in raised_in(tree) if call in {"refusal", "Violation"}}
        calls = {callee(node) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        found |= {
            (code, code)
            for name, code in (("NotFound", "NOT_FOUND"), ("AlreadyExists", "ALREADY_EXISTS"))
            if name in calls
        }
    return found


@pytest.mark.parametrize("request_type", PUBLIC_COMMANDS, ids=lambda it: it.DESCRIPTOR.name.removesuffix("Request"))
def test_a_commands_errors_in_the_contract_are_those_of_its_rule(request_type: type[Message]) -> None:
    [rpc] = [
        rpc
        for service in load_contract().services
        for rpc in service.rpcs
        if rpc.request == request_type.DESCRIPTOR.name
    ]
    in_contract = {(it.code, it.reason) for it in rpc.errors}
    assert in_contract == errors_of(DOMAIN.kinds[request_type].decide)
