"""Every RPC of the contract has an example in docs/examples.md. tests/e2e/test_examples.py runs them."""

from pathlib import Path

from tests.support.examples import examples_of
from tools.descriptors import load_contract

EXAMPLES = examples_of((Path(__file__).parents[2] / "docs" / "examples.md").read_text())

WITHOUT_EXAMPLE: set[str] = set()
"""RPCs that have none yet, such as commerce.query.v1.QueryService/GetProduct. To shrink."""


def test_every_rpc_has_an_example() -> None:
    shown = {rpc for example in EXAMPLES for rpc in example.rpcs if rpc.startswith("commerce.")}
    in_contract = {f"{service.name}/{rpc.name}" for service in load_contract().services for rpc in service.rpcs}
    assert shown - in_contract == set(), "examples of RPCs that are not in the contract"
    assert in_contract - shown == WITHOUT_EXAMPLE, "add an example to docs/examples.md (CONTRIBUTING.md says how)"


def test_health_and_reflection_have_an_example_too() -> None:
    assert any("grpc.health.v1.Health/Check" in example.rpcs for example in EXAMPLES)
    assert {word for example in EXAMPLES for word in example.commands.split()} >= {"list", "describe"}


def test_every_example_with_a_call_shows_what_it_prints() -> None:
    silent = [example.line for example in EXAMPLES if "grpcurl -" in example.commands and not example.output]
    assert silent == [], "lines of docs/examples.md: run make examples"
