"""A migration is written for new tables, and for nothing else. tests/e2e/test_adding_a_feature.py runs the command."""

from typing import Any

import pytest
from sqlalchemy import Column, Index, MetaData, Table, Text, Uuid

from tandem.testing.migrations import NotPlain, migration_of

DESCRIBED = MetaData(schema="reads")
TABLE = Table("rating", DESCRIBED, Column("key", Uuid, primary_key=True), Column("word", Text, nullable=False))
INDEX = Index("rating_word", TABLE.c.word.desc())

WRITTEN = '''"""The table rating."""

from alembic import op

revision = "0014"
down_revision = "0013"

S = "reads"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    op.execute(f"""
        CREATE TABLE {S}.rating (
            key UUID NOT NULL,
            word TEXT NOT NULL,
            PRIMARY KEY (key)
        )""")
    op.execute(f"CREATE INDEX rating_word ON {S}.rating (word DESC)")


def downgrade() -> None:
    op.execute(f"DROP TABLE {S}.rating")
'''


def test_a_table_comes_with_its_indexes() -> None:
    # As alembic has them: tests/integration/runtime/test_new_migrations.py.
    bare = Table("rating", MetaData(schema="reads"), Column("key", Uuid), Column("word", Text))
    found = [("add_table", bare), ("add_index", Index("rating_word", bare.c.word))]
    assert migration_of(found, DESCRIBED, "reads", "0014", "0013") == WRITTEN


def test_what_changes_a_table_that_is_there_is_named_and_not_written() -> None:
    found: list[Any] = [
        ("add_table", TABLE),
        ("add_column", "reads", "order_details", Column("status", Text)),
        ("remove_index", Index("old", Table("other", MetaData(), Column("x", Text)).c.x)),
        [("modify_type", "reads", "order_details", "key", {}, Text(), Uuid())],
    ]
    with pytest.raises(NotPlain) as refused:
        migration_of(found, DESCRIBED, "reads", "0014", "0013")
    assert str(refused.value).splitlines() == [
        "add column: reads order_details status",
        "remove index: other.old",
        "modify type: reads order_details key",
    ]
