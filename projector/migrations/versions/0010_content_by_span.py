"""The triggers of `projection.content` find the view's row by its span, as all who look for it often do."""

from alembic import op

revision = "0010"
down_revision = "0006"

S = "tandem_read"
# As in revision 0006.
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
# From the last span on that the statement sees: who waited for the row's lock may find it in a later one.
BY_SPAN = f" AND span >= (SELECT span FROM {S}.projection WHERE view = '{{view}}' ORDER BY span DESC LIMIT 1)"  # noqa: S608


def upgrade() -> None:
    _replace(BY_SPAN)


def downgrade() -> None:
    _replace("")


def _replace(found_by: str) -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    for view, seen in SEEN.items():
        for kind, unchanged in UNCHANGED.items():
            op.execute(f"""
                CREATE OR REPLACE FUNCTION {S}.{view}_{kind.lower()}() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN
                    IF {unchanged.format(seen=seen)} THEN
                        RETURN NULL;
                    END IF;
                    UPDATE {S}.projection SET content = gen_random_uuid()
                    WHERE view = '{view}'{found_by.format(view=view)};
                    RETURN NULL;
                END $$""")  # noqa: S608 - names of ours
