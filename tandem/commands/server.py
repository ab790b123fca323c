"""A command server of a domain: its settings, what it is made of, and what its program does other than serve."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from pydantic import Field
from pydantic_settings import SettingsConfigDict
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from tandem.commands import archiving
from tandem.commands.acknowledged import Acknowledged
from tandem.commands.archiving import ArchivingSettings
from tandem.commands.domain import Domain
from tandem.commands.executor import Executor, create_executor_engine
from tandem.commands.ledger import Kind, Ledger
from tandem.commands.maintenance import Maintenance, begin_epoch
from tandem.commands.partitions import FeedSettings, ensure_partitions, headroom
from tandem.commands.receipt_service import ReceiptService
from tandem.commands.restore import restore
from tandem.commands.resumption import Resumption
from tandem.commands.settings import ExecutorSettings, LedgerSettings, ReceiptSettings, StepSettings
from tandem.commands.verification import WriteVerification
from tandem.feed.archive import Archive
from tandem.feed.table import WRITE
from tandem.feed.token_signature import SignedTokenSettings, sign_tokens
from tandem.feed.verification import AuditService
from tandem.reactions.reaction import Reaction
from tandem.reactions.running import Reactions
from tandem.reactions.service import ReactionService
from tandem.reactions.settings import ReactionSettings, WebhookSettings
from tandem.runtime.actions import Action, ActionRefused, Done
from tandem.runtime.blockers import blockers, end_session
from tandem.runtime.database import create_database_engine, transaction
from tandem.runtime.migrations import has_revision, migrate, newest_revision
from tandem.runtime.server import Application, Service
from tandem.runtime.settings import DatabaseSettings, ServerSettings, ServiceSettings
from tandem.services.v1.audit_service_pb2 import DESCRIPTOR as AUDIT
from tandem.services.v1.reaction_service_pb2 import DESCRIPTOR as REACTION
from tandem.services.v1.receipt_service_pb2 import DESCRIPTOR as RECEIPTS


class CommandServerSettings(ServiceSettings):
    """All settings of a command server: TANDEM_COMMAND_… or the section [command]. A domain may have more."""

    model_config = SettingsConfigDict(env_prefix="TANDEM_COMMAND_")
    section: ClassVar[str] = "command"

    database: DatabaseSettings = Field(description="The write database")
    server: ServerSettings = Field(ServerSettings(port=50051), description="The gRPC server")
    tokens: SignedTokenSettings = Field(SignedTokenSettings(), description="The signature of tokens")
    executor: ExecutorSettings = Field(ExecutorSettings(), description="Group commit")
    receipts: ReceiptSettings = Field(ReceiptSettings(), description="Receipts")
    feed: FeedSettings = Field(FeedSettings(), description="The feed's table")
    archive: ArchivingSettings = Field(ArchivingSettings(), description="The feed's archive, for `archive`")
    ledger: LedgerSettings = Field(LedgerSettings(file=None), description="The ledger")
    steps: StepSettings = Field(StepSettings(), description="Commands in steps")
    reactions: ReactionSettings = Field(ReactionSettings(), description="Reactions")
    webhook: WebhookSettings = Field(WebhookSettings(), description="Webhooks")


def build_command_server(
    domain: Domain,
    migrations: Path,
    settings: CommandServerSettings,
    *,
    receipts: ServiceDescriptor = RECEIPTS.services_by_name["ReceiptService"],
    audit: ServiceDescriptor = AUDIT.services_by_name["AuditService"],
    reaction: ServiceDescriptor = REACTION.services_by_name["ReactionService"],
    reactions: Sequence[Reaction] = (),
) -> Application:
    """migrations: the domain's folder of them. receipts, audit, reaction: the services, where the domain's contract has
    its own.

    reactions: what is done because of events. Raises SettingsError.
    """
    sign_tokens(settings.tokens)
    acknowledged = Acknowledged(kept_seconds=settings.receipts.keep_days * 86_400)
    engine = create_executor_engine(settings.database, settings.executor)
    ledger = Ledger(settings.ledger.file)
    executor = Executor(engine, domain, settings.executor, acknowledged, ledger)
    # Apart from the executor's: a purge, a look for what is due or unfinished, or a readiness check must not wait for a
    # batch, nor a batch for them.
    side = create_database_engine(settings.database, name="tandem-command-side", pool_size=5, durable=True)
    maintenance = Maintenance(side, settings.receipts, ledger, settings.feed.partition_events)
    resumption = Resumption(side, executor, domain, settings.steps)
    receipt_service = ReceiptService(receipts, side)
    verify = WriteVerification(domain, settings.database, Archive(settings.archive.folder)).verify
    audit_service = AuditService(audit, {it.name: verify for it in domain.model.aggregates})
    reacting = Reactions(
        settings.database,
        executor,
        reactions,
        settings.reactions,
        webhook=settings.webhook,
        archive=Archive(settings.archive.folder),
        keep=timedelta(days=settings.receipts.keep_days),
    )
    reaction_service = ReactionService(reaction, side, reacting, Archive(settings.archive.folder))
    needed = newest_revision(migrations)

    async def ready() -> bool:
        return await asyncio.to_thread(is_ready, side, needed, acknowledged)

    return Application(
        name="command_server",
        server=settings.server,
        services=(
            Service(
                domain.service,
                workers=dict.fromkeys(domain.service.methods_by_name, executor),
                owner_fields=domain.owner_fields,
            ),
            receipt_service.service,
            audit_service.service,
            reaction_service.service,
        ),
        ready=ready,
        # The last one started is stopped first: what it submits, the executor must still store.
        components=(maintenance, receipt_service, reaction_service, executor, reacting, resumption),
    )


def is_ready(side: Engine, needed: str, acknowledged: Acknowledged) -> bool:
    """Whether the schema is there, can be written, and has a place for the next event."""
    if not has_revision(side, WRITE, needed, writing=True):
        return False
    try:
        with side.connect() as connection:
            # Here too: a server whose executor has nothing to do must not wait for a command to notice.
            acknowledged.look_for(connection)
            connection.commit()
            return headroom(connection) > 0
    except SQLAlchemyError:
        return False


def command_server_actions(
    domain: Domain, migrations: Path, erasure: Callable[[str], Message] | None = None
) -> dict[str, Action]:
    """What `python -m <the domain's command server>` does other than serve.

    erasure: the command that erases a data subject, by its id; None for a domain that erases nobody.
    """
    return {
        "migrate": Action(
            "bring the write database's schema up to date", partial(migrate_write_database, migrations=migrations)
        ),
        "begin-epoch": Action(
            "name the feed anew, after the write database lost commits in a failover or was restored to an earlier"
            " state; tokens from before are refused then, and projectors make the views right",
            _begin_epoch,
        ),
        "blockers": Action(
            "show who holds others up in the write database", lambda settings: blockers(settings.database)
        ),
        "end-session": Action(
            "end a session that `blockers` shows, by its process id",
            lambda settings, pid: end_session(settings.database, pid),
            takes=int,
        ),
        "archive": Action(
            "move the feed's oldest partitions into files of ARCHIVE__FOLDER, as the owner of the schema; it may be"
            " ended and repeated at any time",
            lambda settings: archiving.run(settings.database, settings.archive),
        ),
        "archive-plan": Action(
            "say what `archive` would move", lambda settings: archiving.plan(settings.database, settings.archive).done()
        ),
        "verify-archive": Action(
            "read the whole archive and compare it with its checksums",
            lambda settings: archiving.verify(settings.database, settings.archive),
        ),
        "restore": Action(
            "after the write database was restored from a backup: erase again who was erased since, as the ledgers say,"
            " and begin a new epoch; before the command servers are started",
            partial(_restore, domain, migrations, erasure),
            takes=Path,
        ),
    }


def migrate_write_database(settings: CommandServerSettings, migrations: Path) -> Done:
    """The tables, and the feed's partitions ahead: servers may have no right to make them."""
    revision = migrate(settings.database, migrations, WRITE)
    with transaction(settings.database, "tandem-command-migrate") as connection:
        ensure_partitions(connection, settings.feed.partition_events)
    return Done(f"{WRITE.name} is at revision {revision}", {"schema": WRITE.name, "revision": revision})


