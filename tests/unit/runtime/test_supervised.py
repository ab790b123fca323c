"""A thread or a task that fails unexpectedly is counted, logged, seen and begun anew."""

import asyncio
import threading

import pytest
from structlog.testing import capture_logs

from tandem.runtime import supervised
from tandem.runtime.supervised import SupervisedThread, supervise, what_is_down
from tandem.testing.stack import wait_until
from tests.support.metrics import sample


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised, "_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(supervised, "_WELL_AFTER_SECONDS", 0.1)


def restarts(name: str) -> float:
    return sample("tandem_thread_restarts_total", thread=name) or 0.0


class Work:
    """Fails with these errors, one at each beginning; then it runs until it is stopped."""

    def __init__(self, *errors: BaseException) -> None:
        self._errors = list(errors)
        self.runs = threading.Event()
        self.stop = threading.Event()

    def __call__(self) -> None:
        if self._errors:
            raise self._errors.pop(0)
        self.runs.set()
        self.stop.wait()


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), MemoryError(), SystemExit(1)], ids=repr)
def test_a_thread_goes_on_after_whatever_it_raises(error: BaseException) -> None:
    work = Work(error, error)
    thread = SupervisedThread("one", work)
    before = restarts("one")
    with capture_logs() as logs:
        thread.start()
        assert work.runs.wait(20)
    assert restarts("one") - before == 2
    assert [(it["log_level"], it["thread"]) for it in logs] == [("error", "one")] * 2
    wait_until(lambda: what_is_down() == [], "it has run for long enough")
    work.stop.set()
    thread.join()


def test_a_thread_is_down_from_its_failure_until_it_has_run_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised, "_WELL_AFTER_SECONDS", 1000)
    work = Work(RuntimeError())
    thread = SupervisedThread("another", work)
    thread.start()
    assert work.runs.wait(20)
    assert what_is_down() == ["another"]
    work.stop.set()
    thread.join()
    assert what_is_down() == [], "what has been stopped is not missed"


def test_a_thread_that_was_never_started_is_joined_at_once() -> None:
    SupervisedThread("none", lambda: None).join()


async def test_a_task_goes_on_and_can_be_cancelled() -> None:
    failures = [OSError(), ValueError()]
    runs = asyncio.Event()

    async def run() -> None:
        if failures:
            raise failures.pop()
        runs.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(supervise("task", run))
    await asyncio.wait_for(runs.wait(), 20)
    assert restarts("task") == 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert what_is_down() == []
