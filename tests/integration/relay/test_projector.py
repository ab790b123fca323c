"""A projector that follows the broker has the views of one that follows the table, and tokens hold for both."""

from collections.abc import Callable
from functools import partial

from pydantic import SecretStr

from projector.settings import Settings
from tandem.commands.maintenance import begin_epoch
from tandem.projection.settings import AuditSettings, FollowSettings
from tandem.relay.settings import NatsSettings
from tandem.runtime.settings import DatabaseSettings, ServerSettings
from tandem.testing.stack import until
from tests.integration.projector.conftest import Announcements, Running, Stores
from tests.integration.relay.conftest import StreamRelays
from tests.support import events
from tests.support.stack import Databases


def a_projector(write: str, read: str, broker: NatsSettings | None) -> Running:
    return Running(
        Settings(
            feed_database=DatabaseSettings(url=SecretStr(write)),
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
