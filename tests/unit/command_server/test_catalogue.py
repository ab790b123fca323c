"""What all commands have in common, however many there are: each is asked with a request of its own kind."""

import uuid

import pytest

from command_server.app import DOMAIN
from tandem.commands.batch import decide_batch
from tandem.commands.domain import Command, CommandKind
from tandem.commands.write_model import States
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
    it for it in DOMAIN.kinds.values() if not it.creates and it.request.DESCRIPTOR.file.package == "commerce.command.v1"
]
ONE_OF_EACH = {
    "customer_id": (identity("customer", 1), register_customer(1)),
    "product_id": (identity("product", 1), add_product(1)),
    "order_id": (identity("order", 1), place_order(1)),
    "subscription_id": (identity("subscription", 1), start_subscription(1)),
}


def ask(kind: CommandKind, subject: str, version: int) -> Command:
    """Straight to the rule, which looks at the version before all else: the other fields need not be right."""
    request = kind.request(**{kind.aggregate.id_field: subject, "expected_version": version})
    return Command(kind, request, str(uuid.uuid4()), subject, NOW, b"")


@pytest.mark.parametrize("kind", CHANGES, ids=lambda it: it.request.DESCRIPTOR.name)
def test_a_command_that_changes_something_compares_the_version_that_its_caller_has_seen(kind: CommandKind) -> None:
    there = decide_batch(DOMAIN, [command(it) for _, it in ONE_OF_EACH.values()], States(), {}).states
    subject, _ = ONE_OF_EACH[kind.aggregate.id_field]
    [refusal] = decide_batch(DOMAIN, [ask(kind, subject, version=2)], there, {}).outcomes
    assert isinstance(refusal, Conflict)
    assert (refusal.reason, refusal.metadata["current_version"]) == ("VERSION_MISMATCH", "1")


@pytest.mark.parametrize("kind", CHANGES, ids=lambda it: it.request.DESCRIPTOR.name)
def test_a_command_does_not_change_what_is_not_there(kind: CommandKind) -> None:
    [refusal] = decide_batch(DOMAIN, [ask(kind, identity("nothing"), version=1)], States(), {}).outcomes
    assert isinstance(refusal, NotFound)
    assert refusal.resource_name == f"{kind.aggregate.name}s/{identity('nothing')}"
