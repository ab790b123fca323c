"""A projector that follows the broker has the views of one that follows the table, and tokens hold for both.

It needs no write database: what operators ask, and what damaged rows are made of, is in the stream.
"""

import uuid
from collections.abc import Callable
from functools import partial

import pytest
from grpc import StatusCode, aio
from pydantic import SecretStr, ValidationError

from commerce.audit.v1 import audit_service_pb2 as audit
from commerce.audit.v1.audit_service_pb2_grpc import AuditServiceStub
from commerce.feed.v1.feed_service_pb2 import GetHeadRequest
from commerce.feed.v1.feed_service_pb2_grpc import FeedServiceStub
from commerce.projection.v1 import projection_service_pb2 as projections
from projector.settings import Settings
from tandem.commands.maintenance import begin_epoch
from tandem.projection.settings import AuditSettings, FollowSettings
from tandem.read_store.damage import CHANNEL
from tandem.relay.settings import NatsSettings
from tandem.runtime.settings import DatabaseSettings, ServerSettings
from tandem.testing.stack import until
from tests.integration.projector.conftest import Announcements, Running, Stores
from tests.integration.relay.conftest import StreamRelays
from tests.support import events
from tests.support.builders import identity
from tests.support.stack import Databases


def a_projector(write: str, read: str, broker: NatsSettings | None) -> Running:
    return Running(
        Settings(
            feed_database=None if broker is not None else DatabaseSettings(url=SecretStr(write)),
            read_database=DatabaseSettings(url=SecretStr(read)),
            server=ServerSettings(port=0),
            follow=FollowSettings(retry_seconds=0.2, standby_seconds=0.05),
            audit=AuditSettings(share=0),
            broker=broker,
        )
    )


async def test_views_of_a_broker_are_those_of_the_table_through_a_failover(
    stores: Stores, databases: Databases, relays: Callable[..., StreamRelays]
) -> None:
    its = relays()
    elsewhere = databases.create("read")
    far = Stores(stores.write_url, elsewhere)
    heard = Announcements(elsewhere)
    broker = NatsSettings(servers=tuple(it.url for it in its.servers), stream=its.prefix, ack_seconds=2)
    here, there = a_projector(stores.write_url, stores.read_url, None), a_projector(stores.write_url, elsewhere, broker)
    try:
        async with its.running(its.new(personal_data="opened")):
            await here.start()
            await there.start()
            head = stores.append([events.customer_registered(it) for it in range(1, 30)])
            head = stores.append([events.product_added(it) for it in range(1, 30)])
            for it in (stores, far):
                await it.reached(head)
            assert far.rows() == stores.rows()

            # The last ten are lost, and others come instead, in a new epoch.
            stores.run("DELETE FROM tandem_write.event WHERE position > 48", "write")
            stores.run("UPDATE tandem_write.feed_head SET position = 48", "write")
            with stores.write.begin() as connection:
                later = begin_epoch(connection)
            head = stores.append([events.product_added(it) for it in range(101, 121)])

            async def in_the_new_epoch(at: Stores) -> bool:
                found = at.run(f"SELECT count(*) FROM tandem_read.projection WHERE feed_epoch = '{later}'")
                return bool(found == len(at.positions()) and set(at.positions().values()) == {head})

            for it in (stores, far):
                await until(partial(in_the_new_epoch, it), "the views are of the new epoch", 60)
            assert far.rows() == stores.rows()
            assert heard.heard[-1].feed_epoch == later
    finally:
        await here.stop()
        await there.stop()
        heard.stop()
        far.close()
        databases.drop(elsewhere)


async def test_operators_and_repairs_find_the_feed_in_the_stream(
    stores: Stores, relays: Callable[..., StreamRelays]
) -> None:
    its = relays()
    broker = NatsSettings(servers=tuple(it.url for it in its.servers), stream=its.prefix, ack_seconds=2)
    far = a_projector("", stores.read_url, broker)
    product = identity("product", 1)
    relay = its.new(personal_data="opened")
    try:
        async with its.running(relay):
            await far.start()
            head = stores.append([events.product_added(it) for it in range(1, 11)])
            await stores.reached(head)
            async with far.stub() as stub:
                listed = await stub.ListProjections(projections.ListProjectionsRequest(), timeout=10)
                explained = await stub.Explain(projections.ExplainRequest(key=product), timeout=10)
                asked = projections.GetHistoryRequest(view="product_card", key=product)
                changes = [it async for it in stub.GetHistory(asked, timeout=10)]
            assert (listed.feed_head, list(listed.unreachable)) == (head, [])
            assert {it.lag_events for it in listed.projections} == {0}
            assert (explained.event.position, explained.event.type) == (1, "product_added")
            assert explained.HasField("stored_at")
            assert [it.event.position for it in changes if it.HasField("event")] == [1]

            stores.run(f"UPDATE tandem_read.product_card SET value = '\\xff' WHERE key = '{product}'")
            stores.run(f"SELECT pg_notify('{CHANNEL}', 'product_card {uuid.UUID(product).hex}')")
            async with aio.insecure_channel(f"127.0.0.1:{far.port}") as channel:
                verify = AuditServiceStub(channel).Verify

                async def is_right() -> bool:
                    request = audit.VerifyRequest(subjects=["product_card"])
                    found = [it async for it in verify(request, timeout=30)]
                    return found[-1].done and not any(it.differences or it.problem for it in found)

                await until(is_right, "the row is made again", 20)
                with pytest.raises(aio.AioRpcError) as refused:
                    await FeedServiceStub(channel).GetHead(GetHeadRequest(), timeout=10)
                assert refused.value.code() is StatusCode.UNIMPLEMENTED
    finally:
        await far.stop()


def test_a_projector_without_any_feed_is_refused() -> None:
    read = DatabaseSettings(url=SecretStr("postgresql://nowhere/read"))
    with pytest.raises(ValidationError, match="set FEED_DATABASE__URL, or BROKER__SERVERS"):
        Settings(read_database=read)
