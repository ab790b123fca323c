"""Calls that arrive together are read together, and a key is read once."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable

import pytest

from query_server.batcher import Batcher
from tandem.runtime.errors import Overloaded


class HeldReader:
    """Answers each key with the number of the batch; waits for `go` before each batch when held."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.begun = threading.Event()
        self.go = threading.Event()
        self.go.set()
        self.error: Exception | None = None

    def __call__(self, keys: list[str]) -> dict[str, int]:
        self.batches.append(keys)
        number = len(self.batches)
        self.begun.set()
        assert self.go.wait(10)
        if self.error is not None:
            raise self.error
        return dict.fromkeys(keys, number)

    async def held(self) -> None:
        """Until a batch is under way, held back."""
        assert await asyncio.to_thread(self.begun.wait, 10)

    def hold(self) -> None:
        self.begun.clear()
        self.go.clear()


@pytest.fixture
def reader() -> HeldReader:
    return HeldReader()


@pytest.fixture
async def batcher(reader: HeldReader) -> AsyncIterator[Batcher[str, int]]:
    batcher: Batcher[str, int] = Batcher("test", [reader], max_batch=4, max_waiting=6)
    await batcher.start()
    yield batcher
    reader.go.set()
    await batcher.stop()


def read_each(batcher: Batcher[str, int], keys: Iterable[str]) -> list[asyncio.Task[list[int]]]:
    return [asyncio.create_task(batcher.read([key])) for key in keys]


async def settle() -> None:
    """Lets the tasks that were created reach their wait."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_calls_that_arrive_together_are_one_batch(batcher: Batcher[str, int], reader: HeldReader) -> None:
    assert await asyncio.gather(*read_each(batcher, "abc")) == [[1], [1], [1]]
    assert reader.batches == [["a", "b", "c"]]


async def test_a_key_that_several_calls_ask_for_is_read_once(batcher: Batcher[str, int], reader: HeldReader) -> None:
    assert await asyncio.gather(*read_each(batcher, "aaa"), batcher.read(["b", "a"])) == [[1], [1], [1], [1, 1]]
    assert reader.batches == [["a", "b"]]


async def test_a_call_does_not_join_a_read_that_has_begun(batcher: Batcher[str, int], reader: HeldReader) -> None:
    reader.hold()
    first = asyncio.create_task(batcher.read(["a"]))
    await reader.held()
    second = asyncio.create_task(batcher.read(["a"]))
    await settle()
    reader.go.set()

    assert (await first, await second) == ([1], [2])


async def test_a_batch_is_bounded_and_the_rest_follows(batcher: Batcher[str, int], reader: HeldReader) -> None:
    assert await batcher.read(list("abcdef")) == [1, 1, 1, 1, 2, 2]
    assert reader.batches == [list("abcd"), list("ef")]


async def test_past_the_limit_a_call_is_refused_and_the_others_are_answered(
    batcher: Batcher[str, int], reader: HeldReader
) -> None:
    reader.hold()
    under_way = asyncio.create_task(batcher.read(["x"]))
    await reader.held()
    waiting = read_each(batcher, "abcdef")
    await settle()

    with pytest.raises(Overloaded):
        await batcher.read(["g"])
    reader.go.set()
    await asyncio.gather(under_way, *waiting)


async def test_a_key_whose_callers_have_gone_is_not_read(batcher: Batcher[str, int], reader: HeldReader) -> None:
    reader.hold()
    under_way = asyncio.create_task(batcher.read(["x"]))
    await reader.held()
    gone, stays = read_each(batcher, "ab")
    await settle()
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    reader.go.set()

    assert await stays == [2]
    assert await under_way == [1]
    assert reader.batches == [["x"], ["b"]]


async def test_a_caller_that_goes_leaves_the_key_to_the_others(batcher: Batcher[str, int], reader: HeldReader) -> None:
    reader.hold()
    gone, stays = read_each(batcher, "aa")
    await reader.held()
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    reader.go.set()

    assert await stays == [1]


async def test_what_the_reader_raises_all_calls_of_the_batch_get_and_the_next_batch_is_read(
    batcher: Batcher[str, int], reader: HeldReader
) -> None:
    reader.error = ValueError("broken")
    results = await asyncio.gather(*read_each(batcher, "ab"), batcher.read(["a", "b"]), return_exceptions=True)
    assert results == [reader.error] * 3

    reader.error = None
    assert await batcher.read(["a"]) == [2]
