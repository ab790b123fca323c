"""The triggers of `projection.content` serve both generations of a view."""

from alembic import op

revision = "0012"
down_revision = "0010"

S = "tandem_read"
# By view, as 0006 and 0010 have them: what a search can see of its rows.
SEEN = {
    "product_search": "key, category, discontinued, added_position,"
    " name_words, category_words, attribute_words, description_words",
    "search_word": "key, word",
}
UNCHANGED = {
    "INSERT": "NOT EXISTS (SELECT FROM after)",
    "UPDATE": "NOT EXISTS (SELECT {seen} FROM after EXCEPT SELECT {seen} FROM before)",
    "DELETE": "NOT EXISTS (SELECT FROM before)",
    "TRUNCATE": "false",
}


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    # The functions behind the triggers of 0006, for whichever generation of the view the table is.
    replace_functions(f"TG_TABLE_NAME || CASE TG_TABLE_SCHEMA WHEN '{S}' THEN '' ELSE '@other' END")


def replace_functions(changed: str) -> None:
    """changed: SQL of the name that the view of the changed rows has in `projection`."""
    for name, seen in SEEN.items():
        for kind, unchanged in UNCHANGED.items():
            op.execute(f"""
                CREATE OR REPLACE FUNCTION {S}.{name}_{kind.lower()}() RETURNS trigger LANGUAGE plpgsql AS $$
                DECLARE
                    changed text := {changed};
                BEGIN
                    IF {unchanged.format(seen=seen)} THEN
                        RETURN NULL;
                    END IF;
                    UPDATE {S}.projection SET content = gen_random_uuid() WHERE view = changed
                      AND span >= (SELECT span FROM {S}.projection WHERE view = changed ORDER BY span DESC LIMIT 1);
                    RETURN NULL;
                END $$""")  # noqa: S608 - names of ours


def downgrade() -> None:
    # TG_TABLE_NAME is the view's own name: the tables of other generations go.
    replace_functions("TG_TABLE_NAME")
