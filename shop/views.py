"""The shop's views: the tables of the read database that projector's migrations make.

The contract says which views there are, and their plain columns (proto/commerce/query/v1/views.proto). Here stand their
indexes, and the views and columns that are more than a field of a message.
"""

from pathlib import Path

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Computed,
    Date,
    Index,
    Table,
    Text,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import TSVECTOR

from commerce.query.v1.views_pb2 import DESCRIPTOR
from tandem.read_store.contract import contract_views
from tandem.read_store.tables import SCHEMA, view_table
from tandem.runtime.migrations import newest_revision

REVISION = newest_revision(Path(__file__).parents[1] / "projector" / "migrations")
"""The migration that a reader of these tables needs: projector's newest."""

IN_CONTRACT = contract_views(
    DESCRIPTOR,
    others={
        # price: in minor units. No index holds what an order changes, so that a row is updated where it is (HOT).
        "product_card": [
            Column("price", BigInteger, nullable=False, server_default=text("0")),
            Column("currency_code", Text, nullable=False, server_default=text("''")),
            Column("available", BigInteger, nullable=False, server_default=text("0")),
            Column("units_sold", BigInteger, nullable=False, server_default=text("0")),
        ],
    },
)

TABLES = IN_CONTRACT.tables
"""The tables of the views that the contract says, by what it calls them."""
order_details = TABLES["order_details"]
product_card = TABLES["product_card"]
customer_profile = TABLES["customer_profile"]
order_summary = TABLES["order_summary"]
Index(
    "order_summary_recent",
    order_summary.c.customer_id,
    order_summary.c.placed_at.desc(),
    order_summary.c.placed_position.desc(),
)

subscription_details = TABLES["subscription_details"]
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
    Column("facets", Text, nullable=False, server_default=text("''")),
)
"""facets: the attributes, as `shop.facets` writes them."""
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
NAME_DOCUMENT = f"to_tsvector('{SCHEMA}.search', name_words)"
Index("product_search_name", text(NAME_DOCUMENT), _table=product_search, postgresql_using="gin")
MAX_BEGINNING = 100
"""Letters of a name by whose beginning it is found: an index takes no texts of any length."""
Index(
    "product_search_begins",
    func.left(product_search.c.plain_name, text(str(MAX_BEGINNING))).label("begins"),
    postgresql_ops={"begins": "text_pattern_ops"},
)

search_word = view_table("search_word", Column("word", Text, nullable=False))
search_word.append_column(Column("plain_word", Text, Computed(f"{SCHEMA}.plain(word)", persisted=True)))
Index(
    "search_word_similar",
    search_word.c.plain_word,
    postgresql_using="gin",
    postgresql_ops={"plain_word": "gin_trgm_ops"},
)

VIEWS: dict[str, Table] = {it.name: it for it in (*TABLES.values(), sales_summary, product_search, search_word)}
"""The views by name, which is their table's: those of the contract, and those whose rows hold what nobody is sent."""

CACHED_VIEWS = IN_CONTRACT.cached
OWNERS = IN_CONTRACT.owners
