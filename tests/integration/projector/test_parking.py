"""Rows that cannot take an event in are parked: their view goes on, nothing is lost, operators redrive or drop them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from commerce.projection.v1.projection_service_pb2 import (
    DropParkedKeyRequest,
    GetParkedKeyRequest,
    ListOperationsRequest,
    Operation,
    ProjectionState,
)
from commerce.query.v1.views_pb2 import OrderDetails, ProductCard
from projector import order_details, product_card
from shop.views import VIEWS
from tandem.cli.embedded import Memcached
from tandem.testing.stack import kill, until, up_to, wait_until
from tests.integration.projector.conftest import Announcements, Project, Stores, cached
from tests.support import events
from tests.support.archiving import archive_all, small, small_partitions
from tests.support.builders import identity
from tests.support.metrics import sample
from tests.support.stack import Stack

RUNNING, FAILED = ProjectionState.PROJECTION_STATE_RUNNING, ProjectionState.PROJECTION_STATE_FAILED
ONE, TWO = identity("order", 1), identity("order", 2)
CARD, OTHER_CARD = identity("product", 1), identity("product", 2)
# Of its own: a damaged row is logged once in a process.
DAMAGED = identity("product", 41)
NUMBER = 42
DAMAGED_TOO = identity("product", NUMBER)


def refuse_payments(monkeypatch: pytest.MonkeyPatch, order_id: str = ONE) -> None:
    """A bug of this program's."""

    def paid(view: OrderDetails, event: object) -> OrderDetails:
        if view.order_id == order_id:
            view.carrier = "half done"
            raise KeyError("no such payment")
        return order_details.paid(view, event)  # type: ignore[arg-type]

    monkeypatch.setitem(order_details.PROJECTION.rules, "order_paid", paid)


