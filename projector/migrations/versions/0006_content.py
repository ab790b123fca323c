"""What keeps projection.content, triggers: another one whenever the text that searches look at becomes another.

Triggers, so that it holds whoever changes the rows: a projector of the version before, a reset, a repair by hand.
"""

from alembic import op

revision = "0006"
down_revision = "0005"

S = "tandem_read"
# What a search can see of the rows. What is generated of them changes with them.
SEEN = {
    "product_search": "key, category, discontinued, added_position,"
    " name_words, category_words, attribute_words, description_words",
    "search_word": "key, word",
}
# By kind of statement: the tables of what it did, and when it did nothing that can be seen.
STATEMENTS = {
    "INSERT": ("REFERENCING NEW TABLE AS after", "NOT EXISTS (SELECT FROM after)"),
    "UPDATE": (
        "REFERENCING OLD TABLE AS before NEW TABLE AS after",
        "NOT EXISTS (SELECT {seen} FROM after EXCEPT SELECT {seen} FROM before)",
    ),
    "DELETE": ("REFERENCING OLD TABLE AS before", "NOT EXISTS (SELECT FROM before)"),
    "TRUNCATE": ("", "false"),
}


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    for view, seen in SEEN.items():
        for kind, (tables, unchanged) in STATEMENTS.items():
            name = f"{view}_{kind.lower()}"
            op.execute(f"""
                CREATE FUNCTION {S}.{name}() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN
                    IF {unchanged.format(seen=seen)} THEN
                        RETURN NULL;
                    END IF;
                    UPDATE {S}.projection SET content = gen_random_uuid() WHERE view = '{view}';
                    RETURN NULL;
                END $$""")  # noqa: S608 - names of ours
            op.execute(f"""
                CREATE TRIGGER content_{kind.lower()} AFTER {kind} ON {S}.{view} {tables}
                FOR EACH STATEMENT EXECUTE FUNCTION {S}.{name}()""")
        op.execute(f"UPDATE {S}.projection SET content = gen_random_uuid() WHERE view = '{view}'")  # noqa: S608


def downgrade() -> None:
    for view in SEEN:
        for kind in STATEMENTS:
            op.execute(f"DROP TRIGGER content_{kind.lower()} ON {S}.{view}")
            op.execute(f"DROP FUNCTION {S}.{view}_{kind.lower()}()")
