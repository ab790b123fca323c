"""A view's other generation: the same view once more, in a table of its own, made from the feed beside the one that is
served. Made anew without being seen, compared, and then served in its place. ADR 39.

The table has the name of the one that is served, in the schema `tandem_read_other`; so its indexes have the names of
the others too, and an exchange gives both tables the other's schema. Whoever reads names the table that is served:
PostgreSQL looks the names of a prepared statement up again once a table that it names was changed.

A view has one other generation at most. The owner of the view owns it too, and does all that is done with it; what
operators ask for stands in the table `generation`:

    REQUESTED ──▶ FILLING     its table is made, and it is at position 0
    FILLING ──▶ COMPARING     it is where the served one is; from here on one statement moves both
    COMPARING ──▶ READY       the comparison is done. Without one where the served one cannot go on
    READY ──▶ KEPT            it is served now, and the one before is the other generation, and is followed on
    KEPT ──▶ READY            switched back

It is dropped from each of these. Whatever takes more than one statement is one transaction, so each state is one to go
on from for whoever takes the view over. In COMPARING it is compared again from the beginning.
"""

import json
import uuid
from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from psycopg import sql

from tandem.feed.token import new_mark
from tandem.projection.statements import Deposed
from tandem.read_store.tables import OTHER_SCHEMA, SCHEMA, generation, operation, other_of, parked, projection
from tandem.runtime.database import Driver

# Where a table is for a moment, while two are exchanged.
_PASSAGE = "tandem_read_passage"


class State(StrEnum):
    """See this module's docstring."""

    REQUESTED = "requested"
    FILLING = "filling"
    COMPARING = "comparing"
    READY = "ready"
    KEPT = "kept"


# Of what a comparison counts.
_DIFFERENCES = ("changed", "missing", "added")


class Asked(StrEnum):
    """What an operator wants done with it, as soon as it can be."""

    SWITCH = "switch"
    DROP = "drop"


class Generation(NamedTuple):
    """A view's other generation, as the table has it. differences: by kind, none before it was compared."""

    view: str
    state: State
    asked: Asked | None
    rate: int | None
    error: str | None
    differences: Mapping[str, int]


# What operators ask for, at any projector. driver: in autocommit mode.


def request_rebuild(driver: Driver, view: str, rate: int | None, *, switch: bool) -> bool:
    """False where the view has another generation already. rate: events a second at most.

    switch: it is to be served once it has been compared, whatever the comparison says.
    """
    requested = driver.execute(
        f"INSERT INTO {generation.fullname} (view, state, asked, rate) VALUES (%s, %s, %s, %s)"  # noqa: S608
        " ON CONFLICT (view) DO NOTHING",
        (view, State.REQUESTED, Asked.SWITCH if switch else None, rate),
    )
    return bool(requested.rowcount)


def ask(driver: Driver, view: str, asked: Asked, of: Collection[State] = tuple(State)) -> State | None:
    """The state of a view's other generation, None where there is none. Asked for only in one of the states `of`."""
    found = driver.execute(
        f"WITH it AS (SELECT view, state FROM {generation.fullname} WHERE view = %s), asked AS ("  # noqa: S608
        f"UPDATE {generation.fullname} AS g SET asked = %s, error = NULL FROM it WHERE g.view = it.view"
        " AND it.state = ANY (%s)) SELECT state FROM it",
        (view, asked, list(of)),
    ).fetchone()
    return None if found is None else State(found[0])


def drop_version(driver: Driver, view: str) -> bool:
    """Drops a view of another version than this program has; False where there is none, or a projector follows it."""
    with driver.transaction():
        unowned = f"DELETE FROM {projection.fullname} WHERE view = %s AND owner IS NULL"  # noqa: S608
        if not driver.execute(unowned, (view,)).rowcount:
            return False
        driver.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(SCHEMA, view)))
        _forget_parked(driver, view)
    return True


# What the view's owner does. driver: in autocommit mode. All raise psycopg.Error, and Deposed where it is not ours.


def read_generations(driver: Driver) -> list[Generation]:
    found = driver.execute(
        f"SELECT view, state, asked, rate, error, comparison FROM {generation.fullname} ORDER BY view",  # noqa: S608
        prepare=True,
    ).fetchall()
    return [
        Generation(
            view,
            State(state),
            None if asked is None else Asked(asked),
            rate,
            error,
            {} if comparison is None else {it: comparison[it] for it in _DIFFERENCES},
        )
        for view, state, asked, rate, error, comparison in found
    ]


def begin_filling(driver: Driver, view: str, session: uuid.UUID, epoch: uuid.UUID) -> int:
    """Makes a table as the view's own is, at the beginning of the feed; returns its generation."""
    mark = new_mark()
    names = {"served": f"{SCHEMA}.{view}", "other": f"{OTHER_SCHEMA}.{view}"}
    with driver.transaction():
        driver.execute(
            sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL EXCLUDING INDEXES)").format(
                sql.Identifier(OTHER_SCHEMA, view), sql.Identifier(SCHEMA, view)
            )
        )
        for (statement,) in driver.execute(_MAKE_ALIKE, names).fetchall():
            driver.execute(statement.encode())
        driver.execute(
            f"INSERT INTO {projection.fullname} (view, feed_epoch, position, generation, owner, filled)"  # noqa: S608
            " VALUES (%s, %s, 0, %s, %s, false)",
            (other_of(view), epoch, mark, session),
        )
        set_state(driver, view, State.FILLING)
        driver.execute(f"UPDATE {generation.fullname} SET began_at = now() WHERE view = %s", (view,))  # noqa: S608
    return mark


