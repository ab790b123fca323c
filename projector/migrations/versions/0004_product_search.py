"""The views product_search and search_word, and what searches filter product_card by.

Needs the extensions pg_trgm, unaccent and fuzzystrmatch. They are part of PostgreSQL's contrib modules, and the
database's owner may create them.
"""

from uuid import UUID

from alembic import op
from sqlalchemy import Connection, text

from commerce.query.v1.views_pb2 import ProductCard
from tandem.runtime.backfill import backfill

revision = "0004"
down_revision = "0003"

S = "tandem_read"
# Cards that are filled, and locked, together.
BATCH = 1_000
EXTENSIONS = ("pg_trgm", "unaccent", "fuzzystrmatch")
WORD_TOKENS = "asciiword, word, numword, asciihword, hword, numhword, hword_asciipart, hword_part, hword_numpart"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    op.execute(f"ALTER TABLE {S}.product_card ADD COLUMN IF NOT EXISTS price bigint NOT NULL DEFAULT 0")
    op.execute(f"ALTER TABLE {S}.product_card ADD COLUMN IF NOT EXISTS currency_code text NOT NULL DEFAULT ''")
    op.execute(f"ALTER TABLE {S}.product_card ADD COLUMN IF NOT EXISTS available bigint NOT NULL DEFAULT 0")
    backfill("0004 product_card", fill_cards)
    for extension in EXTENSIONS:
        op.execute(f"CREATE EXTENSION IF NOT EXISTS {extension} SCHEMA {S}")
    connection = op.get_bind()
    home = schema_of(connection, "unaccent")
    trigrams = schema_of(connection, "pg_trgm")
    # Without accents and in lower case. PostgreSQL calls unaccent() STABLE, for its dictionary could be changed.
    op.execute(f"""
        CREATE FUNCTION {S}.plain(text) RETURNS text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
        RETURN {home}.unaccent('{home}.unaccent'::regdictionary, lower($1))""")
    for configuration, dictionary in (("search", "simple"), ("search_stem", "english_stem")):
        op.execute(f"CREATE TEXT SEARCH CONFIGURATION {S}.{configuration} (COPY = pg_catalog.simple)")
        op.execute(f"""
            ALTER TEXT SEARCH CONFIGURATION {S}.{configuration}
            ALTER MAPPING FOR {WORD_TOKENS} WITH {home}.unaccent, {dictionary}""")
    op.execute(f"""
        CREATE TABLE {S}.product_search (
            key uuid PRIMARY KEY,
            position bigint NOT NULL,
            category text NOT NULL,
            discontinued boolean NOT NULL,
            added_position bigint NOT NULL,
            name_words text NOT NULL,
            category_words text NOT NULL,
            attribute_words text NOT NULL,
            description_words text NOT NULL,
            value bytea NOT NULL,
            document tsvector GENERATED ALWAYS AS (
                {weighed("name", "A")} || {weighed("category", "B")}
                || {weighed("attribute", "C")} || {weighed("description", "D")}
            ) STORED,
            plain_name text GENERATED ALWAYS AS ({S}.plain(name_words)) STORED
        )""")
    op.execute(f"CREATE INDEX product_search_document ON {S}.product_search USING gin (document)")
    op.execute(f"CREATE INDEX product_search_newest ON {S}.product_search (added_position DESC)")
    op.execute(f"""
        CREATE TABLE {S}.search_word (
            key uuid PRIMARY KEY,
            position bigint NOT NULL,
            word text NOT NULL,
            value bytea NOT NULL,
            plain_word text GENERATED ALWAYS AS ({S}.plain(word)) STORED
        )""")
    op.execute(f"CREATE INDEX search_word_similar ON {S}.search_word USING gin (plain_word {trigrams}.gin_trgm_ops)")


def weighed(column: str, weight: str) -> str:
    words = " || ".join(f"to_tsvector('{S}.{it}', {column}_words)" for it in ("search", "search_stem"))
    return f"setweight({words}, '{weight}')"


def schema_of(connection: Connection, extension: str) -> str:
    """Where an extension is: in our schema, unless somebody created it elsewhere before."""
    schema: str = connection.execute(
        text("SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = :name"),
        {"name": extension},
    ).scalar_one()
    if schema not in (S, "public"):
        # PostgreSQL says it, so that it is shown as every other reason of a migration that fails.
        problem = f"the extension {extension} is in the schema {schema}; it must be in {S} or in public"
        quoted = problem.replace("'", "''")
        connection.execute(text(f"DO $$ BEGIN RAISE EXCEPTION USING MESSAGE = '{quoted}'; END $$"))
    return schema


def fill_cards(connection: Connection, after: str) -> str | None:
    """What searches filter the next cards by."""
    rows = connection.execute(
        text(f"""
            SELECT key, value FROM {S}.product_card
            WHERE key > CAST(:after AS uuid) ORDER BY key LIMIT {BATCH} FOR UPDATE"""),  # noqa: S608
        {"after": after or str(UUID(int=0))},
    ).all()
    if not rows:
        return None
    cards = [ProductCard.FromString(row.value) for row in rows]
    connection.execute(
        text(f"""
            UPDATE {S}.product_card AS c
            SET price = v.price, currency_code = v.currency_code, available = v.available
            FROM unnest(CAST(:keys AS uuid[]), CAST(:prices AS bigint[]), CAST(:currencies AS text[]),
              CAST(:availables AS bigint[])) AS v (key, price, currency_code, available)
            WHERE c.key = v.key"""),  # noqa: S608
        {
            "keys": [row.key for row in rows],
            "prices": [it.price.minor_units for it in cards],
            "currencies": [it.price.currency_code for it in cards],
            "availables": [it.available for it in cards],
        },
    )
    return str(rows[-1].key)


def downgrade() -> None:
    op.execute(f"DROP TABLE {S}.search_word, {S}.product_search")
    op.execute(f"ALTER TABLE {S}.product_card DROP COLUMN price, DROP COLUMN currency_code, DROP COLUMN available")
    op.execute(f"DROP TEXT SEARCH CONFIGURATION {S}.search, {S}.search_stem")
    op.execute(f"DROP FUNCTION {S}.plain(text)")
