"""alembic's entry: runs the migrations in the transaction that tandem.runtime.database.migrate opened."""

from alembic import context

from tandem.runtime.database import run_migrations

run_migrations(context.config.attributes["connection"], context.config.attributes["schema"])
