"""Workers: what waits together is answered together, by threads, in batches.

Nothing is delayed to make a batch larger: a batch is what came in while the one before was answered.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from google.protobuf.message import Message
from prometheus_client import Histogram

from tandem.runtime.call import Call, Method, Stage, settle, stopping_error
from tandem.runtime.errors import DeadlineExceeded, Overloaded, TandemError, Unavailable
from tandem.runtime.sampled import SampledGauge
from tandem.runtime.supervised import STILL, SupervisedThread

# A thread that prepares may be waiting for rows that somebody else keeps locked. The others wait no longer than this.
_PREPARING_SECONDS = 0.05

Handler = Callable[[Sequence[Call]], None]
"""Answers each of the calls (`reply`, `fail`), or says where it goes next (`call.next`).

It is called by one thread at a time, so it may own connections. What it raises is the answer to those of the calls that
it has neither answered nor sent on.
"""


class Worker:
    """A bounded queue of calls, and threads that answer them. `start` and `stop` make it a Component."""

    def __init__(
        self,
        name: str,
        handlers: Sequence[Handler],
        *,
        max_batch: int,
        max_waiting: int,
        max_waiting_bytes: int = 64 * 1024 * 1024,
        inline: Handler | None = None,
        one_prepares: bool = False,
        sizes: Histogram | None = None,
    ) -> None:
        """handlers: one for each thread. max_batch: calls at once at most.

        max_waiting, max_waiting_bytes: calls that may wait for that, and the bytes of their requests.
        inline: a handler for the thread on which a transport receives; it must not wait long. A transport without such
        a thread puts the calls into the queue, and so does one whose thread is held up in an inline handler.
        one_prepares: a thread takes a batch only when no other is between its own and its call of `prepared`, so that
        a batch forms while another thread prepares. It waits at most 50 ms for that.
        sizes: observes how many calls each batch of a thread has.
        """
        self.name = name
        self.inline = inline
        self._handlers = handlers
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._max_waiting_bytes = max_waiting_bytes
        self._one_prepares = one_prepares
        self._sizes = sizes
        self._waiting: deque[Call] = deque()
        self._waiting_bytes = 0
        self._preparing: int | None = None
        """The thread that has taken its batch last and has not called `prepared` since."""
        lock = threading.Lock()
        self._came = threading.Condition(lock)
        # Apart from the other: who waits for this is not woken by each call that comes.
        self._prepared = threading.Condition(lock)
        self._stopping = False
        self._threads: list[SupervisedThread] = []
        self._idle = 0
        self._still_since = 0.0
        """Since when calls wait of which none was taken; of no meaning while none waits."""
        STILL.watch(self, name)
        for gauge in (WAITING, OLDEST, BUSY, THREADS):
            gauge.watch(self, name)

    async def start(self) -> None:
        for number, handler in enumerate(self._handlers):
            thread = SupervisedThread(f"{self.name}-{number}", partial(self._run, handler))
            thread.start()
            self._threads.append(thread)

    async def stop(self) -> None:
        """Answers what waits, then ends the threads."""
        with self._came:
            self._stopping = True
            self._came.notify_all()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        self._threads.clear()

    def answer_inline(self, calls: Sequence[Call]) -> None:
        """Answers calls on the thread of the transport that received them: one thread at a time."""
        assert self.inline is not None, f"{self.name} has an inline handler"
        answer(self.inline, calls)

    def put_all(self, calls: Sequence[Call]) -> None:
        """Puts calls into the queue, from any thread. Those that find no room are refused."""
        with self._came:
            taken = 0
            if not self._stopping:
                if not self._waiting:
                    self._still_since = time.monotonic()
                for call in calls:
                    size = self._waiting_bytes + len(call.payload)
                    if len(self._waiting) >= self._max_waiting or (self._waiting and size > self._max_waiting_bytes):
                        break
                    self._waiting.append(call)
                    self._waiting_bytes = size
                    taken += 1
                self._came.notify(-(-taken // self._max_batch))
            stopping = self._stopping
        if taken < len(calls):
            full = Overloaded(f"{self._max_waiting} calls wait already, or {self._max_waiting_bytes} bytes of them")
            refuse(calls[taken:], stopping_error() if stopping else full)

    def refuse_waiting(self, seconds: float, error: TandemError) -> None:
        """Ends the calls that have waited for more than so many seconds. From any thread."""
        before = time.monotonic() - seconds
        old: list[Call] = []
        with self._came:
            while self._waiting and self._waiting[0].came_at < before:
                old.append(self._waiting.popleft())
            self._waiting_bytes -= sum([len(call.payload) for call in old])
        refuse(old, error)

    @property
    def waiting(self) -> int:
        """How many calls wait in the queue."""
        return len(self._waiting)

    @property
    def oldest_seconds(self) -> float:
        """For how long the call has waited that came first of those in the queue. For any thread."""
        try:
            return max(0.0, time.monotonic() - self._waiting[0].came_at)
        except IndexError:
            return 0.0

    @property
    def still_seconds(self) -> float:
        """For how long calls have waited of which none was taken. For any thread."""
        return time.monotonic() - self._still_since if self._waiting else 0.0

    @property
    def threads(self) -> int:
        return len(self._threads)

    @property
    def busy(self) -> int:
        """How many of the threads have a batch."""
        return max(0, len(self._threads) - self._idle)

    def prepared(self) -> None:
        """Lets another thread take its batch; for a handler, when the rest of its work is done by others (a database).

        A second time it does nothing, nor on a thread that is not this worker's. The end of the handler means it too.
        """
        if self._preparing == threading.get_ident():
            with self._prepared:
                # Between the look and the lock another thread may have taken a batch without waiting any longer.
                if self._preparing == threading.get_ident():
                    self._preparing = None
                    self._prepared.notify()

    def _run(self, handler: Handler) -> None:
        while batch := self._take():
            try:
                live = _without_late(batch)
                if live:
                    if self._sizes is not None:
                        self._sizes.observe(len(live))
                    answer(handler, live)
            except Exception as error:
                # A bug, and not of the handler: that is what `answer` deals with. Nobody else has these calls.
                refuse([call for call in batch if call.code is None and call.next is None], error)
                raise
            finally:
                self.prepared()

    def _take(self) -> list[Call]:
        """What waits, once something does; empty when the worker has stopped."""
        with self._came:
            self._idle += 1
            try:
                while not self._waiting or not self._may_prepare():
                    if self._stopping and not self._waiting:
                        return []
                    if not self._waiting:
                        self._came.wait()
            finally:
                self._idle -= 1
            self._still_since = time.monotonic()
            batch = [self._waiting.popleft() for _ in range(min(self._max_batch, len(self._waiting)))]
            self._waiting_bytes -= sum([len(call.payload) for call in batch])
            if self._one_prepares:
                self._preparing = threading.get_ident()
            return batch

    def _may_prepare(self) -> bool:
        """Waits until no thread prepares, or long enough. False: meanwhile another has taken all that waited."""
        if self._preparing is not None:
            self._prepared.wait_for(lambda: self._preparing is None, _PREPARING_SECONDS)
        return bool(self._waiting)


WAITING: SampledGauge[Worker] = SampledGauge(
    "tandem_worker_waiting_calls", "Calls that wait in a worker's queue", ["worker"], lambda it, _: it.waiting
)
OLDEST: SampledGauge[Worker] = SampledGauge(
    "tandem_worker_oldest_call_seconds",
    "For how long the first call in a worker's queue has waited",
    ["worker"],
    lambda it, _: it.oldest_seconds,
    max,
)
THREADS: SampledGauge[Worker] = SampledGauge(
    "tandem_worker_threads", "Threads of a worker", ["worker"], lambda it, _: it.threads
)
BUSY: SampledGauge[Worker] = SampledGauge(
    "tandem_worker_busy_threads", "Threads of a worker that have calls in hand", ["worker"], lambda it, _: it.busy
)

Workers = Mapping[str, tuple[Method, Worker]]
"""Who answers unary RPCs, by path: "/package.Service/Method"."""


def answer(handler: Handler, calls: Sequence[Call]) -> None:
    """Runs a handler on a batch: the calls that it answered are settled, the others go where it sent them."""
    try:
        handler(calls)
    except Exception as error:
        for call in calls:
            if call.code is None and call.next is None:
                call.fail(error)
    for call in calls:
        if call.code is None:
            _settle_or_hand_on(handler, calls)
            return
    settle(calls)


def _settle_or_hand_on(handler: Handler, calls: Sequence[Call]) -> None:
    ended: list[Call] = []
    onward: dict[Stage, list[Call]] = {}
    for call in calls:
        if call.code is not None:
            ended.append(call)
        elif call.next is not None:
            onward.setdefault(call.next, []).append(call)
            call.next = None
        else:
            call.fail(AssertionError(f"{handler!r} has neither answered a call nor sent it on"))
            ended.append(call)
    settle(ended)
    for stage, sent in onward.items():
        stage.put_all(sent)


def one_by_one(answer_one: Callable[[Call], Message | bytes]) -> Handler:
    """A handler for calls that share nothing: each gets what `answer_one` returns or raises."""

    def handle(calls: Sequence[Call]) -> None:
        for call in calls:
            try:
                response = answer_one(call)
            except Exception as error:
                call.fail(error)
            else:
                call.reply(response)

    return handle


def all_alike(answer_all: Callable[[], Message]) -> Handler:
    """A handler for requests that ask nothing particular: a batch gets the one response that `answer_all` returns."""

    def handle(calls: Sequence[Call]) -> None:
        response = answer_all().SerializeToString()

        def answer_one(call: Call) -> bytes:
            # Raises InvalidArgument for bytes that are no request.
            _ = call.request
            return response

        one_by_one(answer_one)(calls)

    return handle


def refuse(calls: Sequence[Call], error: Exception) -> None:
    """Ends calls with an error, outside of a handler. One that has begun is not told that nothing was done."""
    for call in calls:
        call.fail(_unfinished() if call.begun else error)
    settle(calls)


def _unfinished() -> Unavailable:
    return Unavailable(
        "some of it is done, and the rest will be; repeat it with the same request_id to learn when",
        reason="OUTCOME_UNKNOWN",
    )


def _without_late(calls: Sequence[Call]) -> list[Call]:
    """Ends those that are not worth answering any more; returns the others."""
    now = time.monotonic()
    live: list[Call] = []
    late: list[Call] = []
    for call in calls:
        if call.gone:
            call.drop()
            late.append(call)
        elif call.deadline <= now:
            what = "some of it is done, and the rest will be" if call.begun else "nothing of it was done"
            call.fail(DeadlineExceeded(f"the deadline passed while the call waited; {what}"))
            late.append(call)
        else:
            live.append(call)
    settle(late)
    return live
