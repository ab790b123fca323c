"""G7: what a reader of the announced epochs finds is never older than what was announced."""

import asyncio
import socket
import uuid
from collections.abc import Callable

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from commerce.projection.v1.projection_service_pb2 import (
    CACHE_NODE_STATE_FENCED,
    CACHE_NODE_STATE_SERVING,
    CacheNode,
    ListCacheNodesRequest,
)
from shop.cli import app
from shop.views import CACHED_VIEWS
from tandem.projection.cache_writer import CacheWriter
from tandem.projection.settings import CacheSettings
from tandem.read_store.cache import Ring
from tandem.testing.stack import kill, pause, resume, until, wait_until
from tests.integration.projector.conftest import Announcements, Project, Stores, cached
from tests.support import events
from tests.support.builders import identity
from tests.support.caches import CLOSES_IDLE_CONNECTIONS, EVICTS_NOTHING, TAKES_SMALL_VALUES, Node, socket_of
from tests.support.stack import Databases

Nodes = Callable[..., list[Node]]
PRODUCT = identity("product", 1)


# Redis itself is tried with readers and with the seam: tests/integration/read_store/test_nodes.py.
TRIED = ("memcached", "valkey")


@pytest.fixture(params=TRIED)
def node_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def all_entries_are_the_rows(stores: Stores, announcements: Announcements) -> bool:
    """Of the cached views; False where an entry is missing."""
    return all(
        cached(view, str(row[0]), announcements.epochs(view)) == row[-1]
        for view, rows in stores.rows(*CACHED_VIEWS).items()
        for row in rows
    )


@pytest.mark.parametrize("count", [1, 3])
async def test_every_changed_row_of_a_cached_view_has_its_entry(
    stores: Stores, project: Project, announcements: Announcements, cache_nodes: Nodes, count: int
) -> None:
    await project([it.address for it in cache_nodes(count)])
    await announcements.reached(stores.append(events.a_history(200)))
    assert all_entries_are_the_rows(stores, announcements)
    epochs = announcements.epochs()
    assert len(set(epochs.values())) == count
    for _, *_, value in stores.rows("order_summary")["order_summary"]:
        assert value


async def test_an_operator_is_shown_which_nodes_are_read_and_what_is_there(
    stores: Stores, project: Project, announcements: Announcements, cache_nodes: Nodes
) -> None:
    node, gone = cache_nodes(2)
    projector = await project([node.address, gone.address])
    await announcements.reached(stores.append(events.a_history(100)))

    async def listed() -> dict[str, CacheNode]:
        async with projector.stub() as stub:
            answer = await stub.ListCacheNodes(ListCacheNodesRequest(), timeout=10)
        return {it.node: it for it in answer.nodes}

    found = await listed()
    assert list(found) == [node.address, gone.address], "as the setting has them"
    assert {it.state for it in found.values()} == {CACHE_NODE_STATE_SERVING}
    assert all(it.entries and it.bytes and it.max_bytes for it in found.values())

    async def shown() -> tuple[int, str]:
        words = ["cache", "--projector-address", f"127.0.0.1:{projector.port}"]
        said = await asyncio.to_thread(CliRunner().invoke, app, words)
        return said.exit_code, said.stdout

    code, said = await shown()
    assert (code, said.count("serving")) == (0, 2)
    kill(gone)
    code, said = await shown()
    assert (code, said.count("serving"), said.count("no answer")) == (1, 1, 1), "before anything is written there"
    await announcements.reached(stores.append(events.a_history(100)))
    found = await listed()
    assert found[node.address].state == CACHE_NODE_STATE_SERVING
    assert (found[gone.address].state, found[gone.address].entries) == (CACHE_NODE_STATE_FENCED, 0)
    assert found[gone.address].problem
    code, said = await shown()
    assert (code, said.count("fenced")) == (1, 1)


async def test_a_position_is_announced_when_its_entries_are_written_and_not_before(
    stores: Stores, project: Project, announcements: Announcements, cache_nodes: Nodes
) -> None:
    [node] = cache_nodes(1)
    await project([node.address], cache={"timeout": 10})
    before = stores.append([events.product_added()])
    await announcements.reached(before)
    pause(node)
    after = stores.append([events.price_changed()])
    await stores.reached(after)
    # The projector waits for the node: what it says after that comes after the entry.
    assert max(announcements.positions("product_card")) == before
    resume(node)
    await announcements.reached(after)
    assert cached("product_card", PRODUCT, announcements.epochs()) == stores.value("product_card", PRODUCT)


