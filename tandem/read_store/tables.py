"""The read database: what the engine keeps in it, and how a view's table is made. The views are the domain's.

A view's row holds its message, serialised with deterministic=True, beside the columns that reads select and sort by:
the hot path moves these bytes and never parses them.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Computed,
    DateTime,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
    func,
)
from sqlalchemy.dialects.postgresql import JSONB

from tandem.runtime.migrations import Schema

SCHEMA = "tandem_read"
READ = Schema(SCHEMA, Path(__file__).parent / "migrations")
"""The read database's schema. The engine's migrations make what it keeps there; the domain's, the views' tables."""
OTHER_SCHEMA = "tandem_read_other"
"""Where the tables of views' other generations are, each under the name that the one that is served has."""
CHANNEL = "tandem_projection"
"""The NOTIFY channel of the read database: one Announcement after every batch, and every second."""

metadata = MetaData(schema=SCHEMA)

# What the name of a view's other generation ends with. No table is called so.
_OTHER = "@other"
# The key in `info` of a view's table: what the contract calls the view.
_NOUN = "view"

projection = Table(
    "projection",
    metadata,
    Column("view", Text, primary_key=True),
    Column("feed_epoch", Uuid, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("cache_epochs", JSONB, nullable=True),
    Column("content", Uuid, nullable=True),
    Column("owner", Uuid, nullable=True),
    Column("span", BigInteger, Computed("position >> 6", persisted=True), primary_key=True, autoincrement=False),
    Column("mark", BigInteger, nullable=False, server_default="0"),
    Column("generation", BigInteger, nullable=False, server_default="0"),
    Column("problem", Text, nullable=True),
    Column("error", Text, nullable=True),
    Column("filled", Boolean, nullable=False, server_default="true"),
    Column("parked", Integer, nullable=False, server_default="0"),
    Column("index_name", Text, nullable=True),
    Column("parked_since", BigInteger, nullable=True),
)
"""One row a view, and one for its other generation: the last position that its rows include, in the same transaction
as the rows. And one for each view that a search engine has in an index: how far the index is.

span: of 64 positions, by which `newest` and ALL_NEWEST find the row.

owner: the session of a projector that writes the view, and nobody else does; NULL when it was handed over.

content: a random name for what the rows of a view say, where the domain keeps one. Whatever changes that, in whatever
way, gives it another: two states with the same name are the same, in all replicas and histories. It is NULL where it is
not known, and of the other views.

mark: of the event at the position, which no other history of the feed has there; 0 where it is not known.

generation: random, another one each time that the view is made anew: rows at the same position may be others.

problem: why the view cannot go on, as a reason of errors, and error in words; NULL while it can.

filled: whether the view has been at the feed's end once; before that nobody is to read it.
parked: how many keys of the view are parked, see the table `parked`.

index_name: what the engine calls the index; NULL for views. Of an index, `content` and `parked` are what its view had
where the index is, and parked_since the first event that a row of it lacked there.

cache_epochs: [[node, "epoch.mark"], …] as a projector that stopped cleanly left it, in the order of the nodes; NULL
while one runs or after one died, and then nobody may trust what is in the cache. An epoch is good as long as its mark
is in the cache: whoever goes on with it takes the mark away.
"""

projector = Table(
    "projector",
    metadata,
    Column("session", Uuid, primary_key=True),
    Column("lock", Integer, nullable=False),
    Column("renewed_at", DateTime(timezone=True), nullable=False),
    Column("follows", Boolean, nullable=False),
)
"""One row a session of a projector, those on standby too.

lock: an advisory lock that the session holds while it is there. renewed_at: when the projector said last that it is at
work. follows: whether it could read the feed then.
"""


def newest(view: str) -> str:
    """SQL of a view's row of `projection`, to stand in FROM, for whoever asks all the time. view: as SQL has it.

    Each batch leaves a version of the row behind, and while somebody holds a snapshot, a dump for hours, none of them
    is taken away. The newest is in the view's last span, and passes over the versions of that span alone. Within a span
    an update changes no index, so that it stays on its page (HOT) and what nobody sees is taken away at once.
    PostgreSQL has no statistics of both columns: with them it would read all versions, and sort them. ADR 35.
    """
    return f"(SELECT * FROM {projection.fullname} WHERE view = {view} ORDER BY span DESC LIMIT 1)"  # noqa: S608


ALL_NEWEST = f"""(
    WITH RECURSIVE newest AS (
        (SELECT * FROM {projection.fullname} ORDER BY view DESC, span DESC LIMIT 1)
        UNION ALL
        SELECT before.* FROM newest CROSS JOIN LATERAL (
            SELECT * FROM {projection.fullname} WHERE view < newest.view ORDER BY view DESC, span DESC LIMIT 1
        ) AS before
    )
    SELECT * FROM newest
)"""  # noqa: S608
"""As `newest`, of all views: one look-up each."""

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


generation = Table(
    "generation",
    metadata,
    Column("view", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("asked", Text, nullable=True),
    Column("rate", Integer, nullable=True),
    Column("requested_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("began_at", DateTime(timezone=True), nullable=True),
    Column("comparison", JSONB, nullable=True),
    Column("error", Text, nullable=True),
)
"""The other generation of each view that has one: tandem.projection.generations tells its life.

asked: what an operator wants done with it, switch or drop; NULL where nothing is. rate: events a second at most, while
it is filled. comparison: with the one that is served, as tandem.projection.comparison has it. error: why what is asked
is not done yet.
"""


parked = Table(
    "parked",
    metadata,
    Column("view", Text, nullable=False),
    Column("key", Uuid, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("error", Text, nullable=True),
    Column("scope", Text, nullable=True),
    Column("parked_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    PrimaryKeyConstraint("view", "key", "position"),
)
Index("parked_first", parked.c.view, parked.c.position, postgresql_where=parked.c.error.is_not(None))
"""Events that a view has passed and that some row of it has not taken in: ADR 38. The feed has the events themselves.

error: why the row could not take the event in, of the first of a key; NULL of those that wait behind it. scope: of the
first of a key, what lists select the row by, as Projection.scope has it; NULL where it may be in any list.
"""

operation = Table(
    "operation",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("view", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("key", Uuid, nullable=True),
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("asked_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("done_at", DateTime(timezone=True), nullable=True),
    Column("outcome", JSONB, nullable=False, server_default="{}"),
)
Index("operation_asked", operation.c.view, operation.c.asked_at, postgresql_where=operation.c.done_at.is_(None))
"""What operators asked of views, and what became of it. Rows stay: it is their log.

The projector that owns a view does what is asked of it, whichever projector was asked. key: None for all that are
parked. outcome: what was done of it so far, as tandem.projection.redriving has it.
"""


def parked_in(views: Mapping[str, str], condition: str = "true") -> str:
    """SQL of a subquery, to stand in FROM behind rows of `projection`: how many keys of their views are parked
    (`keys`), and the position of the first event that one of them lacks (`since`), NULL where none is.

    views: by the names of these rows. condition: on the columns of `parked`, for keys whose scope is known. The table
    is looked at only where some view has parked keys.
    """
    some = " OR ".join(f"{name}.parked > 0" for name in views)
    names = ", ".join(f"'{view}'" for view in views.values())
    return f"""(
        SELECT count(*) AS keys, min(position) AS since FROM {parked.fullname}
        WHERE ({some}) AND view IN ({names}) AND error IS NOT NULL AND (scope IS NULL OR {condition})
    )"""  # noqa: S608


def parked_of_keys(view: str, keys: str) -> str:
    """SQL of a subquery, behind `p` in FROM: those of some keys that are parked, as the arrays `keys` and `since`.

    keys: an array, as SQL has it.
    """
    return f"""(
        SELECT array_agg(key) AS keys, array_agg(position) AS since FROM {parked.fullname}
        WHERE p.parked > 0 AND view = '{view}' AND error IS NOT NULL AND key = ANY({keys})
    )"""  # noqa: S608 - only names of ours are put in


def view_table(name: str, *columns: Column[object], version: int = 1) -> Table:
    """A view's table: each row's key, the position of the last event in it, what reads select by, and the message.

    version: of the view. Each has a table of its own, and so is a view of its own, with a position, entries in the
    cache and announcements: programs of two releases, which make the rows differently, run beside each other.
    """
    return Table(
        name if version == 1 else f"{name}_v{version}",
        metadata,
        Column("key", Uuid, primary_key=True),
        Column("position", BigInteger, nullable=False),
        *columns,
        Column("value", LargeBinary, nullable=False),
        info={_NOUN: name},
    )


def name_in_this_program(noun: str) -> str:
    """The name of a view: of the version that this program has. noun: as the contract calls it."""
    names = [table.name for table in metadata.tables.values() if table.info.get(_NOUN) == noun]
    return names[0] if names else noun


def noun_of(table: Table) -> str:
    """What a view is called, in any version of it."""
    return str(table.info[_NOUN])


@cache
def other_table(table: Table) -> Table:
    """The table of a view's other generation."""
    return table.to_metadata(MetaData(), schema=OTHER_SCHEMA)


def view_of_table(table: Table) -> str:
    """The name under which a view stands in `projection`: its table's, or that of its other generation."""
    return str(table.name) if table.schema == SCHEMA else other_of(table.name)


def other_of(view: str) -> str:
    """The name of a view's other generation, in `projection`, metrics and logs."""
    return view + _OTHER


def is_other(view: str) -> bool:
    return view.endswith(_OTHER)


def served_of(view: str) -> str:
    """The name of the view that a name is of: its own, or that of its other generation."""
    return view.removesuffix(_OTHER)


def written_columns(table: Table) -> list[Column[Any]]:
    """What a projector writes of a view: all columns but those that PostgreSQL generates."""
    return [column for column in table.columns if column.computed is None]
