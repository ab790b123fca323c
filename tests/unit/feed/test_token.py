import base64
import string
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tandem.feed.token import MalformedToken, Token, decode_token, encode_token, epoch_order, new_epoch
from tandem.internal.v1.stored_pb2 import ConsistencyToken

POSITIONS = MARKS = st.integers(0, 2**63 - 1)
BASE64 = string.ascii_letters + string.digits + "-_"
EPOCH = uuid.UUID("0193c5a0-0000-7000-8000-000000000000")


@given(st.uuids(), POSITIONS, MARKS, MARKS)
def test_a_token_comes_back_as_it_was(epoch: uuid.UUID, position: int, mark: int, generation: int) -> None:
    text = encode_token(epoch, position, mark, generation)
    assert decode_token(text) == Token(epoch, position, mark, generation)
    assert len(text) < 70
    assert set(text) <= set(BASE64)


def decoded_or_refused(text: str) -> None:
    """Whatever a caller sends is a token of ours, spelt as we spell it, or refused as malformed."""
    try:
        token = decode_token(text)
    except MalformedToken:
        return
    assert encode_token(token.epoch, token.position, token.mark, token.generation) == text


@given(st.text())
@example("")
@example("1")
@example("1====")
@example("1" + "A" * 200)
@example("1é")
@example("1\ud800")
def test_any_text_is_a_token_or_malformed(text: str) -> None:
    decoded_or_refused(text)


@given(st.text(BASE64, max_size=60))
def test_any_text_in_the_tokens_alphabet_is_a_token_or_malformed(body: str) -> None:
    decoded_or_refused("1" + body)


@given(st.binary(max_size=40))
def test_any_bytes_in_the_tokens_form_are_a_token_or_malformed(raw: bytes) -> None:
    decoded_or_refused("1" + base64.urlsafe_b64encode(raw).rstrip(b"=").decode())


@given(st.uuids(), POSITIONS, st.data())
def test_a_token_with_one_character_changed_is_another_token_or_malformed(
    epoch: uuid.UUID, position: int, data: st.DataObject
) -> None:
    text = encode_token(epoch, position)
    place = data.draw(st.integers(0, len(text) - 1))
    decoded_or_refused(text[:place] + data.draw(st.characters()) + text[place + 1 :])


@pytest.mark.parametrize("length", [0, 15, 17])
def test_an_epoch_of_another_length_is_malformed(length: int) -> None:
    stored = ConsistencyToken(feed_epoch=bytes(length), position=1).SerializeToString()
    with pytest.raises(MalformedToken):
        decode_token("1" + base64.urlsafe_b64encode(stored).rstrip(b"=").decode())


def test_a_token_of_a_later_form_is_malformed_here() -> None:
    with pytest.raises(MalformedToken):
        decode_token("2" + encode_token(EPOCH, 1)[1:])


def test_a_state_of_another_history_or_of_a_view_made_anew_includes_nothing_of_this_one() -> None:
    token = Token(EPOCH, 5, mark=1, generation=1)
    assert token.includes(Token(EPOCH, 5, mark=1))
    assert token.includes(Token(EPOCH, 5)), "from before there were marks"
    assert token.includes(Token(EPOCH, 4, mark=2)), "what that position's mark was is not known any more"
    assert not token.includes(Token(EPOCH, 5, mark=2))
    assert not token.includes(Token(EPOCH, 4, mark=1, generation=2))


def test_epochs_are_in_order_whatever_the_clock_says() -> None:
    epochs = [uuid.uuid4()]
    for days in (0, 1, -400, 0):
        epochs.append(new_epoch(epochs[-1], datetime.now(UTC) + timedelta(days=days)))
    orders = [epoch_order(it) for it in epochs]
    assert orders == sorted(set(orders))
