"""Clients, checker and comparison find nothing in the product, and find each way in which it is broken on purpose."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from pydantic import SecretStr

import command_server.app
import command_server.settings
import projector.app
import projector.settings
import query_server.app
import query_server.settings
from nemesis.checker import Violation, by_guarantee, check
from nemesis.clients import Addresses, Crowd
from nemesis.shop import read_feed
from nemesis.stores import compare, wait_until_followed
from projector import product_card
from tandem.cli.embedded import Memcached
from tandem.commands import executor, receipts
from tandem.commands.acknowledged import Acknowledged
from tandem.commands.domain import Command
from tandem.commands.executor import _Storing
from tandem.feed import service
from tandem.feed.events import FeedEvent
from tandem.projection import fold, pipeline
from tandem.projection.cache_writer import CacheWriter
from tandem.projection.fold import Steps
from tandem.projection.projection import Projection
from tandem.queries import encoding, pages, rows, store
from tandem.queries.freshness import Fresh, Freshness
from tandem.queries.store import ChangedKeys
from tandem.queries.watch import Watched, Watches
from tandem.runtime.server import RunningApplication
from tandem.runtime.settings import DatabaseSettings, ServerSettings
from tandem.testing.stack import until, up_to
from tests.support.stack import Databases

CALLS = 250
"""Answered calls of all clients together, so many that each of the ways meets some of them."""


@pytest.fixture
def urls(databases: Databases) -> Iterator[tuple[str, str]]:
    write, read = databases.create("write"), databases.create("read")
    yield write, read
    databases.drop(write)
    databases.drop(read)


@pytest.fixture
def nodes(memcached_nodes: Callable[[int], list[Memcached]]) -> list[str]:
    return [node.address for node in memcached_nodes(up_to(1))]


@asynccontextmanager
async def serving(urls: tuple[str, str], nodes: Sequence[str]) -> AsyncIterator[Addresses]:
    """The three services in this process."""
    write, read = (DatabaseSettings(url=SecretStr(it)) for it in urls)
    server = ServerSettings(port=0)
    applications = [
        command_server.app.build(command_server.settings.Settings(database=write, server=server)),
        projector.app.build(
            projector.settings.Settings(
                feed_database=write, read_database=read, cache_nodes=tuple(nodes), server=server
            )
        ),
        query_server.app.build(query_server.settings.Settings(database=read, feed_database=write, server=server)),
    ]
    running = [RunningApplication(it) for it in applications]
    for it in running:
        await it.start()
    yield Addresses(*([f"127.0.0.1:{it.port}"] for it in running))
    for it in running:
        await it.stop()


async def violations(urls: tuple[str, str], nodes: Sequence[str]) -> dict[str, list[Violation]]:
    """What is found, by guarantee, after some calls of everybody at services that run as they are."""
    async with serving(urls, nodes) as addresses:
        crowd = Crowd(addresses, seed=1, pause=0)
        await crowd.open()
        crowd.begin()
        history = crowd.history

        async def enough() -> bool:
            return len(history.writes) + len(history.reads) >= CALLS

        await until(enough, "the clients have called")

        async def head() -> int:
            return (await asyncio.to_thread(read_feed, urls[0])).head

        await crowd.settle(head, seconds=3)
        await crowd.close()
        await asyncio.to_thread(wait_until_followed, *urls)
        feed = await asyncio.to_thread(read_feed, urls[0])
        found = check(history, feed) + await asyncio.to_thread(compare, *urls, feed, {it: it for it in nodes})
    return dict(by_guarantee(found))


def skip_events(patch: pytest.MonkeyPatch) -> None:
    """A view passes over some events."""
    whole = fold.steps_of

    def steps_of(projection: Projection, events: Iterable[FeedEvent], kinds: Collection[str]) -> Steps:
        return whole(projection, [it for it in events if it.kind != "shipping_address_changed"], kinds)

    patch.setattr(pipeline, "steps_of", steps_of)


def apply_twice(patch: pytest.MonkeyPatch) -> None:
    """A view takes some events in twice."""
    once = fold.steps_of

    def steps_of(projection: Projection, events: Iterable[FeedEvent], kinds: Collection[str]) -> Steps:
        return once(projection, [it for it in events for _ in range(1 + (it.kind == "stock_adjusted"))], kinds)

    patch.setattr(pipeline, "steps_of", steps_of)


def keep_old_entries(patch: pytest.MonkeyPatch) -> None:
    """Entries that were cached by a reader stay as they were."""
    patch.setattr(CacheWriter, "write", lambda *_: None)


def forget_receipts(patch: pytest.MonkeyPatch) -> None:
    """A command's receipt is not stored with its events, and the server itself does not notice."""
    patch.setattr(Acknowledged, "look_for", lambda *_: None)
    append = receipts.append
    patch.setattr(executor, "append", lambda connection, events, _, stepped: append(connection, events, (), stepped))


