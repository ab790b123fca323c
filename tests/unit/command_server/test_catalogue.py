"""What all commands have in common, however many there are: each is asked with a request of its own kind."""

import uuid

import pytest
from google.protobuf.message import Message

from command_server.aggregates import Aggregates
from command_server.catalogue import CATALOGUE
from command_server.command import Command
from command_server.working_set import decide_batch
from tandem.runtime.errors import Conflict, NotFound
from tests.support.builders import (
    NOW,
    add_product,
    command,
    identity,
    place_order,
    register_customer,
    start_subscription,
)

# Commands that the server gives itself are of another package, and compare what they like.
CHANGES = [
    it for it, kind in CATALOGUE.items() if not kind.creates and it.DESCRIPTOR.file.package == "commerce.command.v1"
]
ONE_OF_EACH = {
    "customer_id": (identity("customer", 1), register_customer(1)),
    "product_id": (identity("product", 1), add_product(1)),
    "order_id": (identity("order", 1), place_order(1)),
    "subscription_id": (identity("subscription", 1), start_subscription(1)),
}


def ask(kind: type[Message], subject: str, version: int) -> Command:
    """Straight to the rule, which looks at the version before all else: the other fields need not be right."""
    request = kind(**{CATALOGUE[kind].subject: subject, "expected_version": version})
    return Command(request, str(uuid.uuid4()), subject, NOW)


@pytest.mark.parametrize("kind", CHANGES, ids=lambda it: it.DESCRIPTOR.name)
def test_a_command_that_changes_something_compares_the_version_that_its_caller_has_seen(kind: type[Message]) -> None:
    there = decide_batch([command(it) for _, it in ONE_OF_EACH.values()], Aggregates(), {}).aggregates
    subject, _ = ONE_OF_EACH[CATALOGUE[kind].subject]
    [refusal] = decide_batch([ask(kind, subject, version=2)], there, {}).outcomes
    assert isinstance(refusal, Conflict)
    assert (refusal.reason, refusal.metadata["current_version"]) == ("VERSION_MISMATCH", "1")


@pytest.mark.parametrize("kind", CHANGES, ids=lambda it: it.DESCRIPTOR.name)
def test_a_command_does_not_change_what_is_not_there(kind: type[Message]) -> None:
    [refusal] = decide_batch([ask(kind, identity("nothing"), version=1)], Aggregates(), {}).outcomes
    assert isinstance(refusal, NotFound)
    assert refusal.resource_name == f"{CATALOGUE[kind].subject.removesuffix('_id')}s/{identity('nothing')}"
