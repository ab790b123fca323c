"""What differs from the feed is found by the auditor, and by who asks for it, and made right where that is wanted."""

import asyncio
import uuid
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import pytest
from grpc import aio
from typer.testing import CliRunner

from commerce.audit.v1 import audit_service_pb2 as audit
from commerce.audit.v1.audit_service_pb2_grpc import AuditServiceStub
from commerce.projection.v1.projection_service_pb2 import FINDING_KIND_ROW, ListFindingsRequest
from commerce.query.v1.views_pb2 import ProductCard
from projector.app import VIEWS
from shop.cli import app
from tandem.cli.embedded import Memcached
from tandem.feed import table as feed
from tandem.read_store.cache import Signer, encode_entry, key_prefix
from tandem.read_store.nodes import node_client
from tandem.testing.stack import until, up_to
from tests.integration.projector.conftest import Announcements, Project, Running, Stores, cached
from tests.integration.projector.test_repair import is_right, until_right
from tests.support import events
from tests.support.builders import identity
from tests.support.metrics import sample

if TYPE_CHECKING:
    # The stubs alone know it.
    from commerce.audit.v1.audit_service_pb2_grpc import AuditServiceAsyncStub

OFF = {"share": 0}
ALL = {"share": 1, "round_seconds": 0}
ROW, MISSING, EXTRA, ENTRY, EVENT = (audit.DifferenceKind.Value(f"DIFFERENCE_KIND_{it}") for it in (
    "ROW", "MISSING", "EXTRA", "ENTRY", "EVENT"
))  # fmt: skip


async def verify(projector: Running, **request: Any) -> list[audit.VerifyResponse]:
    async with aio.insecure_channel(f"127.0.0.1:{projector._application.port}") as channel:
        stub: AuditServiceAsyncStub = AuditServiceStub(channel)
        return [it async for it in stub.Verify(audit.VerifyRequest(**request), timeout=60)]


def differences(answers: Iterable[audit.VerifyResponse]) -> list[tuple[str, str, int]]:
    """(subject, key, kind), sorted; all subjects were compared to the end."""
    listed = list(answers)
    assert {it.problem for it in listed} == {""}
    assert [it.subject for it in listed if it.done] == list(dict.fromkeys(it.subject for it in listed))
    return sorted((it.subject, one.key, one.kind) for it in listed for one in it.differences)


def forge(view: str, key: str, value: bytes, announcements: Announcements) -> None:
    """An entry that readers take."""
    [(node, epoch)] = announcements.epochs(view).items()
    name = key_prefix(view, str(epoch)) + uuid.UUID(key).hex
    client = node_client(node, timeout=2)
    client.store({name: Signer().sign(name, encode_entry(value))}, 0)
    client.close()


async def test_each_kind_of_difference_is_found_named_and_repaired(
    stores: Stores, project: Project, announcements: Announcements, memcached_nodes: Callable[[int], list[Memcached]]
) -> None:
    nodes = [it.address for it in memcached_nodes(up_to(1))]
    projector = await project(nodes, audit=OFF)
    await announcements.reached(stores.append(events.a_history(600)))
    assert differences(await verify(projector)) == []

    one, two, order = identity("product", 1), identity("product", 2), identity("order", 3)
    stores.run(f"UPDATE tandem_read.product_card SET price = price + 1 WHERE key = '{one}'")
    stores.run(f"DELETE FROM tandem_read.order_summary WHERE key = '{order}'")
    stray = str(uuid.uuid4())
    stores.run(
        f"INSERT INTO tandem_read.customer_profile SELECT '{stray}', position, value FROM tandem_read.customer_profile"
        " LIMIT 1"
    )
    expected = [("customer_profile", stray, EXTRA), ("order_summary", order, MISSING), ("product_card", one, ROW)]
    if nodes:
        card = ProductCard.FromString(stores.value("product_card", two) or b"")
        card.available += 1
        forge("product_card", two, card.SerializeToString(deterministic=True), announcements)
        expected.append(("product_card", two, ENTRY))
    expected.sort()
    found = await verify(projector)
    assert differences(found) == expected
    [row] = [it for answer in found for it in answer.differences if it.kind == ROW]
    assert list(row.columns) == ["price"]
    assert not row.repaired
    assert row.position > 0

    # Chosen views and keys alone.
    assert differences(await verify(projector, subjects=["order_summary", "nothing"])) == [
        ("order_summary", order, MISSING)
    ]
    assert differences(await verify(projector, keys=[one])) == [("product_card", one, ROW)]
    assert differences(await verify(projector, sample=1_000)) == expected, "more than there are"

    repairs = await verify(projector, repair=True)
    assert differences(repairs) == expected
    assert all(it.repaired for answer in repairs for it in answer.differences)
    assert differences(await verify(projector)) == []
    assert is_right(stores)
    if nodes:
        assert cached("product_card", two, announcements.epochs()) == stores.value("product_card", two)


