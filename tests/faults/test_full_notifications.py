"""G1, G6: PostgreSQL takes no notification, since somebody listens in a transaction that does not end.

Its queue of them is one for all databases of a server, and 8 GB by default: here it is as small as it can be.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from pydantic import SecretStr

from commerce.query.v1 import query_service_pb2 as queries
from commerce.type.v1.consistency_pb2 import Consistency
from tandem.cli.embedded import Memcached, Postgres
from tandem.runtime.blockers import blockers
from tandem.runtime.settings import DatabaseSettings
from tandem.testing.ports import free_port
from tandem.testing.stack import up_to, wait_until
from tests.support.shop import an_order, open_shop
from tests.support.stack import AsyncStubs, Databases, Stack

# Readers are blind sooner than they are by default, so that they look at the database.
QUICK = {
    "PROJECTOR": {"FOLLOW__HEARTBEAT_SECONDS": "0.1", "FOLLOW__STANDBY_SECONDS": "0.1"},
    "QUERY": {"FRESHNESS__BLIND_AFTER": "0.5"},
}
TOLD = "the followers of the feed", "the readers of the views"


@pytest.fixture
def server(servers_folder: Path) -> Iterator[Postgres]:
    """Of both sides."""
    settings = {"fsync": "off", "max_notify_queue_pages": "64"}
    server = Postgres(servers_folder / "full", free_port(), settings=settings)
    server.start()
    yield server
    server.stop()


async def test_commands_are_answered_and_views_move_while_nobody_can_be_notified(
    server: Postgres, memcached_nodes: Callable[[int], list[Memcached]], tmp_path: Path
) -> None:
    stack = Stack(Databases(server), tmp_path, nodes=memcached_nodes(up_to(1)), settings=QUICK).start()
    try:
        async with stack.async_stubs() as stubs:
            await open_shop(stubs.commands)
            with psycopg.connect(server.url("postgres")) as listener:
                fill(server, listener)
                for number in range(1, 6):
                    await place_and_read(stubs, number)
                assert stack.command_server.metric("tandem_command_batch_retries_total") == 0
                assert stack.command_server.metric("tandem_notifications_refused_total", to=TOLD[0]) == 5
                assert stack.projector.metric("tandem_notifications_refused_total", to=TOLD[1]) > 0
                assert stack.query_server.metric("tandem_freshness_blind") > 0
                logs = [it.log.read_text() for it in (stack.command_server, stack.projector)]
                assert [it.count("cannot be notified") for it in logs] == [1, 1], "once, not for each batch"
                assert "starting over" not in logs[1]
                assert "is away" not in logs[1]
                settings = DatabaseSettings(url=SecretStr(stack.write_url))
                [found] = blockers(settings).fields["sessions"]
                assert (found["pid"], found["database"]) == (listener.info.backend_pid, "postgres")
                assert (found["may_keep_notifications"], found["holds_snapshot"]) == (True, False)
            # PostgreSQL itself makes room when somebody asks how full it is, and not before.
            await place_and_read(stubs, 6)
            assert stack.command_server.metric("tandem_notifications_refused_total", to=TOLD[0]) == 5
            wait_until(lambda: stack.query_server.metric("tandem_freshness_blind") == 0, "views are announced")
            for it in (stack.command_server, stack.projector):
                wait_until(lambda it=it: "are notified again" in it.log.read_text(), f"{it.name} says so")  # type: ignore[misc]
    finally:
        stack.stop()


def fill(server: Postgres, listener: psycopg.Connection[object]) -> None:
    """Until the queue takes nothing. The listener's transaction is open from then on."""
    listener.execute("LISTEN nobody")
    listener.commit()
    listener.execute("SELECT 1")
    with psycopg.connect(server.url("postgres"), autocommit=True) as other:

        def is_full() -> bool:
            try:
                other.execute("SELECT pg_notify('nobody', repeat('x', 7000))")
            except psycopg.errors.ProgramLimitExceeded:
                return True
            return False

        assert any(is_full() for _ in range(100))


async def place_and_read(stubs: AsyncStubs, number: int) -> None:
    """Each asked once."""
    placed = await stubs.commands.PlaceOrder(an_order(number), timeout=10)
    assert not placed.receipt.replayed
    fresh = Consistency(at_least_as_fresh=placed.receipt.consistency_token, max_wait={"seconds": 10})  # type: ignore[arg-type]
    request = queries.GetOrderDetailsRequest(order_id=placed.order_id, consistency=fresh)
    found = await stubs.queries.GetOrderDetails(request, timeout=20)
    assert found.order_details.order_id == placed.order_id