async def test_a_row_is_parked_and_a_program_without_the_bug_redrives_it(
    stores: Stores,
    project: Project,
    announcements: Announcements,
    memcached_nodes: Callable[[int], list[Memcached]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = [it.address for it in memcached_nodes(up_to(1))]
    refuse_payments(monkeypatch)
    first = await project(nodes)
    await first.until_state(RUNNING)
    standby = await project(nodes)
    stores.append([events.product_added(), events.order_placed(1), events.order_placed(2)])
    head = stores.append([events.order_paid(1), events.order_paid(2), events.order_shipped(1)])
    await announcements.reached(head)
    assert announcements.heard[-1].parked == {"order_details": 1}
    found = await first.until_state(RUNNING)
    assert {view: it.parked_keys for view, it in found.items() if it.parked_keys} == {"order_details": 1}
    assert await first.projections_are_well(), "a row that is parked stops nobody"
    assert sample("tandem_projection_parked_keys", view="order_details") is not None
    was = OrderDetails.FromString(stores.value("order_details", ONE) or b"")
    assert (was.version, was.carrier) == (1, ""), "it is as it was, and not half changed"
    assert OrderDetails.FromString(stores.value("order_details", TWO) or b"").version == 2
    if nodes:
        assert cached("order_details", ONE, announcements.epochs("order_details")) is None

    # The standby knows what is parked, and says so.
    await first.stop()
    head = stores.append([events.order_delivered(1)])
    await announcements.reached(head)
    parked = await standby.parked()
    assert (parked[ONE].since, parked[ONE].waiting_events, parked[ONE].error) == (4, 3, "KeyError: 'no such payment'")
    async with standby.stub() as stub:
        shown = await stub.GetParkedKey(GetParkedKeyRequest(view="order_details", key=ONE), timeout=10)
    assert [(it.position, it.kind) for it in shown.events] == [
        (4, "order_paid"),
        (6, "order_shipped"),
        (7, "order_delivered"),
    ]
    still = await standby.redrive("order_details", ONE)
    assert (still.keys, still.events, still.failed_keys) == (1, 0, 1)
    assert (still.failing[0].key, still.failing[0].since) == (ONE, 4)
    await standby.stop()

    monkeypatch.undo()
    fixed = await project(nodes)
    done = await fixed.redrive("order_details")
    assert (done.keys, done.events, done.failed_keys) == (1, 3, 0)
    assert await fixed.parked() == {}
    now = OrderDetails.FromString(stores.value("order_details", ONE) or b"")
    assert (now.version, bool(now.delivered_at.seconds)) == (4, True)
    assert (await fixed.list())["order_details"].parked_keys == 0
    await announcements.parked({})
    if nodes:
        epochs = announcements.epochs("order_details")
        assert cached("order_details", ONE, epochs) == stores.value("order_details", ONE)
    # It takes in what comes as before.
    head = stores.append([events.shipping_address_changed(1, version=5)])
    await stores.reached(head)
    assert OrderDetails.FromString(stores.value("order_details", ONE) or b"").version == 5


async def test_of_a_batch_that_the_database_refuses_the_row_that_is_at_fault_is_parked_alone(
    stores: Stores, project: Project
) -> None:
    # An order of both: the row of one can be stored, that of the other cannot.
    stores.run(f"ALTER TABLE tandem_read.product_card ADD CONSTRAINT no CHECK (key <> '{CARD}' OR available > 96)")
    projector = await project()
    stores.append([events.product_added(1), events.product_added(2)])
    head = stores.append(
        [
            *(events.stock_adjusted(2) for _ in range(20)),
            events.order_placed(lines=[(1, 9), (2, 1)]),
            events.stock_adjusted(1),
            *(events.stock_adjusted(2) for _ in range(20)),
        ]
    )
    await stores.caught_up()
    [it] = (await projector.parked()).values()
    assert (it.view, it.key, it.since, it.waiting_events) == ("product_card", CARD, 23, 2)
    assert it.error.startswith("CheckViolation: ")
    assert ProductCard.FromString(stores.value("product_card", CARD) or b"").available == 100
    both = ProductCard.FromString(stores.value("product_card", OTHER_CARD) or b"")
    delta = events.stock_adjusted(2).stock_adjusted.delta
    assert both.available == 100 + 40 * delta - 1

    # What still cannot be stored is said; of what waits, as much is taken in as can be.
    still = await projector.redrive("product_card", CARD)
    assert (still.failed_keys, still.failing[0].since) == (1, 23)
    assert still.failing[0].error.startswith("CheckViolation: ")
    stores.run("ALTER TABLE tandem_read.product_card DROP CONSTRAINT no")
    assert (await projector.redrive("product_card")).events == 2
    assert ProductCard.FromString(stores.value("product_card", CARD) or b"").available == 91 + delta
    assert (await projector.until_state(RUNNING))["product_card"].position == head


async def test_what_is_dropped_is_gone_for_good_and_the_row_goes_on(stores: Stores, project: Project) -> None:
    projector = await project()
    # Order 2 is not known.
    head = stores.append([events.product_added(), events.order_placed(1), events.order_paid(2), events.order_paid(1)])
    await stores.reached(head)
    assert (await projector.parked()).keys() == {TWO}
    async with projector.stub() as stub:
        for view in ("order_details", "order_summary"):
            drop = DropParkedKeyRequest(view=view, key=TWO, reason="it was a test's")
            asked = await stub.DropParkedKey(drop, timeout=10, metadata=(("tandem-actor", "ops-7"),))
            assert (await projector.done(asked.operation_id)).events == 1
    assert await projector.parked() == {}
    listed: list[Operation] = []
    token = ""
    async with projector.stub() as stub:
        while not listed or token:
            page = await stub.ListOperations(ListOperationsRequest(page_size=1, page_token=token), timeout=10)
            listed += page.operations
            token = page.next_page_token
    assert [(it.view, it.action, it.key, it.actor, it.reason, it.events, it.HasField("done_at")) for it in listed] == [
        (view, "drop", TWO, "ops-7", "it was a test's", 1, True) for view in ("order_summary", "order_details")
    ]
    await stores.reached(stores.append([events.order_placed(2)]))
    assert OrderDetails.FromString(stores.value("order_details", TWO) or b"").version == 1


async def test_a_row_that_is_damaged_is_made_again_from_the_feed(
    stores: Stores, project: Project, announcements: Announcements
) -> None:
    first = await project()
    stores.append([events.product_added(41), events.product_added(2), events.price_changed(41, price=5)])
    await announcements.reached(stores.append([events.order_placed(lines=[(41, 3), (2, 1)])]))
    await first.stop()
    whole = stores.value("product_card", DAMAGED)
    stores.run(f"UPDATE tandem_read.product_card SET value = '\\xff' WHERE key = '{DAMAGED}'")
    projector = await project()
    await stores.reached(
        stores.append([events.order_placed(2, lines=[(41, 2), (2, 1)]), events.price_changed(2, price=7)])
    )

    # Whoever meets a damaged row asks for it to be made again: what waits for it is in it then.
    async def is_whole() -> bool:
        return stores.value("product_card", DAMAGED) != b"\xff" and not await projector.parked()

    await until(is_whole, "it is made again")
    assert (await projector.list())["product_card"].parked_keys == 0
    card = ProductCard.FromString(stores.value("product_card", DAMAGED) or b"")
    before = ProductCard.FromString(whole or b"")
    assert (card.available, card.price) == (before.available - 2, before.price)


async def test_a_redrive_makes_a_damaged_row_again_from_archive_and_table_as_far_as_its_events_can_be_taken_in(
    stores: Stores, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch)
    small_partitions(stores.write)
    refused: set[int] = set()

    def changed(view: ProductCard, event: Any) -> ProductCard:
        if event.price.minor_units in refused:
            raise ValueError(f"no price is {event.price.minor_units}")
        return product_card.price_changed(view, event)

    monkeypatch.setitem(product_card.PROJECTION.rules, "price_changed", changed)
    first = await project()
    stores.append([events.product_added(NUMBER), *(events.stock_adjusted(NUMBER, delta=1) for _ in range(20))])
    await stores.reached(stores.append([events.price_changed(NUMBER, price=5)]))
    await first.stop()
    stores.run(f"UPDATE tandem_read.product_card SET value = '\\xff' WHERE key = '{DAMAGED_TOO}'")
    more = events.stock_adjusted(NUMBER, delta=100)
    head = stores.append([more, events.price_changed(NUMBER, price=13), more])
    archive_all(stores.write_url, tmp_path)
    assert stores.run("SELECT min(position) FROM tandem_write.event", "write") == 20

    # Whoever repairs what is damaged cannot: its last events are not to be taken in.
    refused |= {5, 13}
    projector = await project(archive={"folder": tmp_path})
    await stores.reached(head)

    async def redriven() -> list[object]:
        done = await projector.redrive("product_card", DAMAGED_TOO)
        card = stores.value("product_card", DAMAGED_TOO)
        available = None if card == b"\xff" else ProductCard.FromString(card or b"").available
        return [done.events, available, *((it.since, it.error) for it in done.failing)]

    since = head - 2
    cannot = "the damaged row cannot be made again: ValueError: no price is 5"
    assert await redriven() == [0, None, (since, cannot)]
    refused.remove(5)
    assert await redriven() == [1, 220, (since + 1, "ValueError: no price is 13")]
    [it] = (await projector.parked()).values()
    assert (it.since, it.waiting_events) == (since + 1, 2)
    refused.clear()
    assert await redriven() == [2, 320]
    assert await projector.parked() == {}


async def test_past_as_many_as_may_be_parked_the_view_fails_and_goes_on_after_a_redrive(
    stores: Stores, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {1, 2, 3}

    def changed(view: ProductCard, event: object) -> ProductCard:
        if wrong:
            raise RuntimeError("each of them")
        return product_card.price_changed(view, event)  # type: ignore[arg-type]

    monkeypatch.setitem(product_card.PROJECTION.rules, "price_changed", changed)
    projector = await project(follow={"parked_keys": 2})
    head = stores.append([*(events.product_added(it) for it in wrong), *(events.price_changed(it) for it in wrong)])
    found = await projector.until_state(FAILED, "product_card")
    assert (found["product_card"].position, found["product_card"].parked_keys) == (head - 1, 2)
    assert "2 keys of the view, or 1000000 events, are parked already; RuntimeError" in found["product_card"].error
    wrong.clear()
    assert (await projector.redrive("product_card")).events == 2
    await projector.until_state(RUNNING)
    await stores.caught_up()
    assert (await projector.list())["product_card"].parked_keys == 0


def test_projectors_that_are_killed_while_they_park_and_redrive_lose_nothing(
    processes: Stack, process_stores: Stores
) -> None:
    count = 60
    stores = process_stores
    stores.run("ALTER TABLE tandem_read.product_card ADD CONSTRAINT no CHECK (get_byte(uuid_send(key), 15) % 2 = 0)")
    stores.append([events.product_added(it) for it in range(count)])
    head = stores.append([events.stock_adjusted(it, delta=it) for it in range(count)])
    bad = sum(int(identity("product", it)[-2:], 16) % 2 for it in range(count))
    assert bad > 10

    def parked() -> int:
        found: int = stores.run("SELECT count(DISTINCT key) FROM tandem_read.parked")
        return found

    def redriven() -> bool:
        return bool(stores.run("SELECT done_at IS NOT NULL FROM tandem_read.operation"))

    processes.projector.start()
    wait_until(lambda: parked() > 2, "it parks")
    kill(processes.projector)
    second = processes.new_projector()
    second.start()
    wait_until(lambda: stores.positions() == dict.fromkeys(VIEWS, head), "the views are there", 60)
    assert parked() == bad
    assert stores.run("SELECT parked FROM tandem_read.projection WHERE view = 'product_card'") == bad
    assert stores.run("SELECT count(*) FROM tandem_read.parked") == 2 * bad

    stores.run("ALTER TABLE tandem_read.product_card DROP CONSTRAINT no")
    stores.run(
        "INSERT INTO tandem_read.operation (id, view, action, actor, reason)"
        " VALUES (gen_random_uuid(), 'product_card', 'redrive', 'test', '')"
    )
    wait_until(lambda: parked() < bad, "it redrives")
    kill(second)
    third = processes.new_projector()
    third.start()
    wait_until(redriven, "the third goes on with it", 60)
    assert parked() == 0
    assert stores.run("SELECT (outcome->>'events')::int FROM tandem_read.operation") == 2 * bad
    cards = {
        it: ProductCard.FromString(stores.value("product_card", identity("product", it)) or b"") for it in range(count)
    }
    assert {it: card.available for it, card in cards.items()} == {it: 100 + it for it in range(count)}
    assert stores.run("SELECT parked FROM tandem_read.projection WHERE view = 'product_card'") == 0
