"""The native transport on a front of the test's: what it makes of each batch. What it uses of the library is there."""

import asyncio
import importlib.metadata
import inspect
import queue
import re
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pygrpc_native
import pytest
from google.protobuf.empty_pb2 import Empty
from grpc import aio
from structlog.testing import capture_logs

from tandem.runtime import native
from tandem.runtime.call import Call, Method, StreamCall, StreamHandler, StreamMethod, Streams
from tandem.runtime.guards import Guards
from tandem.runtime.native import NativeTransport
from tandem.runtime.settings import ServerSettings
from tandem.runtime.worker import Handler, Worker, one_by_one
from tandem.testing.stack import until

PATIENCE = 20.0
ROOT = Path(__file__).parents[3]


class Front:
    """As the library's, with batches that the test makes; notes how calls are answered."""

    bound_port = 1

    def __init__(self, *_: object, **__: object) -> None:
        self.batches: queue.SimpleQueue[list[tuple[Any, ...]] | None] = queue.SimpleQueue()
        self.methods = 0
        self.answers: queue.SimpleQueue[tuple[int, bytes | int]] = queue.SimpleQueue()

    def add_methods(self, methods: Sequence[tuple[str, bool]]) -> list[int]:
        first, self.methods = self.methods, self.methods + len(methods)
        return list(range(first, self.methods))

    def set_fallback(self, path: str) -> None: ...

    def start(self) -> None: ...

    def close(self) -> None:
        # One for each thread that receives.
        self.batches.put(None)
        self.batches.put(None)

    def recv_batch_details(self, _: int, timeout_ms: int | None = None) -> list[tuple[Any, ...]] | None:
        try:
            return self.batches.get(timeout=None if timeout_ms is None else timeout_ms / 1000)
        except queue.Empty:
            return []

    def respond(self, call_id: int, payload: bytes) -> bool:
        self.answers.put((call_id, payload))
        return True

    def fail(self, call_id: int, code: int, message: str, trailing_metadata: object) -> bool:
        self.answers.put((call_id, code))
        return True

    def next_answer(self) -> tuple[int, bytes | int]:
        return self.answers.get(timeout=PATIENCE)


def call(call_id: int, number: int, payload: bytes = b"") -> tuple[Any, ...]:
    return (pygrpc_native.EVENT_CALL, call_id, number, payload, "peer", ((), "peer", 10.0))


def cancel(call_id: int) -> tuple[Any, ...]:
    return (pygrpc_native.EVENT_CANCEL, call_id, 0, None, None, None)


class Served:
    def __init__(self, transport: NativeTransport, front: Front) -> None:
        self.transport = transport
        self.front = front

    def sent(self, *events: tuple[Any, ...]) -> None:
        self.front.batches.put(list(events))

    def answered(self, calls: int) -> dict[int, bytes | int]:
        return dict(self.front.next_answer() for _ in range(calls))


