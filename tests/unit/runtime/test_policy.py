"""What a policy says, and what is wrong with one."""

from pathlib import Path
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty

from tandem.runtime.call import LocalCall, Method
from tandem.runtime.errors import NotPermitted
from tandem.runtime.guards import Guard
from tandem.runtime.identity import Identity
from tandem.runtime.policy import Policy, PolicyFile, Rule, parse
from tandem.runtime.settings import SettingsError

OWNED = {"/p.Things/Get": True, "/p.Things/List": False, "/p.Things/Drop": False}
RELAY = Identity("spiffe://a/relay", "certificate")


def rules(text: str) -> dict[str, Rule]:
    """By the RPC's name."""
    return {path.rsplit("/", 1)[1]: rule for path, rule in parse(text, OWNED).rules.items()}


def test_what_is_not_named_nobody_may_call() -> None:
    assert rules("") == {"Get": Rule(), "List": Rule(), "Drop": Rule()}
    assert rules('[rpcs."q.Others"]\nGet = ["clerk"]') == rules(""), "another server's"


def test_roles_have_all_or_their_own() -> None:
    found = rules('[rpcs."p.Things"]\nGet = ["clerk", "customer:own"]\nList = []\n"*" = ["operator", "operator:own"]')
    assert found["Get"] == Rule(frozenset({"clerk"}), frozenset({"customer"}))
    assert found["List"] == Rule()
    assert found["Drop"] == Rule(frozenset({"operator"})), "nothing there is anybody's own"


def test_a_certificate_has_the_roles_that_the_policy_gives_it_and_a_token_those_that_it_says() -> None:
    policy = parse('[subjects]\n"spiffe://a/relay" = ["follower"]', OWNED)
    assert policy.roles_of(RELAY) == {"follower"}
    assert policy.roles_of(Identity("spiffe://a/other", "sidecar")) == frozenset()
    assert policy.roles_of(Identity(RELAY.subject, "token", frozenset({"clerk"}))) == {"clerk"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[rpcs", "Expected"),
        ("[roles]", r"\[roles\] is no section: personal_data, rpcs, subjects are"),
        ("rpcs = 1", r"\[rpcs\] must be a section"),
        ('[rpcs]\n"p.Things" = ["clerk"]', "must be a section, with a list of roles for each RPC"),
        ('[rpcs."p.Things"]\nGet = "clerk"', r'\[rpcs."p.Things"\] Get must be a list of roles'),
        ('[rpcs."p.Things"]\nGet = ["a b"]', "words without blanks"),
        ('[rpcs."p.Things"]\nGet = [":own"]', "words without blanks"),
        ('[rpcs."p.Things"]\nGot = ["clerk"]', "Got: there is no such RPC"),
        ('[rpcs."p.Things"]\nList = ["clerk:own"]', "it is not known whose List is"),
        ('[subjects]\n"x" = [1]', r'\[subjects\] "x" must be a list of roles'),
        ("[personal_data]\nrole = []", r"\[personal_data\] role: roles is all that there is"),
    ],
)
def test_what_is_wrong_is_named(text: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=problem):
        parse(text, OWNED)
    file = tmp_path / "policy.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=r"policy\.toml"):
        PolicyFile(file, OWNED).read()


def test_all_that_is_wrong_is_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"Got.*there is no such RPC") as raised:
        parse('[rpcs."p.Things"]\nGot = []\nGet = 1\n[subjects]\na = 1', OWNED)
    assert str(raised.value).count(";") == 2


def test_a_policy_without_a_file_is_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        PolicyFile(tmp_path / "none.toml", OWNED).read()


def test_personal_data_is_for_those_who_are_named() -> None:
    assert parse("", OWNED) == Policy(parse("", OWNED).rules, {}, frozenset())
    assert parse('[personal_data]\nroles = ["privacy"]', OWNED).personal == {"privacy"}


def test_a_file_that_is_half_written_is_not_looked_at(tmp_path: Path) -> None:
    whole = '[rpcs."p.Things"]\nGet = ["clerk"]\nDrop = ["clerk"]\n'
    file = tmp_path / "policy.toml"
    file.write_text(whole)
    policy = PolicyFile(file, OWNED)
    policy.read()
    for half in ("", whole[: whole.index("Drop")]):
        file.write_text(half)
        policy._look()
        assert policy.policy.rules["/p.Things/Drop"].everything == {"clerk"}
    file.write_text(whole.replace("clerk", "keeper"))
    policy._look()
    policy._look()
    assert policy.policy.rules["/p.Things/Drop"].everything == {"keeper"}


def test_everybody_may_have_what_is_their_own(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text('[rpcs."p.Things"]\nGet = ["clerk", "*:own"]\n')
    policy = PolicyFile(file, OWNED)
    policy.read()

    def whose(**who: Any) -> str | None:
        """Whose things are seen; None for all."""
        identity = Identity("user-1", "token", **who)
        call = LocalCall(Method("Get", Empty), Empty(), seconds=1)
        Guard("/p.Things/Get", lambda _: identity, policy).check(call)
        return call.owner

    assert whose(owner="me") == "me"
    assert whose(roles=frozenset({"clerk"}), owner="me") is None
    with pytest.raises(NotPermitted):
        whose()