@pytest.mark.parametrize("fault", ["killed", "paused"])
async def test_a_node_that_cannot_be_written_is_fenced_and_comes_back_under_a_new_epoch(
    stores: Stores, project: Project, announcements: Announcements, cache_nodes: Nodes, fault: str
) -> None:
    nodes = cache_nodes(2)
    await project([it.address for it in nodes])
    products = range(1, 20)
    await announcements.reached(stores.append([events.product_added(it) for it in products]))
    before = announcements.epochs()
    ring = Ring(list(before))
    of_first = [it for it in products if ring.node_of(uuid.UUID(identity("product", it)).hex) == nodes[0].address]
    assert 0 < len(of_first) < len(products)

    if fault == "killed":
        kill(nodes[0])
    else:
        pause(nodes[0])
    await announcements.reached(stores.append([events.price_changed(it) for it in products]))
    fenced = announcements.epochs()
    assert fenced == {nodes[0].address: None, nodes[1].address: before[nodes[1].address]}
    for it in set(products) - set(of_first):
        key = identity("product", it)
        assert cached("product_card", key, fenced) == stores.value("product_card", key), "the other node goes on"

    if fault == "killed":
        nodes[0].start()
    else:
        resume(nodes[0])

    async def is_back() -> bool:
        return announcements.epochs()[nodes[0].address] is not None

    await until(is_back, "the node is announced again")
    back = announcements.epochs()
    assert back[nodes[0].address] != before[nodes[0].address]
    for view in CACHED_VIEWS:
        assert announcements.epochs(view)[nodes[0].address] not in {None, before[nodes[0].address]}
    assert [cached("product_card", identity("product", it), back) for it in of_first] == [None] * len(of_first)
    await announcements.reached(stores.append([events.price_changed(it, version=3) for it in products]))
    assert all_entries_are_the_rows(stores, announcements)


async def test_a_node_that_is_away_at_the_start_is_fenced_and_holds_nothing_up(
    stores: Stores, project: Project, announcements: Announcements, cache_nodes: Nodes
) -> None:
    [node] = cache_nodes(1)
    kill(node)
    await project([node.address])
    await announcements.reached(stores.append([events.product_added()]))
    assert announcements.epochs() == {node.address: None}


async def test_a_value_that_is_too_large_leaves_no_old_entry_and_fences_nothing(
    stores: Stores, project: Project, announcements: Announcements, cache_nodes: Nodes
) -> None:
    [node] = cache_nodes(1)
    await project([node.address])
    await announcements.reached(stores.append([events.product_added(1), events.product_added(2)]))
    epochs = announcements.epochs()
    large = events.product_added(1, description="x" * 1_200_000)
    await announcements.reached(stores.append([large, events.price_changed(2)]))
    assert announcements.epochs() == epochs
    assert cached("product_card", PRODUCT, epochs) is None
    assert cached("product_card", identity("product", 2), epochs) == stores.value(
        "product_card", identity("product", 2)
    )


@pytest.mark.parametrize(
    ("node_kind", "limit"), [("memcached", "the size of a value"), *((it, "the memory") for it in TRIED)]
)
async def test_a_value_that_a_node_refuses_leaves_no_old_entry_and_fences_nothing(
    stores: Stores, project: Project, announcements: Announcements, cache_nodes: Nodes, limit: str
) -> None:
    [node] = cache_nodes(1, TAKES_SMALL_VALUES if limit == "the size of a value" else EVICTS_NOTHING)
    await project([node.address], cache={"timeout": 10})
    await announcements.reached(stores.append([events.product_added(1), events.product_added(2)]))
    epochs = announcements.epochs()
    assert cached("product_card", PRODUCT, epochs) is not None
    if limit == "the memory":
        node.fill()
    large = events.product_added(1, description="x" * 20_000)
    await announcements.reached(stores.append([large, events.customer_registered()]))
    assert announcements.epochs() == epochs
    assert cached("product_card", PRODUCT, epochs) is None
    assert cached("product_card", identity("product", 2), epochs) is not None