@pytest.fixture
async def serve(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    monkeypatch.setattr(native, "NativeGrpcFront", Front)
    started: list[Any] = []

    async def serve_workers(*workers: Worker, limit: int = 1000, streams: Sequence[StreamHandler] = ()) -> Served:
        """Each worker's method has its number, then come those of streams."""
        settings = ServerSettings(port=0, max_request_bytes=1024).model_copy(update={"max_concurrent_calls": limit})
        guards = Guards(settings)
        transport = NativeTransport("x", settings, guards)
        methods = [Method(f"Method{it}", Empty, admission=guards.admission) for it in range(len(workers))]

        for worker in workers:
            await worker.start()
        routes = {f"/s/{it.name}": (it, worker) for it, worker in zip(methods, workers, strict=True)}
        opened = Streams()
        stream_routes = {
            f"/s/Stream{it}": StreamMethod(f"Stream{it}", Empty, handler, opened, 1024, 1024)
            for it, handler in enumerate(streams)
        }
        await transport.start(routes, stream_routes, {})
        started.extend([*workers, transport])
        assert isinstance(transport.front, Front)
        return Served(transport, transport.front)

    yield serve_workers
    for it in reversed(started):
        await (it.stop(0) if isinstance(it, NativeTransport) else it.stop())


@one_by_one
def inline(_: Call) -> bytes:
    return b"inline"


@one_by_one
def queued(_: Call) -> bytes:
    return b"queued"


def worker(*handlers: Handler, inline: Handler | None = None) -> Worker:
    return Worker("test", handlers, max_batch=64, max_waiting=1000, inline=inline)


class HeldUp:
    def __init__(self) -> None:
        self.entered = threading.Event()
        self.release = threading.Event()

    def __call__(self, calls: Sequence[Call]) -> None:
        self.entered.set()
        assert self.release.wait(PATIENCE)
        inline(calls)


async def test_calls_go_to_their_workers_and_every_answer_forgets_its_call(serve: Any) -> None:
    served = await serve(worker(queued, inline=inline), worker(queued))
    served.sent(call(1, 0), call(2, 1), call(3, 0))
    assert served.answered(3) == {1: b"inline", 2: b"queued", 3: b"inline"}
    assert served.transport.calls == {}


async def test_calls_that_came_with_one_that_is_held_up_are_answered_by_threads(serve: Any) -> None:
    held_up = HeldUp()
    served = await serve(worker(queued, inline=held_up), worker(queued, inline=inline), worker(queued))
    served.sent(call(1, 0), call(2, 1), call(3, 2))
    assert served.answered(2) == {2: b"queued", 3: b"queued"}
    served.sent(call(4, 0), call(5, 1))
    assert served.answered(2) == {4: b"queued", 5: b"queued"}
    held_up.release.set()
    assert served.answered(1) == {1: b"inline"}


async def test_a_long_batch_that_goes_on_is_not_held_up(serve: Any) -> None:
    """Each call takes longer than a third of what the stand-in waits for; together they take much longer."""
    pause = threading.Event()

    @one_by_one
    def slow(_: Call) -> bytes:
        pause.wait(native._PATIENCE_SECONDS / 3)
        return b"inline"

    served = await serve(worker(queued, inline=slow), worker(queued, inline=inline))
    served.sent(*(call(number, 0) for number in range(30)), call(30, 1))
    answers = served.answered(31)
    assert [answers[number] for number in range(30)] == [b"inline"] * 30
    # On a busy machine the thread may have stood still for long enough.
    assert answers[30] in (b"inline", b"queued")


async def test_a_call_and_its_end_in_one_batch(serve: Any) -> None:
    seen: list[bool] = []

    @one_by_one
    def look(it: Call) -> bytes:
        seen.append(it.gone)
        return b"x"

    served = await serve(worker(queued, inline=look))
    served.sent(call(1, 0), cancel(1), call(2, 0), cancel(77))
    assert served.answered(1) == {2: b"x"}
    assert seen == [True, False]
    assert served.transport.calls == {}


async def test_a_stream_and_its_end_in_one_batch_are_forgotten(serve: Any) -> None:
    async def never(request: Any, it: StreamCall) -> AsyncGenerator[bytes, None]:
        raise AssertionError("nobody waits for it")
        yield b""

    served = await serve(worker(queued, inline=inline), streams=[never])
    served.sent(call(1, 1), cancel(1), call(2, 0))
    assert await asyncio.to_thread(served.answered, 1) == {2: b"inline"}

    async def forgotten() -> bool:
        return not served.transport.calls

    await until(forgotten, "no call is under way")


async def test_calls_past_the_limit_and_too_large_ones_never_reach_a_worker(serve: Any) -> None:
    held_up = HeldUp()
    served = await serve(worker(held_up), limit=2)
    served.sent(call(1, 0), call(2, 0), call(3, 0), call(4, 0, b"x" * 1025))
    assert served.answered(2) == {3: 8, 4: 8}
    held_up.release.set()
    assert served.answered(2) == {1: b"inline", 2: b"inline"}


async def test_an_inline_handler_is_not_asked_for_nothing(serve: Any) -> None:
    sizes: list[int] = []

    def count(calls: Sequence[Call]) -> None:
        sizes.append(len(calls))
        inline(calls)

    served = await serve(worker(queued, inline=count), limit=0)
    served.sent(call(1, 0), call(2, 0))
    assert served.answered(2) == {1: 8, 2: 8}
    assert sizes == []


async def test_a_bug_in_letting_go_of_a_call_harms_no_other(serve: Any) -> None:
    held_up = HeldUp()
    served = await serve(worker(held_up))
    served.sent(call(1, 0))
    assert await asyncio.to_thread(held_up.entered.wait, PATIENCE)

    let_go = threading.Event()

    def broken(_: Call) -> None:
        let_go.set()
        raise RuntimeError("a bug")

    served.transport.calls[1].when_gone = broken
    with capture_logs() as logs:
        served.sent(cancel(1), call(2, 0))
        # The handler would answer the first call if it went on before the transport has received that its caller left.
        assert await asyncio.to_thread(let_go.wait, PATIENCE)
        held_up.release.set()
        assert served.answered(1) == {2: b"inline"}
    assert [it["event"] for it in logs] == ["a call could not be let go of"]


async def test_a_bug_in_handing_on_does_not_end_the_receiving_thread(serve: Any) -> None:
    served = await serve(worker(queued, inline=inline))
    served.sent(call(1, 99))
    served.sent(call(2, 0))
    assert served.answered(1) == {2: b"inline"}


async def test_a_stop_says_to_calls_under_way_that_nobody_waits(serve: Any) -> None:
    held_up = HeldUp()
    served = await serve(worker(held_up))
    served.sent(call(1, 0))
    assert await asyncio.to_thread(held_up.entered.wait, PATIENCE)
    [under_way] = served.transport.calls.values()
    await served.transport.stop(0)
    assert under_way.gone
    held_up.release.set()


class TestTheLibrary:
    """A release that moves what we use fails here, and says what."""

    def test_its_release_is_the_one_that_we_know(self) -> None:
        [pinned] = re.findall(r"^pygrpc-native==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
        assert pinned == importlib.metadata.version("pygrpc-native") == "0.5.0"

    def test_its_front_has_the_methods_and_arguments_that_we_use(self) -> None:
        front = pygrpc_native.NativeGrpcFront
        expected = {
            "add_methods": ["methods"],
            "set_fallback": ["path"],
            "start": [],
            "recv_batch_details": ["max_events", "timeout_ms"],
            "respond": ["call_id", "payload", "initial_metadata", "trailing_metadata"],
            "fail": ["call_id", "code", "message", "trailing_metadata"],
            "stream_try_send": ["call_id", "payload"],
            "stream_end": ["call_id", "trailing_metadata"],
            "close": [],
        }
        found = {name: list(inspect.signature(getattr(front, name)).parameters)[1:] for name in expected}
        assert found == expected
        assert isinstance(inspect.getattr_static(front, "bound_port"), object)
        used = {
            "io_threads",
            "call_details",
            "delay_stream_headers",
            "keepalive_time_ms",
            "keepalive_timeout_ms",
            "keepalive_permit_without_calls",
            "max_concurrent_streams",
        }
        assert used <= set(inspect.signature(front).parameters)

    def test_it_says_apart_what_happens(self) -> None:
        assert pygrpc_native.EVENT_CALL != pygrpc_native.EVENT_CANCEL
        outcomes = (pygrpc_native.STREAM_SENT, pygrpc_native.STREAM_FULL, pygrpc_native.STREAM_CLOSED)
        assert len(set(outcomes)) == 3

    async def test_its_events_have_the_shape_that_we_take_apart(self) -> None:
        front = pygrpc_native.NativeGrpcFront("127.0.0.1:0", [], io_threads=1, call_details=True)
        assert front.add_methods([("/s/One", False), ("/s/Many", True)]) == [0, 1]
        front.start()

        async def next_event() -> tuple[Any, ...]:
            events = await asyncio.to_thread(front.recv_batch_details, 256, int(PATIENCE * 1000))
            assert events is not None
            [event] = events
            return event

        async with aio.insecure_channel(f"127.0.0.1:{front.bound_port}") as channel:
            one: aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/s/One")
            many: aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream("/s/Many")
            unary = one(b"request", timeout=PATIENCE, metadata=(("x-request-id", "7"),))
            event = await next_event()
            kind, call_id, number, payload, _, (metadata, _, remaining) = event
            assert (kind, number, payload) == (pygrpc_native.EVENT_CALL, 0, b"request")
            assert ("x-request-id", "7") in metadata
            assert 0 < remaining <= 1.01 * PATIENCE
            assert front.respond(call_id, b"response")
            assert await unary == b"response"

            stream = many(b"", timeout=PATIENCE)
            event = await next_event()
            assert event[:4] == (pygrpc_native.EVENT_CALL, event[1], 1, b"")
            assert front.stream_try_send(event[1], b"message") == pygrpc_native.STREAM_SENT
            assert await stream.read() == b"message"
            stream.cancel()
            end = await next_event()
            assert (end[0], end[1], len(end)) == (pygrpc_native.EVENT_CANCEL, event[1], 6)
            assert front.stream_try_send(event[1], b"message") == pygrpc_native.STREAM_CLOSED

            assert await asyncio.to_thread(front.recv_batch_details, 256, 1) == []
        front.close()
        assert front.recv_batch_details(256) is None
