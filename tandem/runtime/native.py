"""The native transport: HTTP/2 outside the GIL, and calls that come in batches, on a thread of ours.

The receiving thread hands unary calls to their workers. A worker that answers inline does so on this very thread, which
spares a call all changes of threads. Streams are tasks of the event loop; health and reflection have a small server of
grpcio's behind the front.

Who receives, and who watches:

    receiving thread:   receives ──▶ answers inline ──▶ receives …
                                          │ no call answered for 10 ms: a store does not answer
                                          ▼
    stand-in thread:    sleeps ──▶ watches ──▶ receives in its place ──▶ watches ──▶ sleeps

Whoever receives holds one lock until the calls are known and queued: the end of a call is thus never met before its
beginning. The stand-in puts all calls into the queues of their workers, also those that waited behind the one that does
not answer. It sleeps while nothing is answered inline.
"""

import asyncio
import tempfile
import threading
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any

from google.rpc.status_pb2 import Status
from grpc import aio
from pygrpc_native import EVENT_CANCEL, STREAM_CLOSED, STREAM_FULL, NativeGrpcFront

from tandem.runtime.call import (
    Context,
    Guards,
    Metadata,
    Method,
    RemoteCall,
    Servicers,
    StreamCall,
    StreamMethod,
    StreamMethods,
    too_large,
    trailers_of,
)
from tandem.runtime.connections import COUNTED_BYTES, Sent, UnixConnections, connections_of, threads_of_this_process
from tandem.runtime.grpcio_requests import Handlers, Requests
from tandem.runtime.settings import (
    MAX_STREAMS_PER_CONNECTION,
    PING_MILLISECONDS,
    PING_TIMEOUT_MILLISECONDS,
    ServerSettings,
    grpc_options,
)
from tandem.runtime.supervised import SupervisedThread
from tandem.runtime.telemetry import log
from tandem.runtime.worker import Worker, Workers

# The front keeps a message or two, so a client that reads as fast as it can makes us wait at every other one: the
# first pause bounds the messages a second that it gets. A thousand clients that do not read cost 4,000 looks a second.
_FIRST_PAUSE_SECONDS = 0.001
_LONGEST_PAUSE_SECONDS = 0.25
# Calls handed over at once at most.
_MAX_EVENTS = 256
# How long the receiving thread may answer no call before another receives: 500 times what a cached read takes.
_PATIENCE_SECONDS = 0.01

_Event = tuple[Any, ...]
"""(kind, call id, number of the method, request, key of the client, (metadata, peer, seconds that remain))."""


