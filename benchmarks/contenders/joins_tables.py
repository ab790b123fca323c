"""The normalised tables that `joins` reads, and how they get the data that Tandem has."""

import json
from collections.abc import Iterator

import psycopg
from psycopg import sql
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Computed,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    Uuid,
    create_engine,
)
from sqlalchemy.dialects.postgresql import JSONB, TSVECTOR

from commerce.command.v1.command_service_pb2 import ProductAttributes
from commerce.type.v1.address_pb2 import AddressBook

SCHEMA = "joins"
metadata = MetaData(schema=SCHEMA)

customer = Table(
    "customer",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("name", Text, nullable=False),
)
address = Table(
    "address",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=True),
    Column("customer_id", Uuid, ForeignKey(customer.c.id), nullable=False, index=True),
    Column("street", Text, nullable=False),
    Column("city", Text, nullable=False),
    Column("region", Text, nullable=False),
    Column("postal_code", Text, nullable=False),
    Column("country_code", Text, nullable=False),
)
product = Table(
    "product",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("name", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("category", Text, nullable=False),
    Column("price", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("stock", BigInteger, nullable=False),
    Column("discontinued", Boolean, nullable=False),
    Column("attributes", JSONB, nullable=False),
    Column(
        "document",
        TSVECTOR,
        Computed(
            "setweight(to_tsvector('english', name), 'A') || setweight(to_tsvector('english', category), 'B')"
            " || setweight(jsonb_to_tsvector('english', attributes, '[\"string\"]'), 'C')"
            " || setweight(to_tsvector('english', description), 'D')",
            persisted=True,
        ),
    ),
    Index("product_document", "document", postgresql_using="gin"),
)
customer_order = Table(
    "customer_order",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("customer_id", Uuid, ForeignKey(customer.c.id), nullable=False),
    Column("address_id", BigInteger, ForeignKey(address.c.id), nullable=False),
    Column("status", SmallInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("shipping_fee", BigInteger, nullable=False),
    Column("total", BigInteger, nullable=False),
    Column("placed_at", DateTime(timezone=True), nullable=False),
)
Index(
    "customer_order_recent",
    customer_order.c.customer_id,
    customer_order.c.placed_at.desc(),
    customer_order.c.id.desc(),
)
order_line = Table(
    "order_line",
    metadata,
    Column("order_id", Uuid, ForeignKey(customer_order.c.id), primary_key=True),
    Column("line_number", Integer, primary_key=True),
    Column("product_id", Uuid, ForeignKey(product.c.id), nullable=False, index=True),
    Column("quantity", Integer, nullable=False),
    Column("unit_price", BigInteger, nullable=False),
    Column("discount_basis_points", Integer, nullable=False),
    Column("line_total", BigInteger, nullable=False),
)
payment = Table(
    "payment",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=True),
    Column("order_id", Uuid, ForeignKey(customer_order.c.id), nullable=False, index=True),
    Column("reference", Text, nullable=False),
    Column("paid_at", DateTime(timezone=True), nullable=False),
)

# All that Tandem's scenarios have: placed orders, each to its customer's one address.
_COPIES = (
    """INSERT INTO joins.customer (id, name) SELECT id, name FROM tandem_write.customer""",
    """
    INSERT INTO joins.address (customer_id, street, city, region, postal_code, country_code)
    SELECT * FROM addresses""",
    """
    INSERT INTO joins.product
        (id, version, name, description, category, price, currency, stock, discontinued, attributes)
    SELECT p.id, p.version, p.name, p.description, p.category, p.price, p.currency, p.stock, p.discontinued, a.value
    FROM tandem_write.product AS p JOIN attributes AS a ON a.product_id = p.id""",
    """
    INSERT INTO joins.customer_order
        (id, version, customer_id, address_id, status, currency, shipping_fee, total, placed_at)
    SELECT o.id, o.version, o.customer_id, a.id, o.status, o.currency,
        o.total - (SELECT sum(l.line_total) FROM tandem_write.order_line AS l WHERE l.order_id = o.id),
        o.total, o.placed_at
    FROM tandem_write.customer_order AS o JOIN joins.address AS a ON a.customer_id = o.customer_id""",
    """
    INSERT INTO joins.order_line
    SELECT order_id, line_number, product_id, quantity, unit_price, discount_basis_points, line_total
    FROM tandem_write.order_line""",
)


def fill(url: str) -> None:
    """Makes the tables beside Tandem's write model, in its database, and copies what is there."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(SCHEMA)))
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    try:
        metadata.create_all(engine)
    finally:
        engine.dispose()
    with psycopg.connect(url) as connection:
        connection.execute(
            "CREATE TEMP TABLE addresses (customer_id uuid, street text, city text, region text, postal_code text,"
            " country_code text)"
        )
        connection.execute("CREATE TEMP TABLE attributes (product_id uuid, value jsonb)")
        _copy_in(connection, "addresses", list(_addresses(connection)))
        _copy_in(connection, "attributes", list(_attributes(connection)))
        for statement in _COPIES:
            connection.execute(statement)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")


def _addresses(connection: psycopg.Connection) -> Iterator[tuple[object, ...]]:
    for customer_id, book in connection.execute("SELECT id, addresses FROM tandem_write.customer").fetchall():
        for it in (named.address for named in AddressBook.FromString(book).addresses):
            yield customer_id, it.street, it.city, it.region, it.postal_code, it.country_code


def _attributes(connection: psycopg.Connection) -> Iterator[tuple[object, ...]]:
    for product_id, value in connection.execute("SELECT id, attributes FROM tandem_write.product").fetchall():
        attributes = ProductAttributes.FromString(value).attributes
        yield product_id, json.dumps([[it.name, it.value] for it in attributes])


def _copy_in(connection: psycopg.Connection, table: str, rows: list[tuple[object, ...]]) -> None:
    with (
        connection.cursor() as cursor,
        cursor.copy(sql.SQL("COPY {} FROM STDIN").format(sql.Identifier(table))) as copy,
    ):
        for row in rows:
            copy.write_row(row)
