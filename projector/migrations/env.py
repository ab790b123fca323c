"""alembic's entry: runs the migrations on the connection of tandem.runtime.database.migrate."""

from alembic import context

from tandem.runtime.database import run_migrations

run_migrations(context.config.attributes["connection"], context.config.attributes["schema"])
