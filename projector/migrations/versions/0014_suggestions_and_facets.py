"""What suggestions find names by, what searches count attributes by, and how much of a product was sold."""

from alembic import op

from tandem.runtime.backfill import create_index

revision = "0014"
down_revision = "0013"

S = "tandem_read"
# As 0012 has them, but for facets: what a search can see of a row.
BEFORE = "key, category, discontinued, added_position, name_words, category_words, attribute_words, description_words"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    op.execute(f"ALTER TABLE {S}.product_search ADD COLUMN IF NOT EXISTS facets text NOT NULL DEFAULT ''")
    op.execute(f"ALTER TABLE {S}.product_card ADD COLUMN IF NOT EXISTS units_sold bigint NOT NULL DEFAULT 0")
    replace_function(f"{BEFORE}, facets")
    create_index("product_search_name", f"{S}.product_search USING gin (to_tsvector('{S}.search', name_words))")
    create_index("product_search_begins", f'{S}.product_search ("left"(plain_name, 100) text_pattern_ops)')


def replace_function(seen: str) -> None:
    """The function behind the trigger of 0006 for rows that are updated, as 0012 has it. seen: of their columns."""
    op.execute(f"""
        CREATE OR REPLACE FUNCTION {S}.product_search_update() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE
            changed text := TG_TABLE_NAME || CASE TG_TABLE_SCHEMA WHEN '{S}' THEN '' ELSE '@other' END;
        BEGIN
            IF NOT EXISTS (SELECT {seen} FROM after EXCEPT SELECT {seen} FROM before) THEN
                RETURN NULL;
            END IF;
            UPDATE {S}.projection SET content = gen_random_uuid() WHERE view = changed
              AND span >= (SELECT span FROM {S}.projection WHERE view = changed ORDER BY span DESC LIMIT 1);
            RETURN NULL;
        END $$""")  # noqa: S608 - names of ours


def downgrade() -> None:
    replace_function(BEFORE)
    op.execute(f"DROP INDEX {S}.product_search_name, {S}.product_search_begins")
    op.execute(f"ALTER TABLE {S}.product_search DROP COLUMN facets")
    op.execute(f"ALTER TABLE {S}.product_card DROP COLUMN units_sold")