def acknowledge_too_early(patch: pytest.MonkeyPatch) -> None:
    """Some batches are answered as the one before, and not stored."""
    store, stored = _Storing._store_once, list[Any]()

    def store_most(self: _Storing, batch: Sequence[Command], failures: Any) -> Any:
        done = [it for it in stored if isinstance(it, receipts.Receipt) and it.refusal is None]
        if len(stored) > 20 and len(stored) % 5 == 0 and done:
            stored.append(None)
            return [done[-1]._replace(request_id=it.request_id) for it in batch]
        outcomes = store(self, batch, failures)
        stored.append(outcomes[0])
        return outcomes

    patch.setattr(_Storing, "_store_once", store_most)


def go_back(patch: pytest.MonkeyPatch) -> None:
    """A watch shows the state before once more."""
    forward = Watches.watch

    async def watch(*arguments: Any) -> AsyncIterator[Watched]:
        before = None
        async for it in forward(*arguments):
            yield it
            if before is not None and it.value is not None:
                yield before
            before = it if it.value is not None else before

    patch.setattr(Watches, "watch", watch)


def miss_changes(patch: pytest.MonkeyPatch) -> None:
    """A watch misses changes of what it shows."""
    take_in = Watches._take_in

    def take_in_some(self: Watches, changes: ChangedKeys) -> None:
        take_in(self, changes._replace(keys=changes.keys - self._subjects.keys()))

    patch.setattr(Watches, "_take_in", take_in_some)


def lie_about_answers(patch: pytest.MonkeyPatch) -> None:
    """An answer says that it includes more than it does."""
    text = encoding.as_of_text
    for module in (rows, pages):
        patch.setattr(module, "as_of_text", lambda it: text(replace(it, position=it.position + 3)))


def do_not_wait(patch: pytest.MonkeyPatch) -> None:
    """An answer need not include its call's token."""
    judge = Freshness.judge

    def judge_lightly(*arguments: Any, **more: Any) -> Any:
        verdict = judge(*arguments, **more)
        return Fresh.NOW if verdict is Fresh.WAIT else verdict

    patch.setattr(Freshness, "judge", judge_lightly)


def leave_out_events(patch: pytest.MonkeyPatch) -> None:
    """The feed's followers miss events."""
    wanted = service._may_be_wanted
    patch.setattr(service, "_may_be_wanted", lambda row, selection: row.position % 5 and wanted(row, selection))


def park(patch: pytest.MonkeyPatch) -> None:
    """Rows cannot take an event in, and nobody redrives them."""

    def refuse(*_: object) -> None:
        raise ValueError("no such stock")

    patch.setitem(product_card.PROJECTION.rules, "order_placed", refuse)


def hide_what_is_parked(patch: pytest.MonkeyPatch) -> None:
    """A row that is parked is answered as any other."""
    park(patch)
    patch.setattr(store, "_parked", lambda _: ())


BROKEN: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "an event is skipped": ("G5", skip_events),
    "an event is projected twice": ("G5", apply_twice),
    "a stale cache entry": ("G7", keep_old_entries),
    "a lost receipt": ("G2", forget_receipts),
    "a lost write": ("G1", acknowledge_too_early),
    "a watch that goes back": ("G8", go_back),
    "a watch that misses changes": ("G8", miss_changes),
    "a token that lies": ("G6", lie_about_answers),
    "an answer that does not wait": ("G6", do_not_wait),
    "a follower that misses events": ("G4", leave_out_events),
    "a parked row that is answered as any other": ("G7", hide_what_is_parked),
}


@pytest.mark.parametrize(("guarantee", "break_it"), BROKEN.values(), ids=list(BROKEN))
async def test_it_is_found(
    guarantee: str,
    break_it: Callable[[pytest.MonkeyPatch], None],
    urls: tuple[str, str],
    nodes: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if guarantee == "G7" and not nodes:
        pytest.skip("memcached is not installed (apt-get install memcached): the cache's own tests need it")
    break_it(monkeypatch)
    assert guarantee in await violations(urls, nodes)


async def test_a_row_that_is_parked_at_the_end_is_found_and_its_answers_are_right(
    urls: tuple[str, str], nodes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    park(monkeypatch)
    found = await violations(urls, nodes)
    assert found.keys() == {"G9"}
    assert "no such stock" in found["G9"][0].text


async def test_nothing_is_found_in_the_product_as_it_is(urls: tuple[str, str], nodes: list[str]) -> None:
    assert await violations(urls, nodes) == {}
