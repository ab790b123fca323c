"""The read database: what the engine keeps in it, and how a view's table is made. The views are the domain's.

A view's row holds its message, serialised with deterministic=True, beside the columns that reads select and sort by:
the hot path moves these bytes and never parses them.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Index,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
    func,
)
from sqlalchemy.dialects.postgresql import JSONB

SCHEMA = "tandem_read"
CHANNEL = "tandem_projection"
"""The NOTIFY channel of the read database: one Announcement after every batch, and every second."""

metadata = MetaData(schema=SCHEMA)

projection = Table(
    "projection",
    metadata,
    Column("view", Text, primary_key=True),
    Column("feed_epoch", Uuid, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("cache_epochs", JSONB, nullable=True),
    Column("content", Uuid, nullable=True),
    Column("mark", BigInteger, nullable=False, server_default="0"),
    Column("generation", BigInteger, nullable=False, server_default="0"),
    Column("problem", Text, nullable=True),
    Column("error", Text, nullable=True),
)
"""One row a view: the last position that its rows include, in the same transaction as the rows.

content: a random name for what the rows of a view say, where the domain keeps one. Whatever changes that, in whatever
way, gives it another: two states with the same name are the same, in all replicas and histories. It is NULL where it is
not known, and of the other views.

mark: of the event at the position, which no other history of the feed has there; 0 where it is not known.

generation: random, another one each time that the view is made anew: rows at the same position may be others.

problem: why the view cannot go on, as a reason of errors, and error in words; NULL while it can.

cache_epochs: [[node, epoch], …] as a projector that stopped cleanly left it, in the order of the nodes; NULL while one
runs or after one died, and then nobody may trust what is in the cache.
"""

change = Table(
    "change",
    metadata,
    Column("position", BigInteger, nullable=False),
    Column("view", Text, nullable=False),
    Column("key", Uuid, nullable=False),
    Column("changed_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    PrimaryKeyConstraint("view", "position", "key"),
    Index("change_changed_at", "changed_at"),
)
"""The change log: which key changed at which position, of the views that can be watched. Purged after a while."""


def view_table(name: str, *columns: Column[object]) -> Table:
    """A view's table: each row's key, the position of the last event in it, what reads select by, and the message."""
    return Table(
        name,
        metadata,
        Column("key", Uuid, primary_key=True),
        Column("position", BigInteger, nullable=False),
        *columns,
        Column("value", LargeBinary, nullable=False),
    )


def written_columns(table: Table) -> list[Column[Any]]:
    """What a projector writes of a view: all columns but those that PostgreSQL generates."""
    return [column for column in table.columns if column.computed is None]
