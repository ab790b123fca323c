"""The write model, receipts and the feed."""

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
    op.execute(f"""
        CREATE TABLE {S}.receipt (
            request_id uuid PRIMARY KEY,
            fingerprint bytea NOT NULL,
            subject_id uuid NOT NULL,
            position bigint NOT NULL,
            version bigint NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now()
        )""")
    op.execute(f"CREATE INDEX receipt_created_at ON {S}.receipt (created_at)")
    op.execute(f"""
        CREATE TABLE {S}.feed_head (
            id smallint PRIMARY KEY CHECK (id = 1),
            epoch uuid NOT NULL,
            position bigint NOT NULL
        )""")
    # Every batch updates this row: room on its page lets each update stay there (HOT) and be pruned at once.
    op.execute(f"ALTER TABLE {S}.feed_head SET (fillfactor = 10)")
    op.execute(f"INSERT INTO {S}.feed_head VALUES (1, gen_random_uuid(), 0)")  # noqa: S608
    op.execute(f"""
        CREATE TABLE {S}.event (
            position bigint NOT NULL PRIMARY KEY,
            kind text NOT NULL,
            recorded_at timestamptz NOT NULL DEFAULT now(),
            payload bytea NOT NULL
        ) PARTITION BY RANGE (position)""")
    op.execute(f"CREATE TABLE {S}.event_0 PARTITION OF {S}.event FOR VALUES FROM (0) TO (10000000)")


def downgrade() -> None:
    op.execute(f"DROP TABLE {S}.event, {S}.feed_head, {S}.receipt, {S}.order_line, {S}.customer_order")
    op.execute(f"DROP TABLE {S}.product, {S}.customer")
