"""Rooms to watch in, stopped after the test."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.support.watching import Room

Start = Callable[..., Any]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    rooms: list[Room] = []

    async def started(**options: Any) -> Room:
        room = Room(**options)
        await room.start()
        rooms.append(room)
        return room

    yield started
    for room in rooms:
        await room.stop()