# What LIKE does not take along, or calls by another name: constraints, indexes, triggers, options, and who may read.
_MAKE_ALIKE = """
WITH it AS (
  SELECT *, %(served)s::text AS served, %(other)s::text AS other FROM pg_class WHERE oid = %(served)s::text::regclass
), made AS (
  SELECT 1 AS step, format('ALTER TABLE %%s ADD CONSTRAINT %%I %%s', it.other, k.conname, pg_get_constraintdef(k.oid))
    AS statement
  FROM it JOIN pg_constraint AS k ON k.conrelid = it.oid AND k.contype IN ('p', 'u', 'x')
  UNION ALL
  SELECT 2, replace(pg_get_indexdef(i.indexrelid), format(' ON %%s ', it.served), format(' ON %%s ', it.other))
  FROM it JOIN pg_index AS i ON i.indrelid = it.oid
  WHERE NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = i.indexrelid AND contype IN ('p', 'u', 'x'))
  UNION ALL
  SELECT 3, replace(pg_get_triggerdef(t.oid), format(' ON %%s ', it.served), format(' ON %%s ', it.other))
  FROM it JOIN pg_trigger AS t ON t.tgrelid = it.oid AND NOT t.tgisinternal
  UNION ALL
  SELECT 4, format('ALTER TABLE %%s SET (%%s)', it.other, array_to_string(reloptions, ', '))
  FROM it WHERE reloptions IS NOT NULL
  UNION ALL
  SELECT 5, format('GRANT %%s ON %%s TO %%s', a.privilege_type, it.other,
    CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END)
  FROM it CROSS JOIN LATERAL aclexplode(it.relacl) AS a WHERE a.grantee <> it.relowner
)
SELECT statement FROM made ORDER BY step
"""


def exchange(driver: Driver, view: str, session: uuid.UUID) -> None:
    """Serves the other generation of a view, and makes the one before the other one. driver: in a transaction.

    Both go on where they are. Whoever reads either finds its position and its rows together: until the commit nobody
    gets a lock of the tables, and a statement takes its snapshot behind its locks.
    """
    owned = driver.execute(
        f"SELECT FROM {projection.fullname} WHERE view = ANY (%s) AND owner = %s FOR UPDATE",
        ([view, other_of(view)], session),
    )
    if owned.rowcount != 2:
        raise Deposed(f"{view}: taken over by another projector")
    # What is parked comes first: there may be many, and readers wait for nothing until the tables are locked.
    for before, after in _exchanged(view):
        driver.execute(f"UPDATE {parked.fullname} SET view = %s WHERE view = %s", (after, before))  # noqa: S608
        driver.execute(
            f"UPDATE {operation.fullname} SET view = %s WHERE view = %s AND done_at IS NULL",  # noqa: S608
            (after, before),
        )
    for here, there in ((SCHEMA, _PASSAGE), (OTHER_SCHEMA, SCHEMA), (_PASSAGE, OTHER_SCHEMA)):
        driver.execute(
            sql.SQL("ALTER TABLE {} SET SCHEMA {}").format(sql.Identifier(here, view), sql.Identifier(there))
        )
    for before, after in _exchanged(view):
        driver.execute(
            f"UPDATE {projection.fullname} SET view = %s, cache_epochs = NULL WHERE view = %s",  # noqa: S608
            (after, before),
        )
    driver.execute(f"UPDATE {projection.fullname} SET filled = true WHERE view = %s", (view,))  # noqa: S608
    driver.execute(
        f"UPDATE {generation.fullname} SET state = CASE state WHEN %s THEN %s ELSE %s END,"  # noqa: S608
        " asked = NULL, error = NULL WHERE view = %s",
        (State.READY, State.KEPT, State.READY, view),
    )


def _exchanged(view: str) -> tuple[tuple[str, str], ...]:
    """The steps by which two names are exchanged, each from one to another."""
    other, passage = other_of(view), f"{view}@passage"
    return (view, passage), (other, view), (passage, other)


def drop(driver: Driver, view: str, session: uuid.UUID) -> None:
    """What is asked for before it is made is dropped too."""
    with driver.transaction():
        owner = driver.execute(
            f"DELETE FROM {projection.fullname} WHERE view = %s RETURNING owner",  # noqa: S608
            (other_of(view),),
        ).fetchone()
        if owner is not None and owner[0] != session:
            raise Deposed(f"{other_of(view)}: taken over by another projector")
        driver.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(OTHER_SCHEMA, view)))
        _forget_parked(driver, other_of(view))
        driver.execute(f"DELETE FROM {generation.fullname} WHERE view = %s", (view,))  # noqa: S608


def _forget_parked(driver: Driver, view: str) -> None:
    """What waits for rows that are gone, and what is asked of them."""
    driver.execute(f"DELETE FROM {parked.fullname} WHERE view = %s", (view,))  # noqa: S608
    driver.execute(
        f"UPDATE {operation.fullname} SET done_at = now() WHERE view = %s AND done_at IS NULL",  # noqa: S608
        (view,),
    )


def set_state(driver: Driver, view: str, state: State, comparison: dict[str, Any] | None = None) -> None:
    """comparison: with the one that is served; the one from before goes."""
    driver.execute(
        f"UPDATE {generation.fullname} SET state = %s, comparison = %s::jsonb, error = NULL WHERE view = %s",  # noqa: S608
        (state, None if comparison is None else json.dumps(comparison), view),
    )


def say_error(driver: Driver, view: str, error: str) -> None:
    """Why what is asked for is not done yet."""
    driver.execute(f"UPDATE {generation.fullname} SET error = %s WHERE view = %s", (error, view))  # noqa: S608