async def test_an_event_that_is_not_in_a_row_is_found(stores: Stores, project: Project) -> None:
    """As if the view had passed over it; and one that no row can take in is named."""
    projector = await project(audit=OFF)
    await stores.reached(stores.append([events.product_added(1), events.stock_adjusted(1), events.price_changed(1)]))
    price_changed = "(SELECT payload FROM tandem_write.event WHERE position = 3)"
    # The stock was adjusted by the view alone.
    stores.run(
        f"UPDATE tandem_write.event SET kind = 'price_changed', payload = {price_changed} WHERE position = 2", "write"
    )
    assert differences(await verify(projector, subjects=["product_card"])) == [
        ("product_card", identity("product", 1), ROW)
    ]
    stores.run(
        f"UPDATE tandem_write.event SET kind = 'price_changed', payload = {price_changed} WHERE position = 1", "write"
    )
    found = await verify(projector, subjects=["product_card"], repair=True)
    [answer] = [it for it in found if it.differences]
    [difference] = answer.differences
    assert (difference.kind, difference.position, difference.repaired) == (EVENT, 1, False)
    assert "NotThere" in difference.error


async def test_the_auditor_repairs_what_somebody_has_changed_by_itself(stores: Stores, project: Project) -> None:
    projector = await project(audit=ALL)
    await stores.reached(stores.append(events.a_history(300)))
    key = identity("product", 2)
    before = sample("tandem_audit_differences_total", view="product_card", kind="row") or 0
    # A message of the view, with its own id: no reader can see that it is wrong.
    right = ProductCard.FromString(stores.value("product_card", key) or b"")
    wrong = ProductCard()
    wrong.CopyFrom(right)
    wrong.available += 1000
    stores.run(
        f"UPDATE tandem_read.product_card SET value = '\\x{wrong.SerializeToString(deterministic=True).hex()}'"
        f" WHERE key = '{key}'"
    )
    await until_right(stores, "product_card")
    assert sample("tandem_audit_differences_total", view="product_card", kind="row") == (before + 1)
    listed = await projector.list()
    assert listed["product_card"].differences == 1

    async def compared() -> bool:
        return all(it.HasField("audited_at") for it in (await projector.list()).values())

    await until(compared, "all views are compared")


async def test_an_auditor_that_may_not_repair_says_what_differs(stores: Stores, project: Project) -> None:
    projector = await project(audit={**ALL, "repair": False})
    await stores.reached(stores.append(events.a_history(100)))
    stores.run("UPDATE tandem_read.product_card SET available = -1")

    async def said() -> bool:
        return bool((await projector.list())["product_card"].differences)

    await until(said, "it is said")
    assert not is_right(stores, "product_card")
    async with projector.stub() as stub:
        [latest, *_] = (await stub.ListFindings(ListFindingsRequest(view="product_card"), timeout=10)).findings
        assert not (await stub.ListFindings(ListFindingsRequest(view="order_details"), timeout=10)).findings
    assert (latest.view, latest.kind, list(latest.columns)) == ("product_card", FINDING_KIND_ROW, ["available"])
    assert not latest.repaired
    assert latest.HasField("found_at")
    # The command waits for the projector, which is in this process.
    shown = await asyncio.to_thread(
        CliRunner().invoke, app, ["findings", "--projector-address", f"127.0.0.1:{projector.port}"]
    )
    assert latest.key in shown.stdout


async def test_a_person_who_is_being_erased_is_no_difference(stores: Stores, project: Project) -> None:
    """The key is gone, and the events that take the person out of the rows are not there yet."""
    projector = await project(audit=OFF)
    stores.append([events.customer_registered(1), events.product_added(1), events.order_placed(1)])
    await stores.caught_up()
    stores.run(f"UPDATE {feed.subject_key.fullname} SET key = NULL", "write")
    stores.run(
        f"INSERT INTO {feed.SCHEMA}.unfinished (request_id, request_type, request, envelope)"
        " VALUES (gen_random_uuid(), 'EraseCustomer', '', '')",
        "write",
    )
    asked = asyncio.create_task(verify(projector, subjects=["order_details"]))

    async def is_asked() -> bool:
        return bool(
            stores.run(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tandem-projector-verify'"
                " AND query LIKE '%unfinished%'",
                "write",
            )
        )

    await until(is_asked, "it waits for the erasure's end")
    stores.append([events.customer_erased(1), events.orders_anonymized(1, orders=[1])])
    stores.run(f"DELETE FROM {feed.SCHEMA}.unfinished", "write")
    answers = await asked
    assert differences(answers) == []
    assert sum(it.keys for it in answers if it.done) == 1
    assert is_right(stores, "order_details")


async def test_what_is_not_followed_here_cannot_be_compared_here(stores: Stores, project: Project) -> None:
    await project(audit=OFF)
    await stores.caught_up()
    standby = await project(audit=OFF)
    answers = await verify(standby)
    assert {it.subject for it in answers} == set(VIEWS.projections)
    assert all("does not follow" in it.problem for it in answers)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"sample": 10_001}, "sample"),
        ({"keys": ["x"]}, r"keys\[0\]"),
        ({"keys": [identity("a")], "sample": 1}, "sample"),
    ],
)
async def test_a_wrong_request_is_refused(stores: Stores, project: Project, request_: Any, field: str) -> None:
    projector = await project(audit=OFF)
    with pytest.raises(aio.AioRpcError, match=field):
        await verify(projector, **request_)
