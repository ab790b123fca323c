"""Page tokens come back as they went out, and nothing else comes in."""

from datetime import UTC

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.queries.page_token import Cursor, MalformedPageToken, decode_page_token, encode_page_token

cursors = st.builds(
    Cursor,
    at=st.datetimes(timezones=st.just(UTC)),
    position=st.integers(0, 2**63 - 1),
)


@given(cursor=cursors, query=st.lists(st.text(), min_size=1, max_size=3))
def test_a_token_brings_back_the_cursor_to_the_microsecond(cursor: Cursor, query: list[str]) -> None:
    assert decode_page_token(encode_page_token(cursor, *query), *query) == cursor


@given(cursor=cursors, mine=st.lists(st.text(), max_size=3), theirs=st.lists(st.text(), max_size=3))
def test_a_token_of_another_query_is_refused(cursor: Cursor, mine: list[str], theirs: list[str]) -> None:
    token = encode_page_token(cursor, *theirs)
    if mine != theirs:
        with pytest.raises(MalformedPageToken):
            decode_page_token(token, *mine)


@given(text=st.text() | st.text(alphabet="ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"))
def test_any_other_text_is_refused_and_nothing_else_is_raised(text: str) -> None:
    with pytest.raises(MalformedPageToken):
        decode_page_token(text, "ListRecentOrders", "customer")


@given(cursor=cursors, data=st.data())
def test_a_token_with_a_character_changed_is_refused_or_names_another_place(
    cursor: Cursor, data: st.DataObject
) -> None:
    token = encode_page_token(cursor, "query")
    place = data.draw(st.integers(0, len(token) - 1))
    changed = token[:place] + data.draw(st.characters()) + token[place + 1 :]
    try:
        decoded = decode_page_token(changed, "query")
    except MalformedPageToken:
        return
    assert (decoded == cursor) == (changed == token)


def test_a_very_long_text_is_refused_unread() -> None:
    with pytest.raises(MalformedPageToken):
        decode_page_token("A" * 10_000, "query")
