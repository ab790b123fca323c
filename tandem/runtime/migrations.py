"""Migrations: a schema has two lines of them, the engine's own and, behind it, the domain's.

Each line is a folder of numbered files, and a table in the schema that says how far a database is:

    the engine's   <package>/migrations of the engine     engine_version
    the domain's   <service>/migrations of the domain     alembic_version

The engine's are run first, so that a domain's may use the engine's tables. Databases of before the lines were two have
one table alone, for both: the engine's line has the same numbers, and begins where that one is. ADR 62.
"""

import time
from pathlib import Path
from typing import NamedTuple
from weakref import WeakSet

from prometheus_client import Histogram
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from tandem.runtime.database import create_database_engine, read_pooled
from tandem.runtime.settings import DatabaseSettings
from tandem.runtime.telemetry import log

# Of a standby, and of a server or a role that was set so.
_IS_READ_ONLY = text("SELECT current_setting('transaction_read_only')::boolean")

CHECK_SECONDS = Histogram(
    "tandem_database_check_seconds",
    "Time that a readiness check took, two or three round trips to the database that has the schema",
    ["schema"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 2.5, 10),
)

_ENGINE_VERSIONS = "engine_version"
_DOMAIN_VERSIONS = "alembic_version"
# Serialises the migrations of one database: two servers that start together must not both create the tables.
_MIGRATION_LOCK = 7_246_001
_MIGRATION_RETRY_SECONDS = 0.1


class Schema(NamedTuple):
    """A PostgreSQL schema. engine: the folder with the engine's own migrations of it; None where it has none."""

    name: str
    engine: Path | None = None


def migrate(settings: DatabaseSettings, scripts: Path, schema: Schema, revision: str = "head") -> str:
    """Brings `schema` to the engine's newest revision and to one of `scripts`, the domain's; returns the domain's
    newest. Safe to run at any time, by several. A line in which the database is further stays as it is.

    Each migration is a transaction, or several where it works in steps (tandem.runtime.backfill). Raises
    sqlalchemy.exc.DBAPIError: the migrations and steps before the one that failed are done, and the next run goes on
    from there.
    """
    engine = create_database_engine(settings, name="tandem-migrate", pool_size=1, durable=True, patient=True)
    try:
        with engine.connect() as connection:
            _wait_for_other_migrations(connection)
            connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{schema.name}"'))
            connection.commit()
            if schema.engine is not None:
                _begin_engines_line(connection, schema.name, schema.engine, scripts)
                _upgrade(connection, schema.name, _ENGINE_VERSIONS, schema.engine, "head")
            _upgrade(connection, schema.name, _DOMAIN_VERSIONS, scripts, revision)
            return newest_revision(scripts)
    finally:
        # The lock ends with the connection.
        engine.dispose()


def _wait_for_other_migrations(connection: Connection) -> None:
    """Waits for a migration that is under way, however long it takes.

    By asking again: whoever waits inside a statement has a snapshot, for which CREATE INDEX CONCURRENTLY of the other
    would wait in its turn.
    """
    while not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": _MIGRATION_LOCK}).scalar_one():
        connection.rollback()
        time.sleep(_MIGRATION_RETRY_SECONDS)
    connection.commit()


def _begin_engines_line(connection: Connection, schema: str, engines: Path, domains: Path) -> None:
    """A database of before the lines were two has what the engine's migrations do up to its one revision, and the
    domain's: it is at the last of each line up to there.
    """
    reached = current_revision(connection, schema, _DOMAIN_VERSIONS)
    if reached is None or current_revision(connection, schema, _ENGINE_VERSIONS) is not None:
        connection.rollback()
        return
    # In one transaction. Who may see that the schema is there may see it of both lines.
    connection.execute(
        text(f"""
            CREATE TABLE IF NOT EXISTS "{schema}".{_ENGINE_VERSIONS}
            (version_num varchar(32) CONSTRAINT {_ENGINE_VERSIONS}_pkc PRIMARY KEY)""")
    )
    of_engine, of_domain = [max(it for it in _revisions(line) if it <= reached) for line in (engines, domains)]
    insert = f'INSERT INTO "{schema}".{_ENGINE_VERSIONS} VALUES (:revision)'  # noqa: S608 - names of ours
    connection.execute(text(insert), {"revision": of_engine})
    if of_domain != reached:
        update = f'UPDATE "{schema}".{_DOMAIN_VERSIONS} SET version_num = :revision'  # noqa: S608 - names of ours
        connection.execute(text(update), {"revision": of_domain})
    readers = connection.execute(_READERS, {"table": f'"{schema}".{_DOMAIN_VERSIONS}'})
    for reader in readers.scalars().all():
        connection.execute(text(f'GRANT SELECT ON "{schema}".{_ENGINE_VERSIONS} TO {reader}'))
    connection.commit()
    log.info("the engine's migrations begin where the one line of before was", schema=schema, revision=of_engine)


