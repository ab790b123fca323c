"""Calls that arrive together are read together.

Everything is decided on the event loop, so nothing is locked: keys that calls ask for are collected, and whenever a
reader is free, one thread reads all that wait. A key that several calls ask for is read once. A call joins only a read
that has not begun: one under way may have seen a state from before the call's token.
"""

import asyncio
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

from prometheus_client import Histogram

from tandem.runtime.errors import Overloaded

BATCH_SIZE = Histogram(
    "tandem_read_batch_size",
    "Keys, or pages of lists, that were read together",
    ["kind"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

Read = Callable[[list[K]], Mapping[K, V]]
"""Reads a batch, in a thread: a value for every key. What it raises, all calls of the batch get."""


class _Call(Generic[K, V]):
    """A call that waits for the values of its keys."""

    __slots__ = ("answer", "left", "values")

    def __init__(self, answer: asyncio.Future[dict[K, V]], left: int) -> None:
        self.answer = answer
        self.left = left
        self.values: dict[K, V] = {}


class Batcher(Generic[K, V]):
    """Hands what waits to its readers, batch by batch. `start` and `stop` make it a Component."""

    def __init__(self, kind: str, readers: Sequence[Read[K, V]], *, max_batch: int, max_waiting: int) -> None:
        """`readers`: each is called by one thread at a time, and so may own connections."""
        self._kind = kind
        self._idle = list(readers)
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._waiting: dict[K, list[_Call[K, V]]] = {}
        self._scheduled = False
        self._sizes = BATCH_SIZE.labels(kind)
        self._threads: ThreadPoolExecutor | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(len(self._idle), thread_name_prefix=f"read-{self._kind}")

    async def stop(self) -> None:
        """Waits for the batches under way."""
        threads, self._threads = self._threads, None
        if threads is not None:
            await asyncio.to_thread(threads.shutdown)

    async def read(self, keys: Sequence[K]) -> list[V]:
        """The values of `keys`, read from now on, in their order.

        Raises Overloaded when too many keys wait, and what the reader raised.
        """
        assert self._loop is not None, "started"
        asked = dict.fromkeys(keys)
        if len(self._waiting) + len(asked) > self._max_waiting:
            raise Overloaded(f"{len(self._waiting)} keys are waiting to be read already")
        call: _Call[K, V] = _Call(self._loop.create_future(), len(asked))
        for key in asked:
            self._waiting.setdefault(key, []).append(call)
        if not self._scheduled:
            # Not at once: the calls that the loop runs before it comes back join this batch.
            self._scheduled = True
            self._loop.call_soon(self._dispatch)
        values = await call.answer
        return [values[key] for key in keys]

    def _dispatch(self) -> None:
        self._scheduled = False
        while self._idle and self._waiting and self._threads is not None:
            batch = self._take()
            if batch:
                self._sizes.observe(len(batch))
                self._threads.submit(self._run, self._idle.pop(), batch)

    def _take(self) -> dict[K, list[_Call[K, V]]]:
        """The next batch, without the keys whose callers have all gone."""
        batch = {key: self._waiting.pop(key) for key in list(islice(self._waiting, self._max_batch))}
        return {key: calls for key, calls in batch.items() if any(not call.answer.done() for call in calls)}

    def _run(self, reader: Read[K, V], batch: dict[K, list[_Call[K, V]]]) -> None:
        values: Mapping[K, V] | Exception
        try:
            values = reader(list(batch))
        except Exception as error:
            values = error
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._finish, reader, batch, values)

    def _finish(self, reader: Read[K, V], batch: dict[K, list[_Call[K, V]]], values: Mapping[K, V] | Exception) -> None:
        self._idle.append(reader)
        # The next batch first: it is read while this one's calls are answered.
        self._dispatch()
        for key, calls in batch.items():
            for call in calls:
                if call.answer.done():
                    # Cancelled, or another of its keys failed.
                    continue
                if isinstance(values, Exception):
                    call.answer.set_exception(values)
                    continue
                call.values[key] = values[key]
                call.left -= 1
                if not call.left:
                    call.answer.set_result(call.values)
