"""Workers: batches, limits, who prepares, and what becomes of calls that nobody wants any more."""

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import BytesValue, StringValue
from prometheus_client import CollectorRegistry, Histogram
from structlog.testing import capture_logs

from tandem.runtime import worker as module
from tandem.runtime.call import Admission, Call, LocalCall, Method, settle
from tandem.runtime.errors import DeadlineExceeded, InvalidArgument, NotFound, Overloaded, Unavailable
from tandem.runtime.worker import Handler, Worker, answer, one_by_one
from tests.support.metrics import sample

PATIENCE = 20.0
METHOD = Method("Test", BytesValue)


def call(payload: bytes = b"", *, seconds: float = 60) -> LocalCall:
    return LocalCall(METHOD, BytesValue(value=payload), seconds=seconds)


@one_by_one
def empty(_: Call) -> Empty:
    return Empty()


class Gate:
    """A handler that waits in each batch until it is let through, and notes the batches."""

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        self.before = before
        self.entered = threading.Semaphore(0)
        self.through = threading.Semaphore(0)
        self.sizes: list[int] = []

    def __call__(self, calls: Sequence[Call]) -> None:
        self.sizes.append(len(calls))
        self.before()
        self.entered.release()
        assert self.through.acquire(timeout=PATIENCE)
        empty(calls)

    async def is_entered(self) -> None:
        assert await asyncio.to_thread(self.entered.acquire, timeout=PATIENCE)


def answered(*calls: LocalCall) -> list[object]:
    return [it.future.result(PATIENCE) for it in calls]


