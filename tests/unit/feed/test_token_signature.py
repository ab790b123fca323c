"""Tokens that are signed."""

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import SecretStr

from tandem.feed.token import MalformedToken, Token, decode_token, encode_token
from tandem.feed.token_signature import PAGE_TOKENS, SignedTokenSettings, sign_tokens
from tandem.queries.encoding import as_of_text
from tandem.queries.page_token import Cursor, MalformedPageToken, decode_page_token, encode_page_token
from tandem.runtime.settings import SettingsError

SECRET, ANOTHER = "a secret of sixteen letters", "another secret of more letters"
TOKEN = Token(uuid.UUID(int=7), 8, 9, 0)
LONGEST = Token(uuid.UUID(int=2**128 - 1), 2**63 - 1, 2**63 - 1, 2**63 - 1)
CURSOR = Cursor(datetime(2026, 1, 2, tzinfo=UTC), 3)


@pytest.fixture(autouse=True)
def _without_after() -> Iterator[None]:
    yield
    sign_tokens(SignedTokenSettings())


def sign_by(*secrets: str, folder: Path, accept_unsigned: bool = False) -> None:
    file = folder / "secrets"
    file.write_text("\n".join([*secrets, ""]), encoding="utf-8")
    sign_tokens(SignedTokenSettings(secret_file=file, accept_unsigned=accept_unsigned))


def encoded(token: Token) -> str:
    return encode_token(token.epoch, token.position, token.mark, token.generation)


def accepts(text: str) -> bool:
    try:
        assert decode_token(text) == TOKEN
    except MalformedToken:
        return False
    return True


@pytest.mark.parametrize("token", [TOKEN, LONGEST])
def test_a_signed_token_is_read_back_and_fits_into_what_a_request_may_have(token: Token, tmp_path: Path) -> None:
    plain = encoded(token)
    sign_by(SECRET, folder=tmp_path)
    text = encoded(token)
    assert text.startswith(f"{plain}.")
    assert len(text) <= 100
    assert decode_token(text) == token


def test_who_has_no_secret_cannot_make_one(tmp_path: Path) -> None:
    plain = encoded(TOKEN)
    sign_by(ANOTHER, folder=tmp_path)
    by_another = encoded(TOKEN)
    sign_by(SECRET, folder=tmp_path)
    later = encoded(Token(TOKEN.epoch, TOKEN.position + 1, TOKEN.mark))
    signature = later.partition(".")[2]
    page = PAGE_TOKENS.sign(plain)
    for text in (plain, f"{plain}.", by_another, f"{plain}.{signature}", page, f"{plain}.{'ä' * 22}"):
        assert not accepts(text), text


@given(at=st.integers(0, 100), letter=st.characters())
def test_a_changed_one_is_refused(at: int, letter: str) -> None:
    sign_tokens(SignedTokenSettings(secret=SecretStr(SECRET)))
    text = encoded(TOKEN)
    changed = text[:at] + letter + text[at + 1 :]
    assume(changed != text)
    assert not accepts(changed)


def test_a_new_secret_comes_and_the_old_one_goes_while_servers_have_one_or_the_other(tmp_path: Path) -> None:
    stages = ([SECRET], [SECRET, ANOTHER], [ANOTHER, SECRET], [ANOTHER])
    made = []
    for secrets in stages:
        sign_by(*secrets, folder=tmp_path)
        made.append(encoded(TOKEN))
    for number, secrets in enumerate(stages):
        sign_by(*secrets, folder=tmp_path)
        # Servers are at one stage and at the next.
        assert all(map(accepts, made[max(number - 1, 0) : number + 2]))
    assert not accepts(made[0])


def test_tokens_from_before_are_taken_while_the_settings_say_so(tmp_path: Path) -> None:
    plain = encoded(TOKEN)
    sign_by(SECRET, folder=tmp_path, accept_unsigned=True)
    assert accepts(plain)
    sign_by(SECRET, folder=tmp_path)
    assert not accepts(plain)


def test_a_server_without_a_secret_takes_tokens_of_those_that_have_one(tmp_path: Path) -> None:
    sign_by(SECRET, folder=tmp_path)
    text = encoded(TOKEN)
    sign_tokens(SignedTokenSettings())
    assert accepts(text)
    assert not accepts(f"{text}.x")


def test_page_tokens_are_signed_too(tmp_path: Path) -> None:
    plain = encode_page_token(CURSOR, "query")
    sign_by(SECRET, folder=tmp_path)
    text = encode_page_token(CURSOR, "query")
    assert decode_page_token(text, "query") == CURSOR
    for wrong in (plain, text[:-1], text.replace(text[3], "x" if text[3] != "x" else "y", 1)):
        with pytest.raises(MalformedPageToken):
            decode_page_token(wrong, "query")
    sign_by(ANOTHER, SECRET, folder=tmp_path, accept_unsigned=True)
    for right in (plain, text):
        assert decode_page_token(right, "query") == CURSOR


def test_what_is_remembered_goes_with_the_secret(tmp_path: Path) -> None:
    plain = as_of_text(TOKEN)
    sign_by(SECRET, folder=tmp_path)
    assert as_of_text(TOKEN).startswith(plain + b".")


@pytest.mark.parametrize("content", ["", "\n", "short", "a secret of sixteen letters\nshort"])
def test_a_file_without_good_secrets_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "secrets").write_text(content)
    with pytest.raises(SettingsError, match="must have a secret of 16 characters or more on each line"):
        sign_tokens(SignedTokenSettings(secret_file=tmp_path / "secrets"))
    with pytest.raises(SettingsError, match="absent"):
        sign_tokens(SignedTokenSettings(secret_file=tmp_path / "absent"))
