"""The shop's views: the tables of the read database that projector's migrations make, described here alone."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Computed,
    Date,
    DateTime,
    Index,
    SmallInteger,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import TSVECTOR

from tandem.read_store.tables import SCHEMA, view_table

REVISION = "0013"
"""The migration that a reader of these tables needs: projector's newest, said here because readers cannot see it."""

order_details = view_table("order_details")
product_card = view_table(
    "product_card",
    Column("price", BigInteger, nullable=False, server_default=text("0")),
    Column("currency_code", Text, nullable=False, server_default=text("''")),
    Column("available", BigInteger, nullable=False, server_default=text("0")),
)
"""price: in minor units. No index holds what an order changes, so that its rows are updated where they are (HOT)."""
customer_profile = view_table("customer_profile")
order_summary = view_table(
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

subscription_details = view_table(
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

sales_summary = view_table(
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
_of_day = (sales_summary.c.day, sales_summary.c.currency_code)
_product = sales_summary.c.product_id
Index("sales_summary_total", *_of_day, postgresql_where=_product.is_(None))
Index("sales_summary_product", *_of_day, _product, postgresql_where=_product.is_not(None))


def _weighed(column: str, weight: str) -> str:
    """The words as they are and as English stems."""
    words = " || ".join(f"to_tsvector('{SCHEMA}.{it}', {column})" for it in ("search", "search_stem"))
    return f"setweight({words}, '{weight}')"


product_search = view_table(
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

search_word = view_table("search_word", Column("word", Text, nullable=False))
search_word.append_column(Column("plain_word", Text, Computed(f"{SCHEMA}.plain(word)", persisted=True)))
Index(
    "search_word_similar",
    search_word.c.plain_word,
    postgresql_using="gin",
    postgresql_ops={"plain_word": "gin_trgm_ops"},
)

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

OWNERS: dict[str, str] = dict.fromkeys(
    ("order_details", "order_summary", "customer_profile", "subscription_details"), "customer_id"
)
"""The field of a view's message that names whose the row is. Rows of other views are nobody's own."""
