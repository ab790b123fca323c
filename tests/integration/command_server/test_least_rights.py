"""A role with only the rights that docs/operating-roles.md grants serves commands, and makes no partition."""

import asyncio
import os
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.engine import make_url

from command_server.app import MIGRATIONS
from command_server.reactions import reactions
from command_server.settings import Settings
from commerce.command.v1 import command_service_pb2 as commands
from tandem.commands.acknowledged import Acknowledged
from tandem.commands.ledger import Ledger
from tandem.commands.maintenance import Maintenance
from tandem.commands.partitions import HEADROOM, PARTITIONS_AHEAD
from tandem.commands.server import is_ready, migrate_write_database
from tandem.commands.settings import ReceiptSettings
from tandem.feed import table as feed
from tandem.feed.archive import Archive
from tandem.reactions.running import Reactions
from tandem.reactions.settings import ReactionSettings, WebhookSettings
from tandem.runtime.clock import utc_now
from tandem.runtime.database import create_database_engine
from tandem.runtime.migrations import newest_revision
from tandem.runtime.settings import DatabaseSettings
from tests.integration.command_server.conftest import Commands, WriteDatabase, submit
from tests.support.builders import add_product, identity, place_order, register_customer, start_subscription

_PAGE = Path(__file__).parents[3] / "docs" / "operating-roles.md"
_ROLE = f"test_commands_{os.getpid()}"


@pytest.fixture
def as_role(database: WriteDatabase) -> Iterator[DatabaseSettings]:
    """The database by a role that has what the page grants, word for word."""
    [statements] = re.findall(r"```sql\n(.*?)```", _PAGE.read_text(encoding="utf-8"), re.DOTALL)
    with database.engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE {_ROLE} LOGIN"))
        connection.execute(text(statements.replace("tandem_commands", _ROLE)))
    url = make_url(database.settings.url.get_secret_value()).set(username=_ROLE)
    yield database.settings.model_copy(update={"url": SecretStr(url.render_as_string(hide_password=False))})
    with database.engine.begin() as connection:
        connection.execute(text(f"DROP OWNED BY {_ROLE}"))
        connection.execute(text(f"DROP ROLE {_ROLE}"))


async def test_the_role_of_the_page_may_do_all_that_a_command_server_does(
    commands_on: Commands, database: WriteDatabase, as_role: DatabaseSettings
) -> None:
    migrate_write_database(Settings(database=database.settings), MIGRATIONS)
    executor = await commands_on.executor(as_role, clock=utc_now)
    await submit(executor, register_customer())
    await submit(executor, add_product(1, stock=5))
    await submit(executor, place_order(1))
    await submit(executor, commands.PayOrderRequest(order_id=identity("order", 1)))
    old = (utc_now() - timedelta(days=90)).isoformat().replace("+00:00", "Z")
    await submit(executor, start_subscription(1, started_at=old))
    side = create_database_engine(as_role, name="side", pool_size=2)
    reacting = Reactions(
        as_role, executor, reactions(Settings(database=as_role)), ReactionSettings(), webhook=WebhookSettings(),
        archive=Archive(None), keep=timedelta(days=7),
    )  # fmt: skip
    await asyncio.to_thread(reacting.work)
    await reacting.stop()
    await submit(executor, commands.EraseCustomerRequest(customer_id=identity("customer", 1)))
    maintenance = Maintenance(side, ReceiptSettings(), Ledger(None))
    maintenance.look_ahead()
    maintenance.purge()
    with database.engine.begin() as connection:
        month = "interval '30 days'"
        connection.execute(text(f"UPDATE tandem_write.receipt_period SET began_at = began_at - {month}"))
    maintenance.purge()
    with database.engine.begin() as connection:
        connection.execute(text(f"UPDATE tandem_write.receipt_period SET ended_at = ended_at - {month}"))
    maintenance.purge()
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM tandem_write.receipt")).scalar_one() == 0
    assert HEADROOM._value.get() > PARTITIONS_AHEAD * feed.PARTITION_EVENTS * 0.9
    assert "subscription_lapsed" in {kind for _, kind, _ in database.events()}
    assert is_ready(side, newest_revision(MIGRATIONS), Acknowledged(kept_seconds=600))

    # All are full, and the role may make no more: that is seen before a command fails.
    full = (PARTITIONS_AHEAD + 1) * feed.PARTITION_EVENTS - 1
    with database.engine.begin() as connection:
        connection.execute(text(f"UPDATE {feed.feed_head.fullname} SET position = {full}"))
    maintenance.look_ahead()
    assert HEADROOM._value.get() == 0
    assert not is_ready(side, newest_revision(MIGRATIONS), Acknowledged(kept_seconds=600))
    migrate_write_database(Settings(database=database.settings), MIGRATIONS)
    assert is_ready(side, newest_revision(MIGRATIONS), Acknowledged(kept_seconds=600))
    await submit(executor, commands.ShipOrderRequest(order_id=identity("order", 1)))
    side.dispose()