Start = Callable[..., Awaitable[Worker]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    started: list[Worker] = []

    async def start_it(*handlers: Handler, max_batch: int = 64, max_waiting: int = 1000, **options: object) -> Worker:
        made = Worker("test", handlers, max_batch=max_batch, max_waiting=max_waiting, **options)  # type: ignore[arg-type]
        await made.start()
        started.append(made)
        return made

    yield start_it
    for it in started:
        await it.stop()


async def test_batches_are_no_larger_than_the_limit_and_their_sizes_are_observed(start: Start) -> None:
    sizes = Histogram("sizes", "Of batches", registry=CollectorRegistry())
    gate = Gate()
    worker = await start(gate, max_batch=2, sizes=sizes)
    calls = [call() for _ in range(6)]
    worker.put_all(calls[:1])
    await gate.is_entered()
    worker.put_all(calls[1:])
    assert worker.waiting == 5
    for _ in range(4):
        gate.through.release()
    answered(*calls)
    assert gate.sizes == [1, 2, 2, 1]
    [metric] = sizes.collect()
    assert {it.name: it.value for it in metric.samples}["sizes_sum"] == 6


async def test_calls_past_the_limit_are_refused_and_those_before_are_not(start: Start) -> None:
    gate = Gate()
    worker = await start(gate, max_waiting=2)
    first, *others = [call() for _ in range(5)]
    worker.put_all([first])
    await gate.is_entered()
    worker.put_all(others)
    for refused in others[2:]:
        with pytest.raises(Overloaded):
            answered(refused)
    gate.through.release(2)
    assert answered(first, *others[:2]) == [Empty()] * 3


async def test_bytes_that_wait_are_limited_but_one_large_call_is_taken(start: Start) -> None:
    gate = Gate()
    worker = await start(gate, max_waiting_bytes=100)
    first, large, small = call(), call(b"x" * 200), call(b"x")
    worker.put_all([first])
    await gate.is_entered()
    worker.put_all([large])
    worker.put_all([small])
    with pytest.raises(Overloaded):
        answered(small)
    gate.through.release(2)
    answered(first, large)
    # And there is room again.
    again = call(b"x" * 90)
    worker.put_all([again])
    gate.through.release()
    answered(again)


async def test_a_stop_answers_what_waits_and_refuses_what_comes(start: Start) -> None:
    worker = await start(empty)
    calls = [call() for _ in range(10)]
    worker.put_all(calls)
    await worker.stop()
    assert answered(*calls) == [Empty()] * 10
    late = call()
    worker.put_all([late])
    with pytest.raises(Unavailable) as refused:
        answered(late)
    assert refused.value.reason == "STOPPING"


async def test_calls_that_are_too_late_or_left_are_not_begun(start: Start) -> None:
    gate = Gate()
    worker = await start(gate)
    first, late, left, last = call(), call(seconds=0), call(), call()
    worker.put_all([first])
    await gate.is_entered()
    worker.put_all([late, left, last])
    assert left.future.cancel()
    gate.through.release(2)
    answered(first, last)
    with pytest.raises(DeadlineExceeded):
        answered(late)
    assert left.code == grpc.StatusCode.CANCELLED
    assert gate.sizes == [1, 1]


async def test_a_call_that_has_begun_is_never_told_that_nothing_was_done(start: Start) -> None:
    worker = await start(empty)
    late, refused = call(seconds=0), call()
    late.begun = refused.begun = True
    worker.put_all([late])
    with pytest.raises(DeadlineExceeded, match="some of it is done"):
        await asyncio.wrap_future(late.future)
    await worker.stop()
    worker.put_all([refused])
    with pytest.raises(Unavailable) as caught:
        await asyncio.wrap_future(refused.future)
    assert caught.value.reason == "OUTCOME_UNKNOWN"


async def test_a_failure_outside_of_the_handler_is_logged_and_the_thread_goes_on(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await start(empty)
    with capture_logs() as logs, monkeypatch.context() as broken:
        failed = threading.Event()

        def fail(*_: object) -> None:
            failed.set()
            raise RuntimeError("a bug")

        broken.setattr(module, "answer", fail)
        taken = call()
        worker.put_all([taken])
        assert await asyncio.to_thread(failed.wait, PATIENCE)
        with pytest.raises(RuntimeError):
            answered(taken)
    after = call()
    worker.put_all([after])
    assert answered(after) == [Empty()]
    assert [it["thread"] for it in logs if it["event"] == "a thread failed and is begun anew"] == ["test-0"]


def test_one_by_one_gives_each_call_its_own_answer() -> None:
    def echo(it: Call) -> StringValue:
        if not it.request.value:
            raise NotFound("thing", "things/1")
        return StringValue(value=it.request.value.decode())

    good, bad = call(b"x"), call()
    answer(one_by_one(echo), [bad, good])
    assert good.future.result(0) == StringValue(value="x")
    with pytest.raises(NotFound):
        bad.future.result(0)


def test_a_handler_that_forgets_a_call_fails_it() -> None:
    kept, forgotten = call(), call()
    answer(lambda calls: calls[0].reply(Empty()), [kept, forgotten])
    assert kept.future.result(0) == Empty()
    with pytest.raises(AssertionError, match="neither answered a call nor sent it on"):
        forgotten.future.result(0)


class Threads:
    """Handlers of two threads: each waits until it is let through what prepares, and then through the rest."""

    def __init__(self) -> None:
        self.worker: Worker | None = None
        self.began: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.prepared, self.through = threading.Semaphore(0), threading.Semaphore(0)
        self.says_so = True

    def __call__(self, calls: Sequence[Call]) -> None:
        self.began.put(len(calls))
        assert self.prepared.acquire(timeout=PATIENCE)
        if self.says_so:
            assert self.worker is not None
            self.worker.prepared()
            self.worker.prepared()
        assert self.through.acquire(timeout=PATIENCE)
        empty(calls)

    async def next_batch(self) -> int:
        return await asyncio.to_thread(self.began.get, timeout=PATIENCE)


class TestOnePrepares:
    @pytest.fixture
    async def threads(self) -> Threads:
        return Threads()

    @pytest.fixture
    def no_timeout(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Longer than any test takes, for those that show something else."""
        monkeypatch.setattr(module, "_PREPARING_SECONDS", 2 * PATIENCE)

    @pytest.mark.usefixtures("no_timeout")
    async def test_a_batch_forms_until_the_one_that_prepares_says_so(self, start: Start, threads: Threads) -> None:
        worker = threads.worker = await start(threads, threads, one_prepares=True)
        calls = [call() for _ in range(9)]
        worker.put_all(calls[:1])
        assert await threads.next_batch() == 1
        for it in calls[1:]:
            worker.put_all([it])
        assert worker.waiting == 8
        threads.prepared.release()
        # While the first thread does the rest of its work.
        assert await threads.next_batch() == 8
        threads.prepared.release()
        threads.through.release(2)
        assert answered(*calls) == [Empty()] * 9

    @pytest.mark.usefixtures("no_timeout")
    async def test_the_end_of_the_handler_says_it_too(self, start: Start) -> None:
        worker = await start(empty, empty, one_prepares=True, max_batch=1)
        calls = [call() for _ in range(50)]
        worker.put_all(calls)
        assert answered(*calls) == [Empty()] * 50

    async def test_one_that_prepares_for_long_is_not_waited_for(self, start: Start, threads: Threads) -> None:
        worker = threads.worker = await start(threads, threads, one_prepares=True, max_batch=1)
        calls = [call(), call()]
        worker.put_all(calls)
        assert [await threads.next_batch() for _ in calls] == [1, 1]
        threads.prepared.release(2)
        threads.through.release(2)
        assert answered(*calls) == [Empty()] * 2

    @pytest.mark.usefixtures("no_timeout")
    async def test_nobody_else_says_it(self, start: Start, threads: Threads) -> None:
        worker = threads.worker = await start(threads, threads, one_prepares=True, max_batch=1)
        threads.says_so = False
        calls = [call(), call()]
        worker.put_all(calls)
        await threads.next_batch()
        worker.prepared()
        assert worker._preparing is not None
        threads.prepared.release(2)
        threads.through.release(2)
        assert answered(*calls) == [Empty()] * 2


class Answered(Call):
    """A call that only has how it ended."""

    def __init__(self, method: Method, came_at: float, code: grpc.StatusCode) -> None:
        self.method = method
        self.came_at = came_at
        self.code = code

    def _never(self, *_: object) -> None:
        raise AssertionError

    metadata = _time_remaining = reply = fail = _forget = _never  # type: ignore[assignment]


def test_settling_counts_each_call_and_makes_its_room() -> None:
    admission = Admission(10)
    one, two = (Method(f"Settle{name}", Empty, admission=admission) for name in ("One", "Two"))
    assert admission.enter(12) == 10
    ok, aborted = grpc.StatusCode.OK, grpc.StatusCode.ABORTED
    settle([])
    settle(
        [
            *(Answered(one, 1.0, ok) for _ in range(3)),
            *(Answered(one, 2.0, ok) for _ in range(2)),
            Answered(one, 2.0, aborted),
            *(Answered(two, 2.0, aborted) for _ in range(3)),
        ]
    )

    def counted(method: Method, code: str) -> float | None:
        return sample("tandem_calls_total", method=method.name, code=code)

    def timed(method: Method) -> float | None:
        return sample("tandem_call_seconds_count", method=method.name)

    assert (counted(one, "OK"), counted(one, "ABORTED"), counted(two, "ABORTED")) == (5, 1, 3)
    assert (timed(one), timed(two)) == (6, 3)
    assert admission.enter(12) == 9


class TestLocalCall:
    def test_its_future_has_the_response_or_the_error(self) -> None:
        replied, failed = call(), call()
        replied.reply(Empty())
        failed.fail(NotFound("thing", "things/1"))
        assert replied.future.result(0) == Empty()
        assert (replied.code, failed.code) == (grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND)
        with pytest.raises(NotFound):
            failed.future.result(0)

    def test_who_cancels_the_future_leaves_the_call(self) -> None:
        told: list[Call] = []
        it = call()
        it.when_gone = told.append
        assert it.future.cancel()
        assert it.gone
        assert told == [it]
        it.reply(Empty())
        assert it.code == grpc.StatusCode.CANCELLED

    def test_a_drop_cancels_the_future(self) -> None:
        it = call()
        it.caller_left()
        it.drop()
        assert it.future.cancelled()
        assert it.code == grpc.StatusCode.CANCELLED

    def test_a_second_answer_is_a_bug_that_is_logged_and_counted(self) -> None:
        def twice() -> float:
            return sample("tandem_calls_answered_twice_total") or 0

        before = twice()
        it = call()
        it.reply(Empty())
        with capture_logs() as logs:
            it.fail(NotFound("thing", "things/1"))
        assert [entry["event"] for entry in logs] == ["call answered twice"]
        assert twice() == before + 1
        assert it.future.result(0) == Empty()
        assert it.code == grpc.StatusCode.OK

    def test_its_deadline_and_its_metadata_are_those_that_it_was_given(self) -> None:
        it = LocalCall(METHOD, BytesValue(), seconds=5, metadata=(("x-request-id", "expiry-1"),))
        assert 0 < it.seconds_left() <= 5
        assert it.reference() == "expiry-1"
        assert it.request == BytesValue()

    def test_bytes_that_are_no_request_are_an_invalid_argument(self) -> None:
        it = call()
        it.payload, it._request = b"\xff\xff", None
        with pytest.raises(InvalidArgument):
            _ = it.request
