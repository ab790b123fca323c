"""What operators ask a database: answered by the deadline, whether the database answers or not."""

import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import pytest
from sqlalchemy.exc import DBAPIError

from tandem.runtime.errors import Unavailable
from tandem.runtime.inquiries import Inquiries
from tandem.testing.stack import wait_until

T = TypeVar("T")


@pytest.fixture
async def database() -> AsyncIterator[Inquiries[Any]]:
    """A database whose answer is what the question returns."""

    def ask(query: Callable[[Any], T], /) -> T:
        return query(None)

    database: Inquiries[Any] = Inquiries(ask, "read database", at_once=2)
    yield database
    await database.stop()


def later() -> float:
    return time.monotonic() + 60


def test_who_asks_is_refused_at_the_deadline_and_at_once_behind_questions_without_an_answer(
    database: Inquiries[Any],
) -> None:
    gate = threading.Event()
    for _ in range(2):
        with pytest.raises(Unavailable, match="the read database has not answered in time") as refused:
            database.ask(lambda _: gate.wait(), time.monotonic() + 0.05)
        assert refused.value.reason == "STORE_UNAVAILABLE"
    with pytest.raises(Unavailable, match="does not answer"):
        database.ask(lambda _: gate.wait(), later())
    gate.set()

    def answers() -> bool:
        try:
            return database.ask(lambda _: 7, later()) == 7
        except Unavailable:
            return False

    wait_until(answers, "it is asked again")


def test_one_that_is_away_says_why_and_a_bug_stays_one(database: Inquiries[Any]) -> None:
    def refuse(_: object) -> None:
        raise DBAPIError(None, None, Exception("connection refused"), connection_invalidated=True)

    def divide(_: object) -> float:
        return 1 / 0

    with pytest.raises(Unavailable, match="the read database is away"):
        database.ask(refuse, later())
    with pytest.raises(ZeroDivisionError):
        database.ask(divide, later())