async def test_a_connection_that_a_node_closed_while_it_was_idle_is_made_anew_within_the_epoch(
    stores: Stores, project: Project, announcements: Announcements, cache_nodes: Nodes
) -> None:
    [node] = cache_nodes(1, CLOSES_IDLE_CONNECTIONS)
    await project([node.address])
    await announcements.reached(stores.append([events.product_added(1), events.product_added(2)]))
    epochs = announcements.epochs()
    for version in (2, 3):
        await idle_connections_are_closed(node)
        await announcements.reached(stores.append([events.price_changed(1, version=version)]))
        assert announcements.epochs() == epochs
        assert all_entries_are_the_rows(stores, announcements)


async def idle_connections_are_closed(node: Node) -> None:
    before = node.kicked()

    async def closed() -> bool:
        return node.kicked() > before

    await until(closed, "the node closes idle connections")


def test_a_node_that_is_not_as_the_connection_before_left_it_is_fenced(cache_nodes: Nodes) -> None:
    [node] = cache_nodes(1)
    writer = CacheWriter((node.address,), CacheSettings())
    writer.begin("product_card", None)
    change = {"product_card": {uuid.UUID(PRODUCT).bytes: b"value"}}
    writer.write(change)
    kill(node)
    # Another one at the same address: the first may come back, with an entry that is old by then.
    node.start()
    wait_until(writer._clients[node.address].was_closed, "the connection has ended")
    writer.write(change)
    assert writer.epochs["product_card"] == {node.address: None}
    writer.stop()


def test_what_a_connection_or_a_stop_leaves_at_a_node_outlives_every_entry(cache_nodes: Nodes) -> None:
    [node] = cache_nodes(1)
    settings = CacheSettings().model_copy(update={"entry_seconds": 1})
    first, second = (CacheWriter((node.address,), settings) for _ in range(2))
    first.begin("product_card", None)
    epochs = dict(first.epochs["product_card"])
    change = {"product_card": {uuid.UUID(PRODUCT).bytes: b"value"}}
    first.write(change)
    left = first.end("product_card")
    first.begin("order_summary", None)
    kept = dict(first.epochs["order_summary"])
    wait_until(lambda: cached("product_card", PRODUCT, epochs) is None, "the entry has expired")
    connection = first._clients[node.address]
    socket_of(connection).shutdown(socket.SHUT_RDWR)
    wait_until(connection.was_closed, "the connection has ended")
    first.write({"order_summary": change["product_card"]})
    assert first.epochs["order_summary"] == kept, "it is known to be the same node"
    assert second.begin("product_card", left)
    assert second.epochs["product_card"] == epochs
    for it in (first, second):
        it.stop()


def test_an_entry_of_a_row_that_is_gone_is_deleted(cache_nodes: Nodes) -> None:
    [node] = cache_nodes(1)
    writer = CacheWriter((node.address,), CacheSettings())
    writer.begin("product_card", None)
    writer.write({"product_card": {uuid.UUID(PRODUCT).bytes: b"value"}})
    assert cached("product_card", PRODUCT, writer.epochs["product_card"]) == b"value"
    writer.write({"product_card": {uuid.UUID(PRODUCT).bytes: None}})
    assert cached("product_card", PRODUCT, writer.epochs["product_card"]) is None
    writer.stop()


async def test_a_clean_stop_leaves_the_epochs_to_the_next_projector_once(
    stores: Stores, project: Project, announcements: Announcements, cache_nodes: Nodes
) -> None:
    nodes = [it.address for it in cache_nodes(2)]
    first = await project(nodes)
    await announcements.reached(stores.append([events.product_added()]))
    epochs = {view: announcements.epochs(view) for view in CACHED_VIEWS}
    assert stores.left_epochs("product_card") is None, "nobody may take them while they are in use"
    await first.stop()
    left = stores.left_epochs("product_card") or {}
    assert {node: str(it).partition(".")[0] for node, it in left.items()} == epochs["product_card"]

    await project(nodes)
    await announcements.reached(stores.append([events.price_changed()]))
    assert {view: announcements.epochs(view) for view in CACHED_VIEWS} == epochs
    assert stores.left_epochs("product_card") is None


