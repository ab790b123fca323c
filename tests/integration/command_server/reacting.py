"""Reactions of a server that a test has work when it wants, and what came of them."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import text

from command_server.reactions import reactions
from command_server.settings import OrderSettings, Settings, SubscriptionSettings
from commerce.command.v1 import command_service_pb2 as commands
from commerce.event.v1.event_pb2 import Event
from tandem.feed.archive import Archive
from tandem.reactions.reaction import Reaction
from tandem.reactions.running import Reactions
from tandem.reactions.settings import ReactionSettings, WebhookSettings
from tandem.reactions.standing import Standing
from tandem.runtime.settings import DatabaseSettings

if TYPE_CHECKING:
    # Its fixtures make what is here.
    from tests.integration.command_server.conftest import WriteDatabase

ARCHIVE = Archive(None)
KEEP = timedelta(days=7)
AT_PERIOD_END = commands.CANCELLATION_TIME_AT_PERIOD_END


def wall_clock() -> datetime:
    """The one that tells what is due."""
    return datetime.now(UTC)


def ago(**age: float) -> str:
    stamp = Timestamp()
    stamp.FromDatetime(wall_clock() - timedelta(**age))
    return stamp.ToJsonString()


def of_shop(settings: DatabaseSettings, *, unpaid_days: float = 1e-9, grace_days: float = 0) -> list[Reaction]:
    """With settings by which orders are to be paid at once, and subscriptions renewed in time."""
    return reactions(
        Settings(
            database=settings,
            orders=OrderSettings(unpaid_days=unpaid_days),
            subscriptions=SubscriptionSettings(grace_days=grace_days),
        )
    )


class Reacting:
    """A server's reactions, on a database and an executor, that the test has work when it wants."""

    def __init__(self, database: DatabaseSettings, executor: Any, some: Sequence[Reaction], **settings: Any) -> None:
        clock = settings.pop("clock", wall_clock)
        self.component = Reactions(
            database, executor, some, ReactionSettings(**settings), webhook=WebhookSettings(), archive=ARCHIVE,
            keep=KEEP, clock=clock,
        )  # fmt: skip
        self.by_name = {it.name: it for it in some if it.is_on}

    async def work(self) -> None:
        await asyncio.to_thread(self.component.work)

    def standing(self, name: str) -> Standing:
        return next(it for it in self.component.standings() if it.name == name)


MakeReacting = Callable[..., Reacting]


def what_happened(database: "WriteDatabase", *kinds: str) -> list[tuple[str, str]]:
    """(kind, aggregate) of the events of these kinds, in the feed's order."""
    found = []
    for _, kind, payload in database.events():
        if kind in kinds:
            event = getattr(Event.FromString(payload), kind)
            found.append((kind, getattr(event, next(it.name for it in event.DESCRIPTOR.fields if "_id" in it.name))))
    return found


def ended(database: "WriteDatabase") -> list[tuple[str, str]]:
    return what_happened(database, "subscription_cancelled", "subscription_lapsed")


def cancelled(database: "WriteDatabase") -> list[str]:
    return [it for _, it in what_happened(database, "order_cancelled")]


def value(database: "WriteDatabase", statement: str, **parameters: object) -> Any:
    with database.engine.connect() as connection:
        return connection.execute(text(statement), parameters).scalar_one()


def execute(database: "WriteDatabase", statement: str, **parameters: object) -> None:
    with database.engine.begin() as connection:
        connection.execute(text(statement), parameters)