def _begin_epoch(settings: CommandServerSettings) -> Done:
    with transaction(settings.database, "tandem-command-epoch") as connection:
        epoch = begin_epoch(connection)
    # Where it cannot be written, which is logged, a command server does it later.
    Ledger(settings.ledger.file).add(Kind.EPOCH, [epoch])
    return Done(f"the feed's epoch is {epoch}", {"epoch": str(epoch)})


def _restore(
    domain: Domain,
    migrations: Path,
    erasure: Callable[[str], Message] | None,
    settings: CommandServerSettings,
    *ledgers: Path,
) -> Done:
    if erasure is None:
        return _begin_epoch(settings)
    own = settings.ledger.file
    chosen = ledgers or ((own,) if own is not None and own.exists() else ())
    if not chosen:
        raise ActionRefused(
            "name the ledgers of all command servers: restore LEDGER…; without any nobody knows who was erased since"
            " the backup: then erase them yourself, and run begin-epoch"
        )
    needed = newest_revision(migrations)
    engine = create_executor_engine(settings.database, settings.executor)
    if not has_revision(engine, WRITE, needed, writing=True):
        raise ActionRefused(f"the write database takes no writes, or is not at revision {needed}: run migrate first")
    new_executor: Any = partial(Executor, engine, domain, settings.executor, Acknowledged(kept_seconds=0), Ledger(None))
    done = restore(settings.database, new_executor, erasure, chosen, Ledger(own))
    return Done(
        f"the feed's epoch is {done.epoch}; of {done.listed} erasures that were written down,"
        f" {done.erased} were not in the backup and are done again",
        {"epoch": str(done.epoch), "listed": done.listed, "erased": done.erased},
    )
