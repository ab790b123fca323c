"""What traces promise whatever their collector does; tests/contract/stack/test_traces.py has what it is told."""

import threading
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest
from google.protobuf.empty_pb2 import Empty
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import ValidationError

from tandem.runtime import tracing
from tandem.runtime.call import LocalCall, Method
from tandem.runtime.settings import TraceSettings
from tandem.runtime.tracing import Tracing, context_of, metadata_of, parent_of

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tracing]:
    """On, with a collector that takes nothing."""
    exporter = InMemorySpanExporter()
    exporter.shutdown()
    monkeypatch.setattr(tracing, "_exporter", lambda _: exporter)
    it = Tracing()
    it.begin(TraceSettings(endpoint="http://otel.internal:4317"), "a service", "1")
    monkeypatch.setattr(tracing, "TRACING", it)
    yield it
    it.end()


def a_call(*traceparents: str) -> LocalCall:
    metadata = [("tandem-actor", "somebody"), *(("traceparent", it) for it in traceparents)]
    return LocalCall(Method("Ask", Empty), Empty(), seconds=1, metadata=metadata)


def test_a_stop_does_not_wait_for_a_collector_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_STOP_SECONDS", 0.01)
    released, ended = threading.Event(), threading.Event()

    class Provider:
        def shutdown(self) -> None:
            released.wait(20)
            ended.set()

    it = Tracing()
    it._provider = cast(Any, Provider())
    it.end()
    assert not ended.is_set()
    released.set()
    assert ended.wait(20)


def test_spans_that_find_no_room_are_dropped_and_nobody_waits(traced: Tracing) -> None:
    for _ in range(5000):
        traced.start("a span", time.monotonic()).end()


def test_what_a_call_causes_is_a_part_of_its_own_span_in_its_callers_trace(traced: Tracing) -> None:
    call = a_call(f"00-{TRACE}-{SPAN}-01")
    metadata = dict(metadata_of(call, "Ask"))
    own = context_of(str(metadata["traceparent"]))
    assert own is not None
    assert (f"{own.trace_id:032x}", own.trace_flags.sampled) == (TRACE, True)
    assert own.span_id == traced.span_of(call, "Ask").span_id
    assert f"{own.span_id:016x}" != SPAN
    assert metadata["tandem-actor"] == "somebody"


@pytest.mark.parametrize(
    "said", [(), ("00-nothing-01",), (f"00-{'0' * 32}-{SPAN}-01",), (f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01")]
)
def test_who_says_no_trace_or_two_is_a_part_of_none(said: tuple[str, ...]) -> None:
    assert parent_of(a_call(*said).metadata()) is None


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(ValidationError, match="http://"):
        TraceSettings(endpoint="otel:4318")
