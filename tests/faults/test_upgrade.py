"""G1 to G8 while everything is upgraded from the release before, and taken back (docs/deployment.md)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from nemesis.checker import check
from nemesis.clients import Addresses, Crowd
from nemesis.episode import Loop
from nemesis.shop import read_feed
from nemesis.stores import compare, wait_until_followed
from tandem.cli.services import Service
from tandem.testing.stack import up_to, wait_until
from tests.support.operating import operator
from tests.support.release import release_before, unpack
from tests.support.stack import Stack

SECTIONS = ("projector", "query", "command")
CALLS = 20


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    commit = release_before()
    if commit is None:
        pytest.skip("the release before is not in this clone's history")
    return unpack(commit, tmp_path_factory.mktemp("release") / "before")


@contextmanager
def working(loop: Loop, servers: list[Service]) -> Iterator[Crowd]:
    """Clients that call all servers, those that do not run too, and record what they get."""
    of = {it: [server.address for server in servers if server.name.startswith(it)] for it in SECTIONS}

    async def made() -> Crowd:
        return Crowd(Addresses(of["command"], of["projector"], of["query"]), seed=1)

    async def begin() -> None:
        await crowd.open()
        crowd.begin()

    crowd = loop.run(made())
    try:
        loop.run(begin())
        yield crowd
    finally:
        loop.run(crowd.close())


def gets_calls(server: Service) -> None:
    """It answers clients."""
    before = server.metric("tandem_calls_total", code="OK")
    wait_until(lambda: server.metric("tandem_calls_total", code="OK") >= before + CALLS, f"{server.name} gets calls")


def follows(stack: Stack, crowd: Crowd) -> None:
    """Views come to what is written from now on."""
    goal = len(crowd.history.writes) + CALLS
    wait_until(lambda: len(crowd.history.writes) >= goal, "clients go on")
    with psycopg.connect(stack.write_url) as write, psycopg.connect(stack.read_url, autocommit=True) as read:
        head = write.execute("SELECT max(position) FROM tandem_write.feed_head").fetchone()
        behind = "SELECT count(*) FROM tandem_read.projection WHERE position < %s"
        wait_until(lambda: read.execute(behind, head).fetchone() == (0,), "all views follow")


def replace(stack: Stack, crowd: Crowd, old: Service, new: Service) -> None:
    """Both at once for a while, then the new one alone."""
    new.start()
    if not new.name.startswith("projector"):
        gets_calls(old)
        gets_calls(new)
    assert old.stop() == 0, old.log_tail()
    follows(stack, crowd)


async def made_anew(projector: Service) -> None:
    async with operator(projector.port) as ask:
        await ask.make_anew()


def test_nobody_notices_an_upgrade_or_the_way_back(new_stack: Callable[..., Stack], tree: Path) -> None:
    stack = new_stack(cache_nodes=up_to(1), tree=tree)
    old = [stack.projector, stack.query_server, stack.command_server]
    new = [stack.new_projector(), stack.new_query_server(), stack.new_command_server()]
    loop = Loop()
    try:
        with working(loop, [*old, *new]) as crowd:
            follows(stack, crowd)
            for server in new[::2]:
                server.run("migrate")
            follows(stack, crowd)
            for before, after in zip(old, new, strict=True):
                replace(stack, crowd, before, after)
            for before, after in reversed([*zip(new, old, strict=True)]):
                replace(stack, crowd, before, after)
            # The projector once more, so that the rows are compared with what this release makes.
            replace(stack, crowd, old[0], new[0])

            async def head() -> int:
                return read_feed(stack.write_url).head

            loop.run(crowd.settle(head))
            # As the changelog says of a release that makes rows of a view anew.
            loop.run(made_anew(new[0]))
            wait_until_followed(stack.write_url, stack.read_url)
            feed = read_feed(stack.write_url)
            [node] = stack.nodes
            found = check(crowd.history, feed)
            found += compare(stack.write_url, stack.read_url, feed, {node.address: node.address})
    finally:
        loop.close()
    assert found == []
    assert sum(it.receipt is not None for it in crowd.history.writes) > 4 * CALLS
