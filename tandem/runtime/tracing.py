"""Traces, in OpenTelemetry's form: a span for each call, and one linked to all of them for what is done for several.

    call PlaceOrder ─▶ command batch ─▶ commit       the server that stores it
          │ its events' envelopes name the call's span
          └──▶ projection batch ─▶ project, cache, announce     the projector
    call GetOrderDetails ─▶ wait                      the server that answers it, in the trace that its caller says

A call's span is made when it ends, from what is known of it then, or when somebody needs its name before. Off until an
endpoint is set, and then nothing of OpenTelemetry is imported: what is done for each call is to look at `is_on`.
"""

import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, SpanContext, SpanKind, Tracer

Metadata = Sequence[tuple[str, str | bytes]]


class TracedCall(Protocol):
    """A call, unary or stream."""

    came_at: float
    span: "Span | None"

    def metadata(self) -> Metadata: ...


class CollectorSettings(Protocol):
    """Those of tandem.runtime.settings.TraceSettings. This module imports none of the runtime: all of it traces."""

    @property
    def endpoint(self) -> str | None: ...
    @property
    def protocol(self) -> str: ...
    @property
    def ratio(self) -> float: ...
    @property
    def headers(self) -> Mapping[str, Any]: ...


_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_MAX_LINKS = 128
# Of an export. A stop waits less long for all of them.
_EXPORT_SECONDS = 5
_STOP_SECONDS = 3.0


class Tracing:
    """Of this process. For any thread."""

    def __init__(self) -> None:
        self.is_on = False
        self._provider: TracerProvider | None = None
        self._tracer: Tracer | None = None

    def begin(self, settings: CollectorSettings, service: str, version: str) -> None:
        """Does nothing where no endpoint is set."""
        if settings.endpoint is None:
            return
        # Here alone: who does not trace need not wait for it, nor hold it in memory.
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased  # noqa: PLC0415

        instance = f"{socket.gethostname()}:{os.getpid()}"
        names = {"service.name": service, "service.version": version, "service.instance.id": instance}
        sampler = ParentBased(TraceIdRatioBased(settings.ratio))
        provider = TracerProvider(sampler=sampler, resource=Resource.create(names), shutdown_on_exit=False)
        # A queue of a bounded length, whose thread sends: a span that finds no room is dropped.
        provider.add_span_processor(BatchSpanProcessor(_exporter(settings), schedule_delay_millis=1000))
        self._provider, self._tracer = provider, provider.get_tracer("tandem", version)
        self.is_on = True

    def end(self) -> None:
        """Sends what is left, for some seconds: a collector that is away holds no stop up."""
        self.is_on = False
        if self._provider is not None:
            # The library's own limit is more than 20 seconds. Its thread ends with the process.
            sending = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
            sending.start()
            sending.join(_STOP_SECONDS)
        self._provider = None

    def start(
        self,
        name: str,
        began: float,
        parents: "Sequence[SpanContext]" = (),
        kind: "SpanKind | None" = None,
        **attributes: str | int,
    ) -> "Span":
        """A span that is not ended. began: on the clock of time.monotonic(). parents: the first of those that are
        sampled is the parent, and the others are links.
        """
        from opentelemetry import trace  # noqa: PLC0415 - see `begin`
        from opentelemetry.context import Context as Around  # noqa: PLC0415

        assert self._tracer is not None, "on"
        parents = sorted(parents, key=lambda it: not it.trace_flags.sampled)[: _MAX_LINKS + 1]
        context = Around()
        if parents:
            context = trace.set_span_in_context(trace.NonRecordingSpan(parents[0]), context)
        return self._tracer.start_span(
            name,
            context,
            kind or trace.SpanKind.INTERNAL,
            attributes,
            [trace.Link(it) for it in parents[1:]],
            _wall(began),
        )

    def note(self, name: str, began: float, parent: "SpanContext", ended: float, **attributes: str | int) -> None:
        """A span of what is over."""
        self.start(name, began, [parent], None, **attributes).end(_wall(ended))

    @contextmanager
    def together(self, name: str, parents: "Sequence[SpanContext]") -> "Iterator[SpanContext]":
        """A span of what is done inside for several calls at once."""
        span = self.start(name, time.monotonic(), parents, calls=len(parents))
        try:
            yield span.get_span_context()
        finally:
            span.end()

    def span_of(self, call: TracedCall, name: str) -> "SpanContext":
        """Of a call, unary or stream: its span begins when the call came. Only while this is on."""
        if call.span is None:
            from opentelemetry.trace import SpanKind  # noqa: PLC0415 - see `begin`

            parent = parent_of(call.metadata())
            parents = [] if parent is None else [parent]
            call.span = self.start(name, call.came_at, parents, SpanKind.SERVER)
        context: SpanContext = call.span.get_span_context()
        return context

    def end_call(self, call: TracedCall, name: str, code: str) -> None:
        """A call has ended."""
        from opentelemetry.trace import StatusCode  # noqa: PLC0415 - see `begin`

        if not self.is_on:
            return
        self.span_of(call, name)
        assert call.span is not None, "made"
        call.span.set_attribute("rpc.system", "grpc")
        call.span.set_attribute("rpc.method", name)
        call.span.set_attribute("rpc.response.status_code", code)
        if code in _SERVERS_FAULT:
            call.span.set_status(StatusCode.ERROR)
        call.span.end()


_SERVERS_FAULT = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}

TRACING = Tracing()


def _wall(monotonic: float) -> int:
    """In nanoseconds since 1970."""
    return time.time_ns() - int((time.monotonic() - monotonic) * 1e9)


def _exporter(settings: CollectorSettings) -> Any:
    headers = {name: value.get_secret_value() for name, value in settings.headers.items()}
    if settings.protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

        insecure = not str(settings.endpoint).startswith("https://")
        return OTLPSpanExporter(settings.endpoint, insecure, headers=headers, timeout=_EXPORT_SECONDS)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as OverHttp  # noqa: PLC0415

    return OverHttp(settings.endpoint, headers=headers, timeout=_EXPORT_SECONDS)


def context_of(traceparent: str) -> "SpanContext | None":
    """Of a W3C Trace Context of version 00; None for what is none."""
    from opentelemetry.trace import SpanContext, TraceFlags  # noqa: PLC0415 - see Tracing.begin

    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None:
        return None
    trace_id, span_id, flags = (int(it, 16) for it in found.groups())
    context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))
    return context if context.is_valid else None


def parent_of(metadata: Metadata) -> "SpanContext | None":
    """What a call is a part of, as its caller says. Who says two says nothing."""
    values = [value for name, value in metadata if name == "traceparent"]
    return context_of(values[0]) if len(values) == 1 and isinstance(values[0], str) else None


def metadata_of(call: TracedCall, name: str) -> Metadata:
    """A call's metadata, in which its own span stands for that of its caller: what it causes is a part of it."""
    it = TRACING.span_of(call, name)
    own = f"00-{it.trace_id:032x}-{it.span_id:016x}-{int(it.trace_flags):02x}"
    return [*((name, value) for name, value in call.metadata() if name != "traceparent"), ("traceparent", own)]
