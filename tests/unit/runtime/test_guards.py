"""What is remembered of who calls, so that a call takes one look: identities by token, permissions by identity."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty
from structlog.testing import capture_logs

from tandem.runtime.call import LocalCall, Method
from tandem.runtime.errors import NotPermitted, Unauthenticated
from tandem.runtime.guards import Guard, Guards
from tandem.runtime.identity import Permission
from tandem.runtime.settings import ServerSettings
from tandem.runtime.tokens import Tokens
from tandem.testing.stack import wait_until
from tests.support.issuer import Issuer, bearer, settings_of

POLICY = '[rpcs."p.Things"]\nGet = ["clerk", "customer:own"]\n'
PATIENCE = 20.0


@pytest.fixture
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    file = tmp_path / "policy.toml"
    file.write_text(POLICY)
    return file


@pytest.fixture
def guards(issuer: Issuer, policy: Path, tmp_path: Path) -> Iterator[Callable[..., Guards]]:
    started: list[Guards] = []

    def new(**token: object) -> Guards:
        keys = tmp_path / "keys.json"
        keys.write_text(issuer.keys())
        guards = Guards(ServerSettings(port=0, **settings_of(keys, policy=policy, **token)))
        started.append(guards)
        return guards

    yield new
    for it in started:
        it.stop()


def permitted(guard: Guard, token: str) -> Permission:
    call = LocalCall(Method("Get", Empty), Empty(), seconds=1, metadata=bearer(token))
    guard.check(call)
    return call.permission


def guard_of(guards: Guards) -> Guard:
    guard = guards.add("/p.Things/Get", owner_field="")
    assert guard is not None
    guards.start()
    return guard


def test_what_a_token_gives_is_made_once_until_there_is_another_policy(
    guards: Callable[..., Guards], issuer: Issuer, policy: Path
) -> None:
    guard = guard_of(guards())
    clerk, customer = issuer.token("clerk", roles=["clerk"]), issuer.token("me", roles=["customer"])
    first = permitted(guard, clerk)
    assert permitted(guard, clerk) is first
    assert (permitted(guard, customer).owner, first.owner) == ("me", None)

    policy.write_text(POLICY.replace("clerk", "keeper"))

    def clerk_is_refused() -> bool:
        try:
            permitted(guard, clerk)
        except NotPermitted:
            return True
        return False

    wait_until(clerk_is_refused, "the new policy is in force", PATIENCE)
    assert permitted(guard, customer).owner == "me"


def test_a_token_that_is_remembered_expires(
    guards: Callable[..., Guards], issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = guard_of(guards(leeway_seconds=0))
    clerk = issuer.token("clerk", roles=["clerk"], seconds=300)
    permitted(guard, clerk)
    later = time.time() + 301
    monkeypatch.setattr("tandem.runtime.guards.time.time", lambda: later)
    with pytest.raises(Unauthenticated, match="expired"):
        permitted(guard, clerk)


def test_no_more_tokens_are_remembered_than_the_setting_says(issuer: Issuer, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(issuer.keys())
    token = ServerSettings(port=0, **settings_of(keys, remembered=2)).authentication.token
    assert token is not None
    tokens = Tokens(token)
    headers = [f"Bearer {issuer.token(f'user-{it}')}" for it in range(3)]
    identities = [tokens.identities[it] for it in headers]
    assert list(tokens.identities) == headers[1:]
    assert tokens.identities[headers[2]] is identities[2]
    again = tokens.identities[headers[0]]
    assert (again.subject, again is identities[0]) == ("user-0", False), "verified again"


def test_without_a_policy_that_was_read_nobody_is_permitted(guards: Callable[..., Guards], issuer: Issuer) -> None:
    guard = guards().add("/p.Things/Get", owner_field="")
    assert guard is not None
    with pytest.raises(AttributeError):
        permitted(guard, issuer.token("clerk", roles=["clerk"]))


def test_a_refusal_is_logged_with_the_name_of_whoever_was_refused(
    guards: Callable[..., Guards], issuer: Issuer
) -> None:
    guard = guard_of(guards())
    with capture_logs() as lines, pytest.raises(NotPermitted):
        permitted(guard, issuer.token("user-7"))
    assert [it["subject"] for it in lines if it["event"] == "audit: refused"] == ["user-7"]