_READERS = text("""
SELECT DISTINCT CASE WHEN acl.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee)) END
FROM pg_class AS c, aclexplode(c.relacl) AS acl
WHERE c.oid = CAST(:table AS regclass) AND acl.grantee <> c.relowner AND privilege_type = 'SELECT'""")


def _upgrade(connection: Connection, schema: str, versions: str, scripts: Path, revision: str) -> None:
    """Each migration is a transaction of its own."""
    current = current_revision(connection, schema, versions)
    # Before what follows, which takes seconds on a busy machine: an idle transaction may not be open for so long.
    connection.rollback()
    if current is not None and current > newest_revision(scripts):
        # Of a later release, made so that this one goes on: this is the way back.
        log.info("the database is of a later release, and stays as it is", schema=schema, revision=current)
        return
    # Here alone: its import takes a sixth of a service's start, and a service that serves needs none of it.
    import alembic.command  # noqa: PLC0415
    import alembic.config  # noqa: PLC0415

    config = alembic.config.Config()
    # Where env.py is.
    config.set_main_option("script_location", str(Path(__file__).parent / "alembic").replace("%", "%%"))
    config.set_main_option("version_locations", str(scripts / "versions").replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    config.attributes |= {"connection": connection, "schema": schema, "versions": versions}
    alembic.command.upgrade(config, revision)


def _revisions(scripts: Path) -> list[str]:
    """A migration's file begins with its own revision, 0001 and so on."""
    revisions = sorted(path.name[:4] for path in (scripts / "versions").glob("[0-9]*.py"))
    assert revisions, f"no migrations in {scripts}"
    return revisions


def newest_revision(scripts: Path) -> str:
    """The revision that the program needs."""
    return _revisions(scripts)[-1]


def current_revision(connection: Connection, schema: str, versions: str = _DOMAIN_VERSIONS) -> str | None:
    """The revision that the database has, of the domain's line; None before the first migration."""
    return _current_revisions(connection, schema, [versions])[0]


def _current_revisions(connection: Connection, schema: str, tables: list[str]) -> list[str | None]:
    names = [f'"{schema}".{it}' for it in tables]
    there = connection.execute(_ARE_THERE, {"names": names}).scalar_one()
    parts = [f"(SELECT version_num FROM {name})" if it else "NULL" for name, it in zip(names, there, strict=True)]  # noqa: S608
    return list(connection.execute(text(f"SELECT {', '.join(parts)}")).one())


_ARE_THERE = text("""
SELECT array_agg(to_regclass(name) IS NOT NULL ORDER BY number)
FROM unnest(CAST(:names AS text[])) WITH ORDINALITY AS names (name, number)""")


# Those of which the log says so, once until they are migrated.
_NOT_MIGRATED: WeakSet[Engine] = WeakSet()


def has_revision(engine: Engine, schema: Schema, revision: str, *, writing: bool = False) -> bool:
    """Whether the database answers and its schema is at this revision of the domain's or a later one, and at one of the
    engine's that this engine goes on with: a service is ready then.

    Later ones are for the version after, and made so that this one goes on. Revisions are numbers, 0001 and so on.
    writing: and whether it takes writes. The log says once where it is not migrated.
    """
    needed = {_DOMAIN_VERSIONS: revision}
    if schema.engine is not None:
        needed[_ENGINE_VERSIONS] = newest_revision(schema.engine)
    try:

        def ready(connection: Connection) -> bool:
            if writing and connection.execute(_IS_READ_ONLY).scalar_one():
                # The next connection may lead to another server, which does.
                connection.invalidate()
                return False
            current = _current_revisions(connection, schema.name, list(needed))
            found = all((it or "") >= least for it, least in zip(current, needed.values(), strict=True))
            if found:
                _NOT_MIGRATED.discard(engine)
            elif engine not in _NOT_MIGRATED:
                _NOT_MIGRATED.add(engine)
                log.warning(
                    "not migrated: run `migrate`", schema=schema.name, revisions=current, needed=[*needed.values()]
                )
            return found

        with CHECK_SECONDS.labels(schema.name).time():
            return read_pooled(engine, ready)
    except SQLAlchemyError as error:
        log.debug("the database is not ready", schema=schema.name, error=str(error)[:500])
        return False
