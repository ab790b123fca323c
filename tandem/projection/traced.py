"""What a projector does for the traces that its events are a part of: one span for a batch, linked to all of them.

    projection batch ─┬─ project order_details     until its rows are committed, for each view
                      ├─ cache order_details       until its entries are written, for each cached view
                      └─ announce                  until readers were told

The batch's parent is the call of its first event that is traced. A batch that is full is not traced, nor one of views
that are made anew: it catches up, and who traced those events has long stopped looking.

    redrive order_details     events that a row took in later, when an operator asked for it
"""

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from tandem.feed.events import FeedEvent
from tandem.runtime.tracing import TRACING, context_of

if TYPE_CHECKING:
    from opentelemetry.trace import Span, SpanContext


class BatchTrace:
    """Of a batch that nobody traces. For one thread at a time."""

    def note(self, what: str, views: Iterable[str]) -> None:
        """Something is done for these views, since what was noted before."""

    def end(self) -> None:
        """The batch is announced."""


class _Traced(BatchTrace):
    def __init__(self, parents: "Sequence[SpanContext]", events: int) -> None:
        self._parents = parents
        self._events = events
        self._at = time.monotonic()
        self._span: Span | None = None

    def note(self, what: str, views: Iterable[str]) -> None:
        now = time.monotonic()
        if self._span is None:
            # Not before: a batch that cannot be written is tried again as another one.
            self._span = TRACING.start("projection batch", self._at, self._parents, events=self._events)
        parent = self._span.get_span_context()
        for view in views:
            TRACING.note(f"{what} {view}", self._at, parent, now, view=view)
        self._at = now

    def end(self) -> None:
        if self._span is not None:
            TRACING.note("announce", self._at, self._span.get_span_context(), time.monotonic())
            self._span.end()


_UNTRACED = BatchTrace()


def trace_of(events: Sequence[FeedEvent], *, catches_up: bool) -> BatchTrace:
    if catches_up or not TRACING.is_on:
        return _UNTRACED
    parents = _parents_of(events)
    return _Traced(parents, len(events)) if parents else _UNTRACED


def note_redriven(view: str, began: float, events: Sequence[FeedEvent]) -> None:
    """A row has taken in events that waited for it. began: on the clock of time.monotonic()."""
    if TRACING.is_on and (parents := _parents_of(events)):
        TRACING.start(f"redrive {view}", began, parents, view=view, events=len(events)).end()


def _parents_of(events: Sequence[FeedEvent]) -> "list[SpanContext]":
    """The calls that the events come from and that are traced."""
    parents: list[SpanContext] = []
    for event in events:
        context = _context_of(event)
        if context is not None and context.trace_flags.sampled and context not in parents[-1:]:
            parents.append(context)
    return parents


def _context_of(event: FeedEvent) -> "SpanContext | None":
    try:
        return context_of(event.envelope.traceparent) if event.envelope is not None else None
    except DecodeError:
        # It is of no use for a trace. Followers of the feed are told of it.
        return None
