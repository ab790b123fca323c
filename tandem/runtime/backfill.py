"""What migrations do to tables that are large, while everything runs: in steps, each a short transaction of its own.

To be called in a migration's `upgrade`. What the migration did before is committed then, so that no lock of it is held
through the steps, and what comes after them is a transaction of its own again. A migration that fails on its way runs
again from its beginning: its own statements must pass over what is there already (IF NOT EXISTS), and its backfills go
on from the last step that was done.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from alembic import op
from sqlalchemy import Connection, text

from tandem.runtime.database import driver_under, execute_without_limits
from tandem.runtime.telemetry import log

Step = Callable[[Connection, str], str | None]
"""(connection, how far the steps before came) -> how far this one came, or None when there is nothing more to do.

It begins with an empty text. It works on some thousand rows at most, and takes well below a second: for so long it may
hold locks of rows.
"""

_SECONDS_BETWEEN_LOGS = 5.0


def backfill(name: str, step: Step) -> None:
    """Repeats a step until there is nothing more to do. How far it came is in the schema's table `backfill`.

    name: for ever, with the migration's number: "0005 placed_at". Raises sqlalchemy.exc.DBAPIError; the steps before
    the one that failed are done.
    """
    with _outside_transaction() as (connection, progress):
        connection.execute(
            text(
                f"CREATE TABLE IF NOT EXISTS {progress}"
                " (name text PRIMARY KEY, after text NOT NULL, finished_at timestamptz)"
            )
        )
        connection.execute(
            text(f"INSERT INTO {progress} VALUES (:name, '') ON CONFLICT DO NOTHING"),  # noqa: S608 - a name of ours
            {"name": name},
        )
        log_at = time.monotonic() + _SECONDS_BETWEEN_LOGS
        while (after := _take(connection, progress, name, step)) is not None:
            if time.monotonic() >= log_at:
                log.info("backfill", name=name, after=after)
                log_at = time.monotonic() + _SECONDS_BETWEEN_LOGS


def _take(connection: Connection, progress: str, name: str, step: Step) -> str | None:
    """One step, and how far it came, in one transaction."""
    of_name = {"name": name}
    with driver_under(connection).transaction():
        after, finished = connection.execute(
            text(f"SELECT after, finished_at IS NOT NULL FROM {progress} WHERE name = :name FOR UPDATE"),  # noqa: S608
            of_name,
        ).one()
        reached = None if finished else step(connection, after)
        if reached is not None:
            changed = text(f"UPDATE {progress} SET after = :after WHERE name = :name")  # noqa: S608
            connection.execute(changed, of_name | {"after": reached})
        elif not finished:
            connection.execute(text(f"UPDATE {progress} SET finished_at = now() WHERE name = :name"), of_name)  # noqa: S608
    return reached


def finish(name: str, step: Step) -> None:
    """The steps of a backfill that have come to be done since it ended, in the migration's own transaction.

    For the few rows of the last moment, behind a lock that lets nobody add others.
    """
    progress = _progress_table()
    after: str | None
    after = op.get_bind().execute(text(f"SELECT after FROM {progress} WHERE name = :name"), {"name": name}).scalar_one()  # noqa: S608
    while after is not None:
        after = step(op.get_bind(), after)


def create_index(name: str, on: str) -> None:
    """Makes an index while its table is written to. `on`: what stands behind ON, with the table's schema.

    Waits for the transactions that are under way on the table, and for each snapshot of the database.
    """
    with _outside_transaction() as (connection, progress):
        schema = progress.partition(".")[0]
        # One that was under way when it was interrupted is there, and nobody uses it.
        if connection.execute(_IS_INVALID, {"schema": schema, "name": name}).scalar_one():
            execute_without_limits(connection, f"DROP INDEX CONCURRENTLY {schema}.{name}")
        execute_without_limits(connection, f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {name} ON {on}")


_IS_INVALID = text("""
SELECT EXISTS (
  SELECT FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
  WHERE NOT indisvalid AND relname = :name AND relnamespace = CAST(:schema AS regnamespace)
)""")


def validate_constraint(table: str, name: str) -> None:
    """Reads all rows of a table, which others go on to write to, for a constraint that was added as NOT VALID."""
    with _outside_transaction() as (connection, _):
        execute_without_limits(connection, f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}")


def grant_alike(like: str, table: str, rights: Mapping[str, str]) -> None:
    """Gives rights on a new table to those who have some on another one, so that services go on without a new GRANT.

    rights: on the other table, and which are given for it.
    """
    granted = op.get_bind().execute(_GRANTED, {"like": like})
    for grantee, right in granted:
        if right in rights:
            op.execute(f"GRANT {rights[right]} ON {table} TO {grantee}")


_GRANTED = text("""
SELECT CASE WHEN acl.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee)) END, privilege_type
FROM pg_class AS c, aclexplode(c.relacl) AS acl
WHERE c.oid = CAST(:like AS regclass) AND acl.grantee <> c.relowner""")


@contextmanager
def _outside_transaction() -> Iterator[tuple[Connection, str]]:
    """A connection in autocommit mode, and the name of the table that says how far backfills came."""
    context = op.get_context()
    with context.autocommit_block():
        yield op.get_bind(), _progress_table()


def _progress_table() -> str:
    return f"{op.get_context().version_table_schema}.backfill"
