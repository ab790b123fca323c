"""The command server, wired: read downward and you have seen what it does and every dependency."""

import asyncio
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from command_server import customers, orders, products, subscriptions
from command_server.checks import ShopChecker
from command_server.expiry import Expiry
from command_server.settings import Settings
from commerce.audit.v1.audit_service_pb2 import DESCRIPTOR as AUDIT
from commerce.command.v1.command_service_pb2 import DESCRIPTOR
from commerce.command.v1.receipt_service_pb2 import DESCRIPTOR as RECEIPTS
from shop.events import EVENTS
from tandem.commands.acknowledged import Acknowledged
from tandem.commands.domain import Domain
from tandem.commands.executor import Executor, create_executor_engine
from tandem.commands.ledger import Ledger
from tandem.commands.maintenance import Maintenance
from tandem.commands.partitions import headroom
from tandem.commands.receipt_service import ReceiptService
from tandem.commands.resumption import Resumption
from tandem.commands.verification import WriteVerification
from tandem.feed.archive import Archive
from tandem.feed.table import SCHEMA
from tandem.feed.token_signature import sign_tokens
from tandem.feed.verification import AuditService
from tandem.runtime.database import create_database_engine, has_revision, newest_revision
from tandem.runtime.server import Application, Service

MIGRATIONS = Path(__file__).parent / "migrations"

DOMAIN = Domain(
    service=DESCRIPTOR.services_by_name["CommandService"],
    events=EVENTS,
    # Orders first: what they hold tells which customers and products are meant.
    loads=(
        orders.ORDERS,
        orders.LINES,
        subscriptions.SUBSCRIPTIONS,
        customers.CUSTOMERS,
        customers.CUSTOMER_ORDERS,
        products.PRODUCTS,
    ),
    kinds=(*customers.KINDS, *products.KINDS, *orders.KINDS, *subscriptions.KINDS),
    changes=(customers.CHANGES, products.CHANGES, orders.CHANGES, subscriptions.CHANGES),
    checker=ShopChecker,
    owner_field="customer_id",
)


def build(settings: Settings) -> Application:
    sign_tokens(settings.tokens)
    acknowledged = Acknowledged(kept_seconds=settings.receipts.keep_days * 86_400)
    engine = create_executor_engine(settings.database, settings.executor)
    ledger = Ledger(settings.ledger.file)
    executor = Executor(engine, DOMAIN, settings.executor, acknowledged, ledger)
    # Apart from the executor's: a purge, a look for what is due or unfinished, or a readiness check must not wait for a
    # batch, nor a batch for them.
    side = create_database_engine(settings.database, name="tandem-command-side", pool_size=5, durable=True)
    maintenance = Maintenance(side, settings.receipts, ledger, settings.feed.partition_events)
    expiry = Expiry(side, executor, settings.subscriptions)
    resumption = Resumption(side, executor, DOMAIN, settings.steps)
    receipts = ReceiptService(RECEIPTS.services_by_name["ReceiptService"], side)
    verify = WriteVerification(DOMAIN, settings.database, Archive(settings.archive.folder)).verify
    audit = AuditService(AUDIT.services_by_name["AuditService"], {it.name: verify for it in DOMAIN.model.aggregates})
    needed = newest_revision(MIGRATIONS)

    async def ready() -> bool:
        return await asyncio.to_thread(_is_ready, side, needed, acknowledged)

    return Application(
        name="command_server",
        server=settings.server,
        services=(
            Service(
                DOMAIN.service,
                workers=dict.fromkeys(DOMAIN.service.methods_by_name, executor),
                owner_fields=DOMAIN.owner_fields,
            ),
            receipts.service,
            audit.service,
        ),
        ready=ready,
        # The last one started is stopped first: what it submits, the executor must still store.
        components=(maintenance, receipts, executor, expiry, resumption),
    )


def _is_ready(side: Engine, needed: str, acknowledged: Acknowledged) -> bool:
    """Whether the schema is there, can be written, and has a place for the next event."""
    if not has_revision(side, SCHEMA, needed, writing=True):
        return False
    try:
        with side.connect() as connection:
            # Here too: a server whose executor has nothing to do must not wait for a command to notice.
            acknowledged.look_for(connection)
            connection.commit()
            return headroom(connection) > 0
    except SQLAlchemyError:
        return False
