"""The write model. The engine's migrations make what the engine has: receipts, the feed, keys."""

from alembic import op

revision = "0001"
down_revision = None

S = "tandem_write"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    op.execute(f"""
        CREATE TABLE {S}.customer (
            id uuid PRIMARY KEY,
            version bigint NOT NULL,
            name text NOT NULL,
            email text NOT NULL,
            phone text NOT NULL,
            address bytea
        )""")
    op.execute(f"COMMENT ON COLUMN {S}.customer.address IS 'commerce.type.v1.Address'")
    op.execute(f"""
        CREATE TABLE {S}.product (
            id uuid PRIMARY KEY,
            version bigint NOT NULL,
            name text NOT NULL,
            description text NOT NULL,
            category text NOT NULL,
            price bigint NOT NULL CHECK (price >= 0),
            currency text NOT NULL,
            stock bigint NOT NULL CHECK (stock >= 0),
            discontinued boolean NOT NULL
        )""")
    op.execute(f"COMMENT ON COLUMN {S}.product.price IS 'minor units'")
    op.execute(f"""
        CREATE TABLE {S}.customer_order (
            id uuid PRIMARY KEY,
            version bigint NOT NULL,
            customer_id uuid NOT NULL REFERENCES {S}.customer (id),
            status smallint NOT NULL,
            currency text NOT NULL,
            total bigint NOT NULL
        )""")
    op.execute(f"CREATE INDEX ix_tandem_write_customer_order_customer_id ON {S}.customer_order (customer_id)")
    op.execute(f"COMMENT ON COLUMN {S}.customer_order.status IS 'commerce.type.v1.OrderStatus'")
    op.execute(f"COMMENT ON COLUMN {S}.customer_order.total IS 'minor units'")
    op.execute(f"""
        CREATE TABLE {S}.order_line (
            order_id uuid NOT NULL REFERENCES {S}.customer_order (id),
            line_number integer NOT NULL,
            product_id uuid NOT NULL REFERENCES {S}.product (id),
            quantity integer NOT NULL CHECK (quantity > 0),
            unit_price bigint NOT NULL,
            discount_basis_points integer NOT NULL,
            line_total bigint NOT NULL,
            PRIMARY KEY (order_id, line_number)
        )""")
    op.execute(f"COMMENT ON COLUMN {S}.order_line.unit_price IS 'minor units'")
    op.execute(f"COMMENT ON COLUMN {S}.order_line.line_total IS 'minor units'")


def downgrade() -> None:
    op.execute(f"DROP TABLE {S}.order_line, {S}.customer_order, {S}.product, {S}.customer")
