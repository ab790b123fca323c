"""alembic's entry, for every line of migrations: runs them on the connection of `migrate`, each in a transaction."""

from alembic import context

given = context.config.attributes
context.configure(
    connection=given["connection"],
    version_table=given["versions"],
    version_table_schema=given["schema"],
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
