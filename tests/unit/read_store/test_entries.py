"""Entries of the cache as they are written and read."""

import pytest

from tandem.internal.v1.stored_pb2 import CacheEntry
from tandem.read_store.cache import PLACEHOLDER, decode_entry, encode_entry


@pytest.mark.parametrize("size", [0, 1, 127, 128, 300, 16_383, 16_384, 100_000])
def test_an_entry_is_the_message_whatever_its_size(size: int) -> None:
    value = bytes(index % 251 for index in range(size))
    assert encode_entry(value) == CacheEntry(value=value).SerializeToString()
    assert decode_entry(encode_entry(value)) == value


def test_a_placeholder_has_no_value() -> None:
    assert decode_entry(PLACEHOLDER) is None
    assert encode_entry(b"") != PLACEHOLDER
