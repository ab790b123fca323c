"""The command server, wired: read downward and you have seen every dependency."""

import asyncio
from pathlib import Path

from command_server.executor import Executor, create_lanes_engine
from command_server.expiry import Expiry
from command_server.maintenance import Maintenance
from command_server.servicers import CommandServicer, answer_from_lanes
from command_server.settings import Settings
from commerce.command.v1.command_service_pb2 import DESCRIPTOR
from tandem.feed.table import SCHEMA
from tandem.runtime.database import create_database_engine, has_revision, newest_revision
from tandem.runtime.process import Application, Service

MIGRATIONS = Path(__file__).parent / "migrations"


def build(settings: Settings) -> Application:
    lanes = create_lanes_engine(settings.database, settings.executor.lanes)
    # Apart from the lanes: a purge, a look for what is due or a readiness check must not wait for a batch, nor a batch
    # for them.
    side = create_database_engine(settings.database, name="tandem-command-side", pool_size=3)
    executor = Executor(lanes, settings.executor)
    maintenance = Maintenance(side, settings.receipts)
    expiry = Expiry(side, executor, settings.subscriptions)
    service = DESCRIPTOR.services_by_name["CommandService"]
    later = dict.fromkeys(service.methods_by_name, answer_from_lanes(executor))
    needed = newest_revision(MIGRATIONS)

    async def ready() -> bool:
        return await asyncio.to_thread(has_revision, side, SCHEMA, needed)

    return Application(
        name="command_server",
        server=settings.server,
        services=(Service(service, CommandServicer(executor), later=later),),
        ready=ready,
        # The last one started is stopped first: what it submits, the executor must still store.
        components=(maintenance, executor, expiry),
    )
