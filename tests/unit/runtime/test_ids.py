"""Ids as bytes are what the class UUID makes of them."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.runtime.ids import id_bytes, named_id


@given(st.uuids())
def test_an_id_is_the_same_as_text_and_as_bytes(value: uuid.UUID) -> None:
    assert id_bytes(str(value)) == id_bytes(str(value).upper()) == value.bytes


@pytest.mark.parametrize("text", ["", "nothing", "0190b5a2-7c1e-7d30-8a44", "0190b5a2-7c1e-7d30-8a44-1f2e3d4c5b6a00"])
def test_what_is_no_uuid_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - which message it has depends on what is wrong
        id_bytes(text)


@given(st.uuids(), st.text(st.characters(exclude_categories=["Cs"])))
def test_a_name_has_the_id_of_version_5(namespace: uuid.UUID, name: str) -> None:
    assert named_id(namespace.bytes, name) == uuid.uuid5(namespace, name).bytes
