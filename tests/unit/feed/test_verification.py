"""A verification that is called off holds nothing any more, and nobody waits for it."""

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

from commerce.audit.v1 import audit_service_pb2 as audit
from tandem.feed.verification import ROW, AuditService, Chosen, Difference, Step
from tandem.testing.stack import PATIENCE

SERVICE = audit.DESCRIPTOR.services_by_name["AuditService"]
CALL: Any = SimpleNamespace(stopping=False, when_stopping=lambda _: None)


class Endless:
    """A comparison that finds something in each step. closed: the thread on which it gave back what it held."""

    def __init__(self) -> None:
        self.closed: Future[threading.Thread] = Future()
        self.under_way = threading.Event()
        self.let = threading.Event()
        self.let.set()

    def verify(
        self, subject: str, _chosen: Chosen, _repair: bool, _is_over: Callable[[], bool]
    ) -> Generator[Step, None, None]:
        try:
            for number in itertools.count():
                self.under_way.set()
                assert self.let.wait(PATIENCE)
                yield Step(keys=1, differences=[Difference(subject, bytes(16), ROW, number)])
        finally:
            self.closed.set_result(threading.current_thread())


async def closed(endless: Endless) -> threading.Thread:
    async with asyncio.timeout(PATIENCE):
        return await asyncio.wrap_future(endless.closed)


async def test_one_that_its_caller_leaves_is_closed_off_the_event_loop() -> None:
    """To give a connection back may take as long as a database is silent."""
    endless = Endless()
    answers = AuditService(SERVICE, {"orders": endless.verify}).verify(audit.VerifyRequest(), CALL)
    assert (await anext(answers)).keys == 1
    await answers.aclose()
    assert await closed(endless) is not threading.main_thread()


async def test_one_that_its_caller_leaves_during_a_step_is_closed_behind_that() -> None:
    endless = Endless()
    answers = AuditService(SERVICE, {"orders": endless.verify}).verify(audit.VerifyRequest(), CALL)
    await anext(answers)
    endless.under_way.clear()
    endless.let.clear()
    asking = asyncio.ensure_future(anext(answers))
    assert await asyncio.to_thread(endless.under_way.wait, PATIENCE)
    asking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asking
    assert not endless.closed.done()
    endless.let.set()
    assert await closed(endless) is not threading.main_thread()
