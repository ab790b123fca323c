"""The native transport: its streams wait for a slow client on the event loop, and some calls never go there.

The library hands calls over in batches, from a thread that waits for them without the GIL. Most of what a short call
costs from there on is its way through the event loop: a task, a context, two wake-ups. A method whose calls can often
be answered at once may have a *shortcut*, which is asked on the receiving thread, a batch at a time. Calls of a method
that has threads of its own may be taken there too, and answered from those: `DirectCall`.
"""

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import grpc
import pygrpc_native.aio
from pygrpc_native import EVENT_CALL, EVENT_CANCEL, STREAM_CLOSED, STREAM_FULL

# The transport keeps a message or two, so a client that reads as fast as it can makes us wait at every other one: the
# first pause bounds the messages a second that it gets. A thousand clients that do not read cost 4,000 looks a second.
_FIRST_PAUSE_SECONDS = 0.001
_LONGEST_PAUSE_SECONDS = 0.25
# Calls handed over at once at most: as many as are read together.
_MAX_EVENTS = 256
# How long a shortcut may hold up the receiving thread before another receives: far more than it takes when all is well.
_PATIENCE_SECONDS = 0.01
# Calls that were cancelled before the loop met them, and that it remembers: they are milliseconds late.
_MAX_EARLY = 4096

Shortcut = Callable[[Sequence[bytes], float], Iterator[bytes | None]]
"""Answers calls of one method: (their requests, when they came on the clock of time.perf_counter()) to their responses.

Each is sent before the next is made. None for a call that is to go the ordinary way: one that has to wait, or that is
refused. It may only answer what the method would have answered, and must not raise. It is called by one thread alone.
"""

_Event = tuple[Any, ...]
# In what the library says of a call.
_METADATA, _TIME_REMAINING = 0, 2


class DirectCall:
    """A unary call that any thread may answer, once. It is what a servicer's context is, as far as that is asked."""

    __slots__ = ("_event", "_gone", "_server", "call_id", "came_at", "request")

    def __init__(self, server: "NativeServer", event: _Event, came_at: float) -> None:
        """came_at: on the clock of time.perf_counter()."""
        self._server = server
        self._gone = False
        self.call_id: int = event[1]
        self.request: bytes = event[3]
        self._event = event
        self.came_at = came_at

    def respond(self, response: bytes) -> None:
        """One that is too large is refused, as for every call."""
        self._server.respond_directly(self, response)

    def fail(self, code: grpc.StatusCode, message: str, trailing_metadata: Sequence[tuple[str, str | bytes]]) -> None:
        self._server.fail_directly(self, code, message, trailing_metadata)

    def leave(self) -> bool:
        """To the method, as if it had just come; instead of answering it. False if the caller has gone."""
        return self._server.leave_directly(self, self._event)

    def cancelled(self) -> bool:
        """Whether the caller has gone."""
        return self._gone

    def cancel(self) -> None:
        self._gone = True

    def time_remaining(self) -> float | None:
        """Seconds when the call came, None where the caller set no deadline."""
        remaining: float | None = self._event[5][_TIME_REMAINING]
        return remaining

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        metadata: Sequence[tuple[str, str | bytes]] = self._event[5][_METADATA]
        return metadata


Taker = Callable[[DirectCall], None]
"""Takes a call, to answer it later. It is called on the receiving thread, so it must not wait, nor raise."""


