"""The read database. projector's migrations make these tables; this is their one description.

A view's row holds its message, serialised with deterministic=True, beside the columns that reads select and sort by:
the hot path moves these bytes and never parses them.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Computed,
    Date,
    DateTime,
    Index,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TSVECTOR

SCHEMA = "tandem_read"
CHANNEL = "tandem_projection"
"""The NOTIFY channel of the read database: one Announcement after every batch, and every second."""

REVISION = "0006"
"""The migration that a reader of these tables needs: projector's newest, said here because readers cannot see it."""

metadata = MetaData(schema=SCHEMA)

projection = Table(
    "projection",
    metadata,
    Column("view", Text, primary_key=True),
    Column("feed_epoch", Uuid, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("cache_epochs", JSONB, nullable=True),
    Column("content", Uuid, nullable=True),
)
"""One row a view: the last position that its rows include, in the same transaction as the rows.

content: a random name for what the rows of product_search or search_word say. Whatever changes that, in whatever way,
gives it another: two states with the same name are the same, in all replicas and histories. It is NULL where it is not
known, and of the other views.

cache_epochs: [[node, epoch], …] as a projector that stopped cleanly left it, in the order of the nodes; NULL while one
runs or after one died, and then nobody may trust what is in the cache.
"""

change = Table(
    "change",
    metadata,
    Column("position", BigInteger, nullable=False),
    Column("view", Text, nullable=False),
    Column("key", Uuid, nullable=False),
    Column("changed_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    PrimaryKeyConstraint("view", "position", "key"),
    Index("change_changed_at", "changed_at"),
)
"""The change log: which key changed at which position, of the views that can be watched. Purged after a while."""


def _view_table(name: str, *columns: Column[object]) -> Table:
    return Table(
        name,
        metadata,
        Column("key", Uuid, primary_key=True),
        Column("position", BigInteger, nullable=False),
        *columns,
        Column("value", LargeBinary, nullable=False),
    )


order_details = _view_table("order_details")
product_card = _view_table(
    "product_card",
    Column("price", BigInteger, nullable=False, server_default=text("0")),
    Column("currency_code", Text, nullable=False, server_default=text("''")),
    Column("available", BigInteger, nullable=False, server_default=text("0")),
)
"""price: in minor units. No index holds what an order changes, so that its rows are updated where they are (HOT)."""
customer_profile = _view_table("customer_profile")
order_summary = _view_table(
    "order_summary",
    Column("customer_id", Uuid, nullable=False),
    Column("placed_at", DateTime(timezone=True), nullable=False),
    Column("placed_position", BigInteger, nullable=False),
)
Index(
    "order_summary_recent",
    order_summary.c.customer_id,
    order_summary.c.placed_at.desc(),
    order_summary.c.placed_position.desc(),
)

subscription_details = _view_table(
    "subscription_details",
    Column("customer_id", Uuid, nullable=False),
    Column("status", SmallInteger, nullable=False),
    Column("started_at", DateTime(timezone=True), nullable=False),
    Column("started_position", BigInteger, nullable=False),
)
for _leading in (("customer_id",), ("status",), ("customer_id", "status")):
    Index(
        f"subscription_details_by_{'_'.join(_leading)}",
        *(subscription_details.c[name] for name in _leading),
        subscription_details.c.started_at.desc(),
        subscription_details.c.started_position.desc(),
    )

sales_summary = _view_table(
    "sales_summary",
    Column("day", Date, nullable=False),
    Column("currency_code", Text, nullable=False),
    Column("product_id", Uuid, nullable=True),
    Column("order_count", BigInteger, nullable=False),
    Column("unit_count", BigInteger, nullable=False),
    Column("revenue", BigInteger, nullable=False),
    Column("shipping_fees", BigInteger, nullable=False),
    Column("cancelled_order_count", BigInteger, nullable=False),
    Column("cancelled_unit_count", BigInteger, nullable=False),
    Column("cancelled_revenue", BigInteger, nullable=False),
    Column("cancelled_shipping_fees", BigInteger, nullable=False),
)
"""Sums over orders: a row a day and currency for all products together (product_id is NULL) and for each product. Money
in minor units.

No index holds what an order changes: today's rows are written with every batch, and stay on their page.
"""
Index(
    "sales_summary_total",
    sales_summary.c.day,
    sales_summary.c.currency_code,
    postgresql_where=sales_summary.c.product_id.is_(None),
)
Index(
    "sales_summary_product",
    sales_summary.c.day,
    sales_summary.c.currency_code,
    sales_summary.c.product_id,
    postgresql_where=sales_summary.c.product_id.is_not(None),
)


def _weighed(column: str, weight: str) -> str:
    """The words as they are and as English stems."""
    words = " || ".join(f"to_tsvector('{SCHEMA}.{it}', {column})" for it in ("search", "search_stem"))
    return f"setweight({words}, '{weight}')"


product_search = _view_table(
    "product_search",
    Column("category", Text, nullable=False),
    Column("discontinued", Boolean, nullable=False),
    Column("added_position", BigInteger, nullable=False),
    Column("name_words", Text, nullable=False),
    Column("category_words", Text, nullable=False),
    Column("attribute_words", Text, nullable=False),
    Column("description_words", Text, nullable=False),
)
product_search.append_column(
    Column(
        "document",
        TSVECTOR,
        Computed(
            " || ".join(
                _weighed(f"{column}_words", weight)
                for column, weight in zip(("name", "category", "attribute", "description"), "ABCD", strict=True)
            ),
            persisted=True,
        ),
    )
)
product_search.append_column(Column("plain_name", Text, Computed(f"{SCHEMA}.plain(name_words)", persisted=True)))
Index("product_search_document", product_search.c.document, postgresql_using="gin")
Index("product_search_newest", product_search.c.added_position.desc())

search_word = _view_table("search_word", Column("word", Text, nullable=False))
search_word.append_column(Column("plain_word", Text, Computed(f"{SCHEMA}.plain(word)", persisted=True)))
Index(
    "search_word_similar",
    search_word.c.plain_word,
    postgresql_using="gin",
    postgresql_ops={"plain_word": "gin_trgm_ops"},
)


def written_columns(table: Table) -> list[Column[Any]]:
    """What a projector writes of a view: all columns but those that PostgreSQL generates."""
    return [column for column in table.columns if column.computed is None]


VIEWS: dict[str, Table] = {
    table.name: table
    for table in (
        order_details,
        order_summary,
        product_card,
        product_search,
        search_word,
        customer_profile,
        subscription_details,
        sales_summary,
    )
}
"""The views by name. A view's name is its table's, everywhere."""

CACHED_VIEWS: frozenset[str] = frozenset({"order_details", "product_card", "customer_profile", "subscription_details"})
"""The views that are read by key and so have entries in memcached. Lists come from an index of the read database."""