class NativeTransport:
    """Listens from when it is made, and takes calls from `start` on. Made on the event loop."""

    def __init__(self, address: str, settings: ServerSettings, guards: Guards) -> None:
        """Raises OSError for an address that is taken."""
        self._settings = settings
        self._guards = guards
        self.connections = connections_of(settings)
        before = threads_of_this_process()
        self.front = NativeGrpcFront(
            address,
            [],
            io_threads=settings.io_threads,
            call_details=True,
            # A stream that fails before its first message is answered by its status alone, so that proxies may retry.
            delay_stream_headers=True,
            keepalive_time_ms=PING_MILLISECONDS,
            keepalive_timeout_ms=PING_TIMEOUT_MILLISECONDS,
            keepalive_permit_without_calls=True,
            max_concurrent_streams=MAX_STREAMS_PER_CONNECTION,
        )
        if isinstance(self.connections, UnixConnections):
            # Those of the front that write to callers: it begins them when it is made.
            self.connections.count_what_is_written_by(threads_of_this_process() - before)
        self.port = self.front.bound_port
        self.calls: dict[int, _Call | _StreamCall] = {}
        """Under way, by the front's numbers. Who receives a call puts it in, who ends it takes it out."""
        # By the front's numbers of the methods.
        self._workers: dict[int, tuple[Method, Worker]] = {}
        self._streams: dict[int, StreamMethod] = {}
        self._receiving = threading.Lock()
        # What the receiving thread is to answer inline yet, and what it is at.
        self._pending: deque[tuple[Worker, list[RemoteCall]]] = deque()
        self._inline: Sequence[RemoteCall] | None = None
        self._inline_batches = 0
        self._watched = threading.Event()
        self._ended = False
        self._threads: list[SupervisedThread] = []
        # The event loop's.
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        # A server of grpcio's for all methods that are not in the front's table; its folder is this user's alone.
        self._behind = aio.server(options=grpc_options(settings))
        self._folder = tempfile.TemporaryDirectory(prefix="tandem-", ignore_cleanup_errors=True)

    async def start(self, workers: Workers, streams: StreamMethods, servicers: Servicers) -> None:
        numbers = self.front.add_methods([(path, False) for path in workers])
        self._workers = dict(zip(numbers, workers.values(), strict=True))
        numbers = self.front.add_methods([(path, True) for path in streams])
        self._streams = dict(zip(numbers, streams.values(), strict=True))
        self._behind.add_generic_rpc_handlers(
            (Handlers({}, servicers, Requests(self._settings, self.connections.take), self._guards.of),)
        )
        socket = f"{self._folder.name}/behind.sock"
        self._behind.add_insecure_port(f"unix:{socket}")
        await self._behind.start()
        self.front.set_fallback(socket)
        self.front.start()
        self.connections.start(self.port)
        self._threads = [SupervisedThread("native-receive", self._receive)]
        if any(worker.inline is not None for _, worker in workers.values()):
            self._threads.append(SupervisedThread("native-stand-in", self._stand_in))
        for thread in self._threads:
            thread.start()

    async def stop(self, grace: float) -> None:
        await self._behind.stop(grace)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace)
        for call in list(self.calls.values()):
            call.caller_left()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self.connections.stop)
        await asyncio.to_thread(self.front.close)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        self._folder.cleanup()

    def _receive(self) -> None:
        """The receiving thread."""
        while self._receive_once(None, inline=True):
            self._answer_inline()
        self._ended = True
        self._watched.set()

    def _receive_once(self, timeout_ms: int | None, *, inline: bool) -> bool:
        """Waits for calls and hands them on; False when the front is closed. inline: or keeps them for this thread."""
        with self._receiving:
            events = self.front.recv_batch_details(_MAX_EVENTS, timeout_ms)
            if events is None:
                return False
            try:
                self._hand_on(events, inline=inline)
            except Exception:
                # A bug. Without this thread nobody would be answered any more.
                log.exception("calls could not be handed on", calls=len(events))
        return True

    def _hand_on(self, events: Sequence[_Event], *, inline: bool) -> None:
        came_at = time.monotonic()
        calls, workers, by_peer = self.calls, self._workers, self.connections.by_peer
        limit = self._settings.max_request_bytes
        batches: defaultdict[Worker, list[RemoteCall]] = defaultdict(list)
        for event in events:
            kind, call_id, number, payload, peer, _ = event
            if kind == EVENT_CANCEL:
                if (cancelled := calls.get(call_id)) is not None:
                    cancelled.caller_left()
                continue
            connection = by_peer.get(peer) or self.connections.of(peer)
            connection.calls += 1
            large = len(payload) > COUNTED_BYTES
            if large:
                connection.requests += len(payload)
            route = workers.get(number)
            if route is None:
                self._open_stream(self._streams[number], event, came_at)
                continue
            method, worker = route
            call = calls[call_id] = _Call(self, method, event, came_at)
            if large and len(payload) > limit:
                call.fail_with(too_large("the request", len(payload), limit))
                call.count_unadmitted()
            else:
                batches[worker].append(call)
        for worker, batch in batches.items():
            admitted = self._guards.admit(batch)
            if not admitted:
                continue
            if inline and worker.inline is not None:
                self._pending.append((worker, admitted))
            else:
                worker.put_all(admitted)

    def _answer_inline(self) -> None:
        while (batch := self._next_pending()) is not None:
            self._inline_batches += 1
            worker, self._inline = batch
            if not self._watched.is_set():
                self._watched.set()
            try:
                worker.answer_inline(self._inline)
            except Exception:
                # A bug, and not of the handler: that is what the worker deals with.
                log.exception("an inline worker failed", worker=worker.name)
            self._inline = None

    def _next_pending(self) -> tuple[Worker, list[RemoteCall]] | None:
        if not self._pending:
            return None
        try:
            return self._pending.popleft()
        except IndexError:
            # The other thread was faster.
            return None

    def _stand_in(self) -> None:
        """The thread that watches the receiving one."""
        while self._watched.wait() and not self._ended:
            seen = self._progress()
            time.sleep(_PATIENCE_SECONDS)
            if seen is None:
                self._watched.clear()
                # It may have begun between the look and the clearing.
                if self._inline is not None or self._ended:
                    self._watched.set()
            while seen is not None and seen == self._progress():
                while (batch := self._next_pending()) is not None:
                    worker, calls = batch
                    worker.put_all(calls)
                if not self._receive_once(int(_PATIENCE_SECONDS * 1000), inline=False):
                    return

    def _progress(self) -> tuple[int, int] | None:
        """What is being answered inline, and how far it is; None outside of that."""
        calls = self._inline
        if calls is None:
            return None
        return self._inline_batches, sum([call.code is not None or call.next is not None for call in calls])

    # On the event loop, and its streams.

    def _open_stream(self, method: StreamMethod, event: _Event, came_at: float) -> None:
        call = self.calls[event[1]] = _StreamCall(self._loop, event, came_at)

        def start() -> None:
            call.task = task = self._loop.create_task(self._run_stream(method, call, event[3]))
            self._tasks.add(task)
            # Also of a stream that is cancelled before it runs.
            task.add_done_callback(self._tasks.discard)
            task.add_done_callback(lambda _: self.calls.pop(call.call_id, None))

        self._loop.call_soon_threadsafe(start)

    async def _run_stream(self, method: StreamMethod, call: "_StreamCall", payload: bytes) -> None:
        front = self.front
        sent_bytes = Sent(self.connections, call.peer)

        async def write(data: bytes) -> None:
            sent_bytes.add(len(data))
            # Waits on the loop. The front's own way to wait takes a thread for each client that is behind.
            pause = _FIRST_PAUSE_SECONDS
            while (sent := front.stream_try_send(call.call_id, data)) == STREAM_FULL:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            if sent == STREAM_CLOSED:
                call.cancel()
                # Where the task meets it.
                await asyncio.sleep(0)

        try:
            failure = await method.run(call, payload, write)
        except asyncio.CancelledError:
            sent_bytes.drop()
            raise
        if failure is None:
            front.stream_end(call.call_id)
        else:
            _fail(front, call.call_id, failure)