class NativeServer(pygrpc_native.aio.Server):
    """The library's, with shortcuts and direct calls, and but for how a stream's message is sent.

    The library waits for room in a thread of the event loop's executor, one for each client that is behind. There are a
    handful of those threads, and readiness and others need them: a few clients that stop reading would stop the server.
    """

    def __init__(self, *, options: Sequence[tuple[str, int]], io_threads: int) -> None:
        super().__init__(options=options, io_threads=io_threads)
        self._shortcuts: dict[str, Shortcut] = {}
        self._takers: dict[str, Taker] = {}
        # Direct calls under way.
        self._direct: dict[int, DirectCall] = {}
        self._receiving = True
        # When the receiving thread last got on with the shortcuts that it is in; 0.0 outside of them.
        self._busy_since = 0.0
        self._watched = threading.Event()
        # The loop's.
        self._early: OrderedDict[int, None] = OrderedDict()

    def add_shortcut(self, path: str, shortcut: Shortcut) -> None:
        """path: "/package.Service/Method", of a unary method that is served. Before start()."""
        self._shortcuts[path] = shortcut

    def add_taker(self, path: str, taker: Taker) -> None:
        """As `add_shortcut`, for a method whose calls are answered later by other threads."""
        self._takers[path] = taker

    def _dispatch(self) -> None:
        """The receiving thread, in place of the library's."""
        front = self._front
        assert front is not None, "started"
        shortcuts = _by_number(self._shortcuts, self._table)
        takers = _by_number(self._takers, self._table)
        if shortcuts:
            threading.Thread(target=self._stand_in, name="pygrpc-native-stand-in", daemon=True).start()
        while (events := front.recv_batch_details(_MAX_EVENTS)) is not None:
            came_at = time.perf_counter()
            left = self._take_direct(takers, events, came_at) if takers else events
            self._give_to_loop(self._take_shortcuts(shortcuts, left, came_at) if shortcuts else left)
        self._receiving = False
        self._watched.set()

    def _give_to_loop(self, events: list[_Event]) -> None:
        front, loop = self._front, self._loop
        assert front is not None, "started"
        assert loop is not None, "started"
        if not events:
            return
        try:
            loop.call_soon_threadsafe(self._on_events, events)
        except RuntimeError:
            # The loop was closed without stop(): there is nobody to answer.
            front.close()

    def _take_direct(self, takers: dict[int, Taker], events: list[_Event], came_at: float) -> list[_Event]:
        """Hands direct calls to their takers; returns the other events."""
        others = []
        for event in events:
            kind, call_id, method, request = event[:4]
            if kind == EVENT_CALL and method in takers and not self._is_too_large(request):
                call = self._direct[call_id] = DirectCall(self, event, came_at)
                takers[method](call)
            elif kind == EVENT_CANCEL and (cancelled := self._direct.get(call_id)):
                cancelled.cancel()
            else:
                others.append(event)
        return others

    def _is_too_large(self, request: bytes) -> bool:
        return self._receive_limit is not None and len(request) > self._receive_limit

    def respond_directly(self, call: DirectCall, response: bytes) -> None:
        """From any thread."""
        front = self._front
        assert front is not None, "started"
        self._direct.pop(call.call_id, None)
        if self._within_send_limit(call, response) is not None:
            front.respond(call.call_id, response)

    def fail_directly(
        self,
        call: DirectCall,
        code: grpc.StatusCode,
        message: str,
        trailing_metadata: Sequence[tuple[str, str | bytes]],
    ) -> None:
        """From any thread."""
        front = self._front
        assert front is not None, "started"
        self._direct.pop(call.call_id, None)
        front.fail(call.call_id, code.value[0], message, trailing_metadata=trailing_metadata)

    def leave_directly(self, call: DirectCall, event: _Event) -> bool:
        """From any thread."""
        self._direct.pop(call.call_id, None)
        # From here on, that the caller leaves is told to the loop.
        if call.cancelled():
            return False
        self._give_to_loop([event])
        return True

    def _take_shortcuts(self, shortcuts: dict[int, Shortcut], events: list[_Event], came_at: float) -> list[_Event]:
        """Answers what can be answered at once; returns the calls that are to go the ordinary way."""
        by_method: dict[int, list[_Event]] = {}
        others: list[_Event] = []
        for event in events:
            if event[0] == EVENT_CALL and event[2] in shortcuts:
                by_method.setdefault(event[2], []).append(event)
            else:
                others.append(event)
        if not by_method:
            return others
        # They do not wait for the shortcuts.
        self._give_to_loop(others)
        self._busy_since = came_at
        if not self._watched.is_set():
            self._watched.set()
        left: list[_Event] = []
        for method, calls in by_method.items():
            left += self._answer(shortcuts[method], calls, came_at)
        self._busy_since = 0.0
        return left

    def _answer(self, shortcut: Shortcut, calls: list[_Event], came_at: float) -> list[_Event]:
        """Returns the calls that the shortcut leaves to the method."""
        front = self._front
        assert front is not None, "started"
        left = []
        for call, response in zip(calls, shortcut([it[3] for it in calls], came_at), strict=True):
            if response is None or (self._send_limit is not None and len(response) > self._send_limit):
                left.append(call)
            else:
                front.respond(call[1], response)
            # A long batch is not held up.
            self._busy_since = time.perf_counter()
        return left

    def _stand_in(self) -> None:
        """Another thread, which receives while the first is held up in a shortcut, by a store that does not answer.

        All calls go the ordinary way then. It sleeps while no shortcuts are taken.
        """
        front = self._front
        assert front is not None, "started"
        while self._watched.wait() and self._receiving:
            since = self._busy_since
            time.sleep(_PATIENCE_SECONDS)
            if not since:
                self._watched.clear()
                if self._busy_since:
                    self._watched.set()
            while since and self._busy_since == since:
                events = front.recv_batch_details(_MAX_EVENTS, timeout_ms=int(_PATIENCE_SECONDS * 1000))
                if events is None:
                    return
                self._give_to_loop(events)

    def _on_events(self, events: list[_Event]) -> None:
        """On the loop. The library relies on a call's coming before its end; a shortcut may have kept the call."""
        known = []
        for event in events:
            if event[0] == EVENT_CANCEL:
                if event[1] not in self._calls:
                    self._early[event[1]] = None
                    if len(self._early) > _MAX_EARLY:
                        self._early.popitem(last=False)
                    continue
            elif self._early and event[1] in self._early:
                # The caller has gone.
                del self._early[event[1]]
                continue
            known.append(event)
        super()._on_events(known)

    async def _send(self, call: Any, context: Any, response: Any) -> bool:
        data = self._encode(call, context, response)
        if data is None:
            # Too large, and the caller has been told.
            call.cancel()
            return False
        front = self._front
        assert front is not None, "started"
        context._initial_sent = True
        pause = _FIRST_PAUSE_SECONDS
        while (sent := front.stream_try_send(call.call_id, data)) == STREAM_FULL:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        if sent == STREAM_CLOSED:
            # The library would let the handler write on into nothing.
            call.cancel()
        return bool(sent != STREAM_CLOSED)


T = TypeVar("T")


def _by_number(by_path: dict[str, T], table: Sequence[tuple[str, object]]) -> dict[int, T]:
    """By the number that the library gave the method."""
    return {number: by_path[path] for number, (path, _) in enumerate(table) if path in by_path}
