"""G10: views are made anew, and changed by a release, while they are written and read; whoever dies meanwhile."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg

from commerce.projection.v1.projection_service_pb2 import GenerationState
from commerce.query.v1 import query_service_pb2 as queries
from commerce.query.v1.query_service_pb2_grpc import QueryServiceStub
from commerce.query.v1.views_pb2 import OrderDetails
from commerce.type.v1.consistency_pb2 import Consistency
from shop.views import VIEWS
from tandem.testing.stack import kill, until, up_to, wait_until
from tests.integration.projector.conftest import Stores
from tests.support.builders import identity, place_order
from tests.support.operating import COMPARING, FILLING, KEPT, READY, Operator, operator
from tests.support.shop import Load, open_shop
from tests.support.stack import AsyncStubs, Stack

ORDERS = 120
WRONG = identity("order", 1)
VERSION_2 = "order_details_v2"
PACE = {"PROJECTOR": {"FOLLOW__STANDBY_SECONDS": "0.1", "FOLLOW__REBUILD_BATCH": "20"}}


@contextmanager
def stores_of(stack: Stack) -> Iterator[Stores]:
    stores = Stores(stack.write_url, stack.read_url)
    yield stores
    stores.close()


def misname(stores: Stores) -> None:
    """One row is not what the events make: as after a release with a mistake."""
    value = stores.value("order_details", WRONG)
    assert value is not None
    order = OrderDetails.FromString(value)
    order.customer_name = "WRONG"
    wrong = order.SerializeToString(deterministic=True).hex()
    stores.run(f"UPDATE tandem_read.order_details SET value = '\\x{wrong}' WHERE key = '{WRONG}'")


class Traffic:
    """Orders are placed one after the other, and each is read at once, in each way that there is, with its token."""

    def __init__(self, stubs: AsyncStubs) -> None:
        self._stubs = stubs
        self._over = asyncio.Event()
        self.placed = 0

    async def run(self) -> None:
        while not self._over.is_set():
            self.placed += 1
            order = await self._stubs.commands.PlaceOrder(place_order(10_000 + self.placed))
            consistency = Consistency(at_least_as_fresh=order.receipt.consistency_token)
            await asyncio.gather(*(self._read(order.order_id, consistency) for _ in range(2)))

    async def _read(self, order_id: str, fresh: Consistency) -> None:
        ask, customer = self._stubs.queries, identity("customer", 1)
        by_id = queries.GetOrderDetailsRequest(order_id=order_id, consistency=fresh)
        assert (await ask.GetOrderDetails(by_id)).order_details.order_id == order_id
        listed = await ask.ListRecentOrders(queries.ListRecentOrdersRequest(customer_id=customer, consistency=fresh))
        assert order_id in {it.order_id for it in listed.orders}
        found = await ask.SearchProducts(queries.SearchProductsRequest(query="product", consistency=fresh))
        assert len(found.hits) == 10
        batch = queries.BatchGetOrderDetailsRequest(order_ids=[order_id, identity("order", 2)], consistency=fresh)
        assert not (await ask.BatchGetOrderDetails(batch)).missing_order_ids

    def end(self) -> None:
        self._over.set()


class Watch:
    """A watch on the order whose row is wrong. names: that it has shown, each time that it was another."""

    def __init__(self) -> None:
        self.names: list[str] = []

    async def run(self, stubs: AsyncStubs) -> None:
        async for message in stubs.queries.WatchOrderDetails(queries.WatchOrderDetailsRequest(order_id=WRONG)):
            if message.HasField("order_details") and self.names[-1:] != [message.order_details.customer_name]:
                self.names.append(message.order_details.customer_name)

    async def shows(self, *names: str) -> None:
        async def so() -> bool:
            return self.names == list(names)

        await until(so, f"the watch has shown {names}")


async def test_nobody_who_writes_reads_searches_or_watches_notices_a_rebuild_but_by_what_it_mends(
    new_stack: Callable[..., Stack],
) -> None:
    stack = new_stack(cache_nodes=up_to(1), settings=PACE)
    with stores_of(stack) as stores:
        async with stack.async_stubs() as stubs:
            await open_shop(stubs.commands)
            await Load(ORDERS).run(stubs.commands)
            await stores.caught_up()
            [right] = {name for name in [await name_of(stubs)] if name != "WRONG"}
            misname(stores)
            ask, traffic, watch = Operator(stubs.projections), Traffic(stubs), Watch()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(traffic.run())
                watching = tasks.create_task(watch.run(stubs))
                await watch.shows("WRONG")

                await ask.rebuild(*VIEWS)
                found = await ask.until(READY, *VIEWS)
                different = {view: it.comparison for view, it in found.items() if it.comparison.examples}
                assert list(different) == ["order_details"]
                assert [it.key for it in different["order_details"].examples] == [WRONG]
                for view in VIEWS:
                    await ask.switch(view)
                await ask.until(KEPT, *VIEWS)
                await watch.shows("WRONG", right)
                assert await name_of(stubs) == right

                await ask.switch("order_details")
                await watch.shows("WRONG", right, "WRONG")
                await ask.until(READY, "order_details")
                await ask.switch("order_details")
                await watch.shows("WRONG", right, "WRONG", right)
                await ask.until(KEPT, "order_details")
                assert await name_of(stubs) == right
                for view in VIEWS:
                    await ask.drop(view)
                await ask.until_gone()
                traffic.end()
                watching.cancel()
        assert traffic.placed > 10


async def name_of(stubs: AsyncStubs) -> str:
    answer = await stubs.queries.GetOrderDetails(queries.GetOrderDetailsRequest(order_id=WRONG))
    return answer.order_details.customer_name


async def test_a_rebuild_goes_on_or_is_dropped_wherever_its_projector_dies(new_stack: Callable[..., Stack]) -> None:
    stack = new_stack(settings=PACE)
    views = ("order_details", "product_search")

    async def die(what: str) -> None:
        kill(stack.projector)
        stack.projector.start()
        await stores.caught_up()
        assert stores.rows() == live, what

    with stores_of(stack) as stores:
        async with stack.async_stubs() as stubs:
            await open_shop(stubs.commands)
            await Load(ORDERS).run(stubs.commands)
        await stores.caught_up()
        live = stores.rows()
        async with operator(stack.projector.port) as ask:
            await ask.rebuild(*views, max_events_per_second=100)
            await _filled(ask, views[0], 20)
            await die("filled up to 20")
            await ask.until(COMPARING, *views)
            await die("compared")
            await ask.until(READY, *views)
            for delay in (0.0, 0.1):
                before = (await ask.list())[views[0]].state
                await ask.switch(views[0])
                await asyncio.sleep(delay)
                await die(f"exchanged for {delay} s")
                await ask.until(KEPT if before == READY else READY, views[0])
            for view in views:
                await ask.drop(view)
            await die("dropped")
            await ask.until_gone()
        assert stores.run("SELECT count(*) FROM pg_tables WHERE schemaname = 'tandem_read_other'") == 0
        assert stores.positions().keys() == VIEWS.keys()
        assert stores.rows() == live


async def _filled(ask: Operator, view: str, position: int) -> None:
    async def there() -> bool:
        found = (await ask.list())[view]
        assert found.state in (FILLING, GenerationState.GENERATION_STATE_REQUESTED)
        return found.position >= position

    await until(there, f"{view} is filled up to {position}")


async def test_a_release_that_changes_a_view_runs_beside_the_one_before_and_is_rolled_back(
    new_stack: Callable[..., Stack],
) -> None:
    stack = new_stack(cache_nodes=up_to(1))
    with psycopg.connect(stack.read_url) as connection:
        connection.execute(f"CREATE TABLE tandem_read.{VERSION_2} (LIKE tandem_read.order_details INCLUDING ALL)")
    new_queries = stack.of_release("query", "tests.support.next_release.query_server")
    new_projector = stack.of_release("projector", "tests.support.next_release.projector")
    before, after = stack.queries, QueryServiceStub(stack.channel(new_queries))

    def place(number: int) -> Consistency:
        receipt = stack.commands.PlaceOrder(place_order(number)).receipt
        return Consistency(at_least_as_fresh=receipt.consistency_token)

    def name_at(stub: QueryServiceStub, number: int, fresh: Consistency) -> str:
        request = queries.GetOrderDetailsRequest(order_id=identity("order", number), consistency=fresh)
        return stub.GetOrderDetails(request).order_details.customer_name

    async with stack.async_stubs() as stubs:
        await open_shop(stubs.commands)
    first = place(1)
    new_queries.launch()
    wait_until(lambda: "serving" in new_queries.log_tail(), "it runs")
    assert not new_queries.serves(), "its view is not there yet"
    new_projector.start()
    new_queries.wait_until_serving()
    for number, fresh in ((1, first), (2, place(2))):
        assert (name_at(before, number, fresh), name_at(after, number, fresh)) == ("Customer 1", "CUSTOMER 1")

    assert stack.projector.stop() == 0
    third = place(3)
    assert name_at(after, 3, third) == "CUSTOMER 1"
    listed = queries.ListRecentOrdersRequest(customer_id=identity("customer", 1), consistency=third)
    assert len(before.ListRecentOrders(listed).orders) == 3, "views that both releases make alike go on for both"

    assert new_queries.stop() == new_projector.stop() == 0
    stack.projector.start()
    assert name_at(before, 3, third) == "Customer 1", "the release before has caught up"
    async with operator(stack.projector.port) as ask:
        found = await ask.list()
        assert {view: it.state for view, it in found.items()} == {
            VERSION_2: GenerationState.GENERATION_STATE_OTHER_VERSION
        }
        await ask.drop(VERSION_2)
        await ask.until_gone()
    with psycopg.connect(stack.read_url) as connection:
        assert connection.execute(f"SELECT to_regclass('tandem_read.{VERSION_2}')").fetchone() == (None,)