async def test_a_view_whose_row_is_locked_at_the_stop_keeps_no_other_from_being_handed_over(
    stores: Stores, project: Project, announcements: Announcements, cache_nodes: Nodes
) -> None:
    [node] = cache_nodes(1)
    first = await project([node.address], follow={"lock_seconds": 0.1})
    await announcements.reached(stores.append([events.product_added()]))
    kept = announcements.epochs()
    with stores.read.connect() as other:
        other.execute(text("SELECT FROM tandem_read.projection WHERE view = 'order_details' FOR UPDATE"))
        await first.stop()
    await project([node.address])
    await announcements.reached(stores.append([events.price_changed()]))
    assert announcements.epochs() == kept


async def test_a_read_database_that_was_restored_brings_no_epoch_back(
    stores: Stores, project: Project, databases: Databases, cache_nodes: Nodes
) -> None:
    nodes = [it.address for it in cache_nodes(2)]
    first = await project(nodes)
    await stores.reached(stores.append([events.product_added()]))
    await first.stop()
    before = stores.left_epochs("product_card") or {}
    stores.read.dispose()
    backup = databases.copy(stores.read_url.rsplit("/", 1)[1], f"{stores.read_url.rsplit('/', 1)[1]}_backup")
    second = await project(nodes)
    await stores.reached(stores.append([events.price_changed()]))
    await second.stop()

    restored = Stores(stores.write_url, backup)
    assert restored.left_epochs("product_card") == before
    announcements = Announcements(backup)
    third = await project(nodes, on=restored)
    await announcements.reached(1)
    epochs = announcements.heard[0].cache_epochs
    # Else readers would find the second projector's entries, which this database does not have yet.
    old = {str(it).partition(".")[0] for it in before.values()}
    assert None not in epochs["product_card"].values()
    assert not set(epochs["product_card"].values()) & old
    await third.stop()
    announcements.stop()
    restored.close()
    databases.drop(backup)


def test_what_a_stop_left_is_taken_once(cache_nodes: Nodes) -> None:
    one, two = (it.address for it in cache_nodes(2))
    first, second, third = (CacheWriter((one, two), CacheSettings()) for _ in range(3))
    first.begin("product_card", None)
    epochs = dict(first.epochs["product_card"])
    left = first.end("product_card")
    # As two databases have it that were one.
    assert second.begin("product_card", left)
    assert second.epochs["product_card"] == epochs
    assert not third.begin("product_card", left)
    assert not set(third.epochs["product_card"].values()) & set(epochs.values())
    # What the second leaves is another stop.
    left_again = second.end("product_card")
    assert not first.begin("product_card", left)
    assert third.begin("product_card", left_again)
    for it in (first, second, third):
        it.stop()


def test_what_a_stop_left_is_not_taken_at_a_node_that_has_lost_it(cache_nodes: Nodes) -> None:
    one, two = cache_nodes(2)
    first, second = (CacheWriter((one.address, two.address), CacheSettings()) for _ in range(2))
    first.begin("product_card", None)
    epochs = dict(first.epochs["product_card"])
    left = first.end("product_card")
    first.stop()
    kill(one)
    one.start()
    kill(two)
    assert not second.begin("product_card", left)
    assert second.epochs["product_card"][one.address] not in {None, epochs[one.address]}
    assert second.epochs["product_card"][two.address] is None
    second.stop()


@pytest.mark.parametrize("change", ["other order", "one more"])
async def test_epochs_are_not_taken_over_with_another_list_of_nodes(
    stores: Stores, project: Project, announcements: Announcements, cache_nodes: Nodes, change: str
) -> None:
    one, two, three = (it.address for it in cache_nodes(3))
    first = await project([one, two])
    await announcements.reached(stores.append([events.product_added()]))
    before = announcements.epochs()
    await first.stop()
    await project([two, one] if change == "other order" else [one, two, three])
    await announcements.reached(stores.append([events.price_changed()]))
    assert not set(announcements.epochs().values()) & set(before.values())


async def test_a_projector_that_lost_its_connection_begins_new_epochs(
    stores: Stores, project: Project, announcements: Announcements, cache_nodes: Nodes
) -> None:
    [node] = cache_nodes(1)
    await project([node.address])
    await announcements.reached(stores.append([events.product_added()]))
    before = announcements.epochs()
    stores.end_sessions()
    await announcements.reached(stores.append([events.price_changed()]))
    assert announcements.epochs()[node.address] not in {None, before[node.address]}
    assert all_entries_are_the_rows(stores, announcements)
