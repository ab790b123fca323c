"""Entries of the cache as they are written and read."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from tandem.internal.v1.stored_pb2 import CacheEntry
from tandem.read_store.cache import PLACEHOLDER, SharedCacheSettings, Signer, decode_entry, encode_entry
from tandem.runtime.settings import SettingsError


@pytest.mark.parametrize("size", [0, 1, 127, 128, 300, 16_383, 16_384, 100_000])
def test_an_entry_is_the_message_whatever_its_size(size: int) -> None:
    value = bytes(index % 251 for index in range(size))
    assert encode_entry(value) == CacheEntry(value=value).SerializeToString()
    assert decode_entry(encode_entry(value)) == value


def test_a_placeholder_has_no_value() -> None:
    assert decode_entry(PLACEHOLDER) is None
    assert encode_entry(b"") != PLACEHOLDER


SECRET = "a secret of sixteen letters"
ENTRY = encode_entry(b"a value of some length" * 20)
SIGNERS = pytest.mark.parametrize("signer", [Signer(), Signer(SECRET)], ids=["checksum", "secret"])


def opened(signer: Signer, key: str, signed: bytes) -> bytes | None:
    return signer.unsigned({key: signed}, {key: "row"}).get("row")


@SIGNERS
@pytest.mark.parametrize("value", [b"", b"x", b"x" * 300, b"x" * 100_000])
def test_a_signed_entry_is_what_was_signed_and_a_message_still(signer: Signer, value: bytes) -> None:
    signed = signer.sign("order_details:e1:00", encode_entry(value))
    assert opened(signer, "order_details:e1:00", signed) == encode_entry(value)
    # As a program that knows of no signature reads it.
    assert decode_entry(signed) == value


@SIGNERS
def test_what_was_signed_for_another_row_view_or_epoch_is_no_entry(signer: Signer) -> None:
    signed = signer.sign("order_details:e1:00", ENTRY)
    for key in ("order_details:e1:01", "order_summary:e1:00", "order_details:e2:00"):
        assert opened(signer, key, signed) is None


@SIGNERS
@given(bit=st.integers(0, 8 * (len(ENTRY) + 9) - 1))
def test_an_entry_with_another_bit_is_none(signer: Signer, bit: int) -> None:
    signed = bytearray(signer.sign("order_details:e1:00", ENTRY))
    signed[bit // 8] ^= 1 << bit % 8
    # All but the tag before the signature, which nobody reads.
    assert opened(signer, "order_details:e1:00", bytes(signed)) in ({None} if bit // 8 != len(ENTRY) else {ENTRY})


@SIGNERS
@given(found=st.binary(max_size=40))
def test_what_was_never_signed_is_no_entry(signer: Signer, found: bytes) -> None:
    assert opened(signer, "order_details:e1:00", found) is None
    assert opened(signer, "order_details:e1:00", PLACEHOLDER) is None


def test_without_the_secret_nobody_signs_an_entry() -> None:
    for other in (Signer(), Signer(SECRET + "."), Signer(SECRET.upper())):
        assert opened(Signer(SECRET), "order_details:e1:00", other.sign("order_details:e1:00", ENTRY)) is None


def test_an_entry_of_the_secret_before_is_taken_beside_the_new_one() -> None:
    key, both = "order_details:e1:00", Signer(SECRET.upper(), SECRET)
    assert opened(both, key, Signer(SECRET).sign(key, ENTRY)) == ENTRY
    assert both.sign(key, ENTRY) == Signer(SECRET.upper()).sign(key, ENTRY)
    assert opened(both, key, Signer(SECRET.lower() + "?").sign(key, ENTRY)) is None


def test_the_secret_is_said_or_in_a_file_and_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n")
    said, in_file = SharedCacheSettings(secret=SecretStr(SECRET)), SharedCacheSettings(secret_file=file)
    signed = said.signer().sign("key", ENTRY)
    assert signed == in_file.signer().sign("key", ENTRY) == Signer(SECRET).sign("key", ENTRY)
    assert signed != SharedCacheSettings().signer().sign("key", ENTRY)
    assert SECRET not in repr(said)
    with pytest.raises(SettingsError):
        SharedCacheSettings(secret_file=tmp_path / "absent").signer()
    with pytest.raises(ValidationError) as error:
        SharedCacheSettings(secret=SecretStr("too short"))
    assert "too short" not in str(error.value)