class _Received(Context):
    """What the front says of a call."""

    _event: _Event

    def metadata(self) -> Metadata:
        metadata: Metadata = self._event[5][0]
        return metadata

    def _time_remaining(self) -> float | None:
        remaining: float | None = self._event[5][2]
        return remaining


class _Call(_Received, RemoteCall):
    """Made for each unary call: it sets no more than it must."""

    def __init__(self, transport: NativeTransport, method: Method, event: _Event, came_at: float) -> None:
        self.method = method
        self.payload = event[3]
        self.came_at = came_at
        self._transport = transport
        self._event = event

    def _send(self, response: bytes) -> None:
        transport, call_id = self._transport, self._event[1]
        transport.calls.pop(call_id, None)
        transport.front.respond(call_id, response)
        if len(response) > COUNTED_BYTES:
            transport.connections.give(self._event[4], len(response))

    def _send_failure(self, status: Status) -> None:
        self._forget()
        _fail(self._transport.front, self._event[1], status)

    def _forget(self) -> None:
        self._transport.calls.pop(self._event[1], None)


class _StreamCall(_Received, StreamCall):
    task: asyncio.Task[None] | None = None

    def __init__(self, loop: asyncio.AbstractEventLoop, event: _Event, came_at: float) -> None:
        self.call_id: int = event[1]
        self.came_at = came_at
        self.peer: str = event[4]
        self._loop = loop
        self._event = event

    def caller_left(self) -> None:
        """The caller has gone. From any thread: the loop has been given the stream before."""
        self._loop.call_soon_threadsafe(self.cancel)

    def cancel(self) -> None:
        assert self.task is not None, "started"
        self.task.cancel()


def _fail(front: NativeGrpcFront, call_id: int, status: Status) -> None:
    front.fail(call_id, status.code, status.message, trailing_metadata=trailers_of(status))
