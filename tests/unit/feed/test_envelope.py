"""Who caused an event is what the call's metadata says, where that is as the contract wants it."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.feed.envelope import IGNORED, envelope_of
from tandem.internal.v1.stored_pb2 import Envelope

REQUEST = "0190b5a2-7c1e-7d30-8a44-1f2e3d4c5b6a"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
NAMES = ("tandem-actor", "tandem-causation-id", "tandem-correlation-id", "traceparent")
PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F))


def ignored(name: str) -> float:
    counted: float = IGNORED.labels(name)._value.get()
    return counted


def test_who_was_proved_to_call_goes_before_what_the_metadata_says() -> None:
    before = ignored("tandem-actor")
    metadata = [("tandem-actor", "somebody-else"), ("tandem-actor", "another"), ("tandem-correlation-id", "checkout")]
    found = envelope_of(metadata, REQUEST, "user-7")
    assert found == Envelope(request_id=REQUEST, actor="user-7", correlation_id="checkout")
    assert ignored("tandem-actor") == before


def field_of(name: str) -> str:
    return name.removeprefix("tandem-").replace("-", "_")


def hexadecimal(length: int) -> st.SearchStrategy[str]:
    return st.text("0123456789abcdef", min_size=length, max_size=length)


ids = st.text(PRINTABLE, min_size=1, max_size=128)
pseudonyms = st.text(PRINTABLE.replace(" ", "").replace("@", ""), min_size=1, max_size=128)
traces = st.builds(
    lambda trace, span, flags: f"00-{trace}-{span}-{flags}",
    hexadecimal(32).filter(lambda it: set(it) != {"0"}),
    hexadecimal(16).filter(lambda it: set(it) != {"0"}),
    hexadecimal(2),
)


@given(actor=pseudonyms, causation=ids, correlation=ids, trace=traces)
def test_the_envelope_holds_what_the_metadata_says(actor: str, causation: str, correlation: str, trace: str) -> None:
    metadata = [
        ("user-agent", "grpc-python/1.0"),
        ("traceparent", trace),
        ("tandem-correlation-id", correlation),
        ("tandem-causation-id", causation),
        ("tandem-actor", actor),
        ("tandem-actors", "of another name"),
    ]
    assert envelope_of(metadata, REQUEST) == Envelope(
        actor=actor, request_id=REQUEST, causation_id=causation, correlation_id=correlation, traceparent=trace
    )


def test_a_command_that_is_part_of_nothing_begins_something_new() -> None:
    assert envelope_of([], REQUEST) == Envelope(request_id=REQUEST, correlation_id=REQUEST)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in NAMES for value in ("", "x" * 129, "caf\u00e9", "a\tb", "a\n", b"bytes")),
        ("tandem-actor", "ada@example.org"),
        ("tandem-actor", "Ada Lovelace"),
        ("traceparent", "01" + TRACE[2:]),
        ("traceparent", TRACE.upper()),
        ("traceparent", TRACE + "-00"),
        ("traceparent", TRACE[:-1]),
        ("traceparent", "00-" + "0" * 32 + TRACE[35:]),
        ("traceparent", TRACE[:36] + "0" * 16 + "-01"),
    ],
)
def test_a_value_that_is_not_as_it_must_be_is_ignored_and_counted(name: str, value: str | bytes) -> None:
    before = ignored(name)
    assert envelope_of([(name, value)], REQUEST) == Envelope(request_id=REQUEST, correlation_id=REQUEST)
    assert ignored(name) == before + 1


@given(st.sampled_from(NAMES), st.text(string.printable + "é@", max_size=140))
def test_whatever_a_caller_sends_the_envelope_has_short_printable_values(name: str, value: str) -> None:
    envelope = envelope_of([(name, value)], REQUEST)
    held = getattr(envelope, field_of(name))
    assert held in ("", value, REQUEST)
    assert len(held) <= 128
    assert held.isascii()
    assert held == "" or held.isprintable()
    assert "@" not in envelope.actor
    assert len(envelope.SerializeToString()) <= 4 * 131 + 57


@pytest.mark.parametrize(("name", "value"), [*zip(NAMES, ("user-7", "c", "c", TRACE), strict=True)])
@pytest.mark.parametrize("times", [2, 3])
def test_a_name_that_comes_more_than_once_is_ignored_and_each_of_its_values_counted(
    name: str, value: str, times: int
) -> None:
    before = ignored(name)
    assert envelope_of([(name, value)] * times, REQUEST) == Envelope(request_id=REQUEST, correlation_id=REQUEST)
    assert ignored(name) == before + times
