"""What is told of commands whose COMMIT is in doubt, through all attempts of their batch."""

import psycopg.errors
from google.protobuf.message import Message
from sqlalchemy.exc import DBAPIError

from tandem.commands.domain import Command
from tandem.commands.executor import _Failures
from tandem.commands.receipts import Receipt
from tandem.runtime.errors import Unavailable
from tests.support.builders import add_product, command


def failure(cause: psycopg.Error, *, broken: bool = False) -> DBAPIError:
    return DBAPIError("", None, cause, connection_invalidated=broken)


def receipt_of(it: Command) -> Receipt:
    return Receipt(it.request_id, it.fingerprint, it.subject_id, 1, 1)


def commands(*requests: Message) -> list[Command]:
    return [command(it) for it in requests]


def test_a_command_in_doubt_is_never_said_to_have_done_nothing() -> None:
    stored, other = commands(add_product(1), add_product(2))
    failures = _Failures(10)
    failures.committing = [receipt_of(stored)]
    assert failures.may_pass(failure(psycopg.OperationalError("cut"), broken=True))
    # What fails at later attempts, and in how many pieces, changes nothing about it.
    for last in (failure(psycopg.errors.LockNotAvailable()), failure(psycopg.errors.QueryCanceled())):
        assert not failures.may_pass(last)
        told = {type(it): it.reason for it in failures.given_up([stored], last) if isinstance(it, Unavailable)}
        assert told == {Unavailable: "OUTCOME_UNKNOWN"}
    reasons = [it.reason for it in failures.given_up([stored, other], last) if isinstance(it, Unavailable)]
    assert reasons == ["OUTCOME_UNKNOWN", "STORE_UNAVAILABLE"]


def test_a_failure_before_the_commit_leaves_nothing_in_doubt() -> None:
    [stored] = commands(add_product(1))
    failures = _Failures(10)
    failures.may_pass(failure(psycopg.OperationalError("cut"), broken=True))
    assert not failures.in_doubt(stored)
    failures.committing = [receipt_of(stored)]
    failures.may_pass(failure(psycopg.errors.DeadlockDetected()))
    assert not failures.in_doubt(stored)


def test_the_receipt_of_an_own_attempt_is_no_replay_and_that_of_another_call_is() -> None:
    stored, before = commands(add_product(1), add_product(2))
    failures = _Failures(10)
    failures.committing = [receipt_of(stored)]
    failures.may_pass(failure(psycopg.OperationalError("cut"), broken=True))
    found = [receipt_of(it)._replace(replayed=True) for it in (stored, before, stored)]
    assert [it.replayed for it in failures.resolved([*found]) if isinstance(it, Receipt)] == [False, True, True]
