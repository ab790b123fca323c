"""Threads that answer calls of one method, all that wait together at once: where an answer waits for a store."""

import asyncio
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from tandem.runtime.calls import Call, Reply
from tandem.runtime.errors import Overloaded
from tandem.runtime.telemetry import log

AnswerTogether = Callable[[Sequence[Any]], Iterable[bytes | None]]
"""From requests to their serialised responses, each sent before the next is made; None leaves a call to the method."""


class _Waiting(NamedTuple):
    request: Any
    call: Call
    reply: Reply


class Desk:
    """`take` is an AnswerLater; `start` and `stop` make it a Component."""

    def __init__(self, name: str, answers: Sequence[AnswerTogether], *, max_batch: int, max_waiting: int) -> None:
        """answers: each for a thread of its own, and so may own connections. max_batch: requests at once at most.

        max_waiting: requests that may wait for that.
        """
        self._name = name
        self._answers = answers
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    async def start(self) -> None:
        for number, answer in enumerate(self._answers):
            name = f"{self._name}-{number}"
            thread = threading.Thread(target=self._run, args=(answer,), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    async def stop(self) -> None:
        """Answers what waits, then ends the threads."""
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        self._threads.clear()

    def take(self, request: Any, call: Call, reply: Reply) -> None:
        """Raises Overloaded."""
        if self._waiting.qsize() >= self._max_waiting:
            raise Overloaded(f"{self._max_waiting} calls are waiting already")
        self._waiting.put(_Waiting(request, call, reply))

    def _run(self, answer: AnswerTogether) -> None:
        stop = False
        while not stop:
            batch, stop = take_together(self._waiting, self._max_batch)
            live = []
            for it in batch:
                if it.call.gone():
                    it.reply(None)
                else:
                    live.append(it)
            if live:
                self._answer(answer, live)

    def _answer(self, answer: AnswerTogether, batch: Sequence[_Waiting]) -> None:
        answered = 0
        try:
            for response in answer([it.request for it in batch]):
                batch[answered].reply(response)
                answered += 1
        except Exception:
            # A bug; the method can do all that this can.
            log.exception("answering together failed", desk=self._name)
        for it in batch[answered:]:
            it.reply(None)


T = TypeVar("T")


def take_together(waiting: "queue.SimpleQueue[T | None]", most: int) -> tuple[list[T], bool]:
    """Waits for one, and takes what waits with it; and whether None was among that, which is the last one taken."""
    following = waiting.get()
    taken: list[T] = []
    while following is not None:
        taken.append(following)
        if len(taken) == most:
            return taken, False
        try:
            following = waiting.get_nowait()
        except queue.Empty:
            return taken, False
    return taken, True
