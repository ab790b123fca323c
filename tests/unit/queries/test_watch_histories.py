"""G8 in histories that are drawn: changes, purges, a database that comes and goes, watchers that leave and resume."""

import asyncio
import contextlib
import random
import uuid

import pytest

from tandem.feed.token import Token
from tandem.runtime.errors import Unavailable
from tandem.testing.stack import until
from tests.support.builders import identity
from tests.support.watching import version_of
from tests.unit.queries.conftest import Start


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_states_only_move_forward_and_end_at_the_latest(start: Start, seed: int) -> None:
    chance = random.Random(seed)
    room = await start(max_changes=chance.choice([2, 1000]), max_batch=2, blind_after=chance.choice([0.001, 60]))
    keys = [uuid.UUID(identity("order", number)) for number in range(4)]
    for key in keys:
        room.put(key)
    seen: dict[int, list[int]] = {number: [] for number in range(12)}

    async def follow(number: int) -> None:
        key = keys[number % 4]
        as_of: Token | None = None
        while True:
            # Some leave after every message, some stay; each goes on where it was.
            async with room.watch(key, resume_from=as_of, heartbeat=0.01) as watcher:
                # The database may be away: try again.
                with contextlib.suppress(Unavailable):
                    for _ in range(chance.choice([1, 3, 1000])):
                        message = await watcher.next()
                        assert as_of is None or message.as_of.includes(as_of)
                        as_of = message.as_of
                        if message.value is not None:
                            seen[number].append(version_of(message.value))
                        for _ in range(chance.randrange(5)):
                            await asyncio.sleep(0)

    tasks = [asyncio.create_task(follow(number)) for number in seen]
    for _ in range(150):
        match chance.randrange(10):
            case 0:
                room.view.purge()
            case 1:
                room.view.away = not room.view.away
            case 2 | 3:
                room.announce()
            case _:
                room.view.put(chance.choice(keys))
        await asyncio.sleep(0.001 * chance.randrange(2))
    room.view.away = False
    room.announce()

    async def all_are_at_the_latest() -> bool:
        for task in tasks:
            assert not task.done(), task.exception()
        latest = [version_of(room.view.rows[key].value) for key in keys]
        return all(versions[-1:] == [latest[number % 4]] for number, versions in seen.items())

    await until(all_are_at_the_latest, "every watcher is at the latest state")
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for versions in seen.values():
        assert versions == sorted(set(versions)), "forward only, and nothing twice"
