"""Events that were stored before the feed spoke of data subjects are migrated, read and replayed."""

import uuid
from collections.abc import Callable, Iterator

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from command_server.app import MIGRATIONS
from commerce.event.v1.event_pb2 import Event
from shop.events import EVENTS
from tandem.feed.sealing import new_key
from tandem.feed.table import WRITE
from tandem.runtime.database import create_database_engine
from tandem.runtime.migrations import migrate
from tandem.runtime.settings import DatabaseSettings
from tests.integration.projector.conftest import Project, Stores
from tests.support import events
from tests.support.builders import NOW, identity
from tests.support.migrating import migrate_as_one_line
from tests.support.stack import Databases

ERASED, KEPT = identity("customer", 1), identity("customer", 2)
HISTORY = [
    events.customer_registered(1),
    events.customer_registered(2),
    events.product_added(),
    events.order_placed(1, customer=1),
    events.order_placed(2, customer=2),
    events.order_paid(2),
    events.address_updated(2, city="Hamburg"),
    events.customer_erased(1),
    events.orders_anonymized(1, orders=[1]),
]


@pytest.fixture
def old_feed(databases: Databases, fresh_database: Callable[[], str]) -> Iterator[Stores]:
    """A migrated feed whose events the version before stored: those with personal data are sealed."""
    settings = DatabaseSettings(url=SecretStr(fresh_database()))
    store_as_before(settings)
    migrate(settings, MIGRATIONS, WRITE)
    stores = Stores(settings.url.get_secret_value(), databases.create("read"))
    yield stores
    stores.close()
    databases.drop(stores.read_url)


def store_as_before(settings: DatabaseSettings) -> None:
    migrate_as_one_line(settings, MIGRATIONS, WRITE, "0005")
    keys = {ERASED: new_key(), KEPT: new_key()}
    engine = create_database_engine(settings, name="test", pool_size=1)
    with engine.begin() as connection:
        for subject, key in keys.items():
            connection.execute(
                text("INSERT INTO tandem_write.personal_key (customer_id, key) VALUES (:id, :key)"),
                {"id": uuid.UUID(subject), "key": None if subject == ERASED else key},
            )
        for position, event in enumerate(HISTORY, start=1):
            customer = EVENTS.subject_of(event)
            stored = EVENTS.seal(event, keys[customer]) if customer else event
            connection.execute(
                text(
                    "INSERT INTO tandem_write.event (position, kind, recorded_at, payload, customer_id)"
                    " VALUES (:position, :kind, :recorded_at, :payload, :customer)"
                ),
                {
                    "position": position,
                    "kind": event.WhichOneof("kind"),
                    "recorded_at": NOW,
                    "payload": stored.SerializeToString(deterministic=True),
                    "customer": uuid.UUID(customer) if customer else None,
                },
            )
        connection.execute(text(f"UPDATE tandem_write.feed_head SET position = {len(HISTORY)}"))
    engine.dispose()


def without_the_erased(event: Event) -> Event:
    left = Event()
    left.CopyFrom(event)
    if EVENTS.subject_of(event) == ERASED:
        getattr(left, str(left.WhichOneof("kind"))).ClearField("personal")
    return left


async def test_the_events_of_the_version_before_are_read(old_feed: Stores) -> None:
    found = old_feed.events()
    assert [it.event for it in found] == [without_the_erased(it) for it in HISTORY]
    assert [it.envelope for it in found] == [None] * len(HISTORY)


async def test_the_events_of_the_version_before_are_replayed(
    old_feed: Stores, stores: Stores, project: Project
) -> None:
    """The same views come of them as of the same events stored by this version."""
    stores.append(HISTORY)
    stores.run(f"UPDATE tandem_write.subject_key SET key = NULL WHERE subject_id = '{ERASED}'", "write")
    await project()
    await stores.caught_up()
    expected = stores.rows()
    assert expected["order_details"]
    await project(on=old_feed)
    await old_feed.caught_up()
    assert old_feed.rows() == expected


async def test_the_feed_of_the_version_before_goes_on(old_feed: Stores, project: Project) -> None:
    assert old_feed.append([events.order_shipped(2)]) == len(HISTORY) + 1
    await project(on=old_feed)
    await old_feed.caught_up()
