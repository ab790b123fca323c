"""The write model's tables, normalised, each aggregate with its version. The feed's tables are in tandem.feed.table.

What the migrations made; a test holds the two together. Checks that rules enforce already stand here once more for what
must never be wrong, whoever writes.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    Uuid,
    func,
    text,
)

from tandem.feed.table import metadata

customer = Table(
    "customer",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("name", Text, nullable=False),
    Column("email", Text, nullable=False),
    Column("phone", Text, nullable=False),
    Column("addresses", LargeBinary, nullable=False, comment="commerce.type.v1.AddressBook"),
    Column("erased", Boolean, nullable=False, server_default=text("false")),
)

product = Table(
    "product",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("name", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("category", Text, nullable=False),
    Column("price", BigInteger, CheckConstraint("price >= 0"), nullable=False, comment="minor units"),
    Column("currency", Text, nullable=False),
    Column("stock", BigInteger, CheckConstraint("stock >= 0"), nullable=False),
    Column("discontinued", Boolean, nullable=False),
    Column(
        "attributes",
        LargeBinary,
        nullable=False,
        server_default=text("''::bytea"),
        comment="commerce.command.v1.ProductAttributes",
    ),
)

customer_order = Table(
    "customer_order",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("customer_id", Uuid, ForeignKey(customer.c.id), nullable=False, index=True),
    Column("status", SmallInteger, nullable=False, comment="commerce.type.v1.OrderStatus"),
    Column("currency", Text, nullable=False),
    Column("total", BigInteger, nullable=False, comment="minor units"),
    Column("placed_at", DateTime(timezone=True), nullable=False),
)

order_line = Table(
    "order_line",
    metadata,
    Column("order_id", Uuid, ForeignKey(customer_order.c.id), primary_key=True),
    Column("line_number", Integer, primary_key=True),
    Column("product_id", Uuid, ForeignKey(product.c.id), nullable=False),
    Column("quantity", Integer, CheckConstraint("quantity > 0"), nullable=False),
    Column("unit_price", BigInteger, nullable=False, comment="minor units"),
    Column("discount_basis_points", Integer, nullable=False),
    Column("line_total", BigInteger, nullable=False, comment="minor units"),
)

subscription = Table(
    "subscription",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("customer_id", Uuid, ForeignKey(customer.c.id), nullable=False),
    Column("status", SmallInteger, nullable=False, comment="commerce.type.v1.SubscriptionStatus"),
    Column("plan", Text, nullable=False),
    Column("price", BigInteger, nullable=False, comment="minor units"),
    Column("currency", Text, nullable=False),
    Column("period_months", Integer, CheckConstraint("period_months > 0"), nullable=False),
    Column("started_at", DateTime(timezone=True), nullable=False),
    Column("period_start", DateTime(timezone=True), nullable=False),
    Column("period_end", DateTime(timezone=True), nullable=False),
    Column("cancellation_reason", Text, nullable=False),
)
Index(
    "subscription_due",
    subscription.c.status,
    subscription.c.period_end,
    # Those that have ended, most of them in time, are not in it.
    postgresql_where=subscription.c.status.in_((1, 2)),
)

receipt = Table(
    "receipt",
    metadata,
    Column("request_id", Uuid, primary_key=True),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("subject_id", Uuid, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Index("receipt_created_at", "created_at"),
)
