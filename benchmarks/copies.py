"""Makes a shop larger without placing every order: copies all orders as often as wanted, by SQL.

Each copy is an order of its own: in the write model, with its receipt, with its event at a position of its own at the
feed's end, in the views order_details and order_summary, and in every sum and stock. What is left out is the change
log, which is that of a shop that took longer to grow than the log is kept. To be called while no service runs.
"""

import hashlib
import uuid
from concurrent.futures import ThreadPoolExecutor

import psycopg

from commerce.internal.v1.stored_pb2 import SalesSummaryRow
from commerce.query.v1.views_pb2 import ProductCard

# Made of the order's id, so that who wants to read a copy can tell its id: see copy_id.
_NEW_ID = "CAST(md5(CAST({old} AS text) || ':' || c.number) AS uuid)"
# The id of an order, as it stands in a message, has the same length in each.
_RENAMED = (
    "overlay({value} PLACING convert_to(CAST({new} AS text), 'UTF8')"
    " FROM position(convert_to(CAST({old} AS text), 'UTF8') IN {value}))"
)
_COPIES = "generate_series(1, %(copies)s) AS c (number)"

_WRITE = (
    """
    CREATE TEMP TABLE placed AS
    SELECT row_number() OVER (ORDER BY e.position) AS number, e.position, r.subject_id AS order_id
    FROM tandem_write.event AS e JOIN tandem_write.receipt AS r USING (position) WHERE e.kind = 'order_placed'""",
    "ANALYZE placed",
    f"""
    INSERT INTO tandem_write.customer_order (id, version, customer_id, status, currency, total, placed_at)
    SELECT {_NEW_ID.format(old="o.id")}, o.version, o.customer_id, o.status, o.currency, o.total, o.placed_at
    FROM {_COPIES}, tandem_write.customer_order AS o""",
    f"""
    INSERT INTO tandem_write.order_line
    SELECT {_NEW_ID.format(old="l.order_id")}, l.line_number, l.product_id, l.quantity, l.unit_price,
        l.discount_basis_points, l.line_total
    FROM {_COPIES}, tandem_write.order_line AS l""",
    f"""
    INSERT INTO tandem_write.event (position, kind, recorded_at, payload, subject_id, envelope, mark)
    SELECT h.position + (c.number - 1) * n.count + p.number, e.kind, e.recorded_at,
        {_RENAMED.format(value="e.payload", old="p.order_id", new=_NEW_ID.format(old="p.order_id"))},
        e.subject_id, e.envelope, e.mark
    FROM {_COPIES}, tandem_write.feed_head AS h, (SELECT count(*) FROM placed) AS n,
        placed AS p JOIN tandem_write.event AS e USING (position)""",
    f"""
    INSERT INTO tandem_write.receipt (request_id, fingerprint, subject_id, position, version, created_at)
    SELECT {_NEW_ID.format(old="r.request_id")}, r.fingerprint, {_NEW_ID.format(old="p.order_id")},
        h.position + (c.number - 1) * n.count + p.number, r.version, r.created_at
    FROM {_COPIES}, tandem_write.feed_head AS h, (SELECT count(*) FROM placed) AS n,
        placed AS p JOIN tandem_write.receipt AS r ON r.subject_id = p.order_id""",
    """
    UPDATE tandem_write.product AS p SET stock = p.stock - %(copies)s * s.sold
    FROM (
        SELECT l.product_id, sum(l.quantity) AS sold
        FROM tandem_write.order_line AS l JOIN placed ON placed.order_id = l.order_id GROUP BY l.product_id
    ) AS s WHERE s.product_id = p.id""",
    "UPDATE tandem_write.feed_head SET position = position + %(copies)s * (SELECT count(*) FROM placed)",
)

# Of the last order, and so of its last copy, which ends the feed.
_LAST_MARK = "SELECT mark FROM tandem_write.event WHERE kind = 'order_placed' ORDER BY position DESC LIMIT 1"

# The positions of the copies are those of the write database: head and count are told.
_PLACED = """
    CREATE TEMP TABLE placed AS
    SELECT row_number() OVER (ORDER BY placed_position) AS number, key FROM tandem_read.order_summary"""
_POSITION = "CAST(%(head)s AS bigint) + (c.number - 1) * CAST(%(count)s AS bigint) + p.number"
_READ = (
    _PLACED,
    "ANALYZE placed",
    f"""
    INSERT INTO tandem_read.order_details (key, position, value)
    SELECT {_NEW_ID.format(old="p.key")}, {_POSITION},
        {_RENAMED.format(value="v.value", old="p.key", new=_NEW_ID.format(old="p.key"))}
    FROM {_COPIES}, placed AS p JOIN tandem_read.order_details AS v USING (key)""",
    f"""
    INSERT INTO tandem_read.order_summary (key, position, customer_id, placed_at, placed_position, value)
    SELECT {_NEW_ID.format(old="p.key")}, {_POSITION}, v.customer_id, v.placed_at, {_POSITION},
        {_RENAMED.format(value="v.value", old="p.key", new=_NEW_ID.format(old="p.key"))}
    FROM {_COPIES}, placed AS p JOIN tandem_read.order_summary AS v USING (key)""",
    "UPDATE tandem_read.projection"
    " SET position = CAST(%(head)s AS bigint) + CAST(%(copies)s AS bigint) * %(count)s, mark = %(mark)s",
)


def copy_id(order_id: str, number: int) -> str:
    """The id of copy `number` of an order, from 1."""
    return str(uuid.UUID(hashlib.md5(f"{order_id}:{number}".encode(), usedforsecurity=False).hexdigest()))


def copy_orders(write_url: str, read_url: str, copies: int) -> None:
    """Adds so many copies of each order. All orders must be as they were placed."""
    with psycopg.connect(write_url) as connection:
        [(head, count)] = connection.execute(
            "SELECT position, (SELECT count(*) FROM tandem_write.customer_order) FROM tandem_write.feed_head"
        ).fetchall()
        [(mark,)] = connection.execute(_LAST_MARK).fetchall()
    arguments = {"copies": copies, "head": head, "count": count, "mark": mark}
    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(_copy_written, write_url, arguments), threads.submit(_copy_views, read_url, arguments)]
        for each in both:
            each.result()
    for url in (write_url, read_url):
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")
            connection.execute("CHECKPOINT")


def _copy_written(url: str, arguments: dict[str, int]) -> None:
    with psycopg.connect(url) as connection:
        # Copies refer to what the originals refer to: no need to look each reference up.
        connection.execute("SET session_replication_role = replica")
        for statement in _WRITE:
            connection.execute(statement, arguments)


def _copy_views(url: str, arguments: dict[str, int]) -> None:
    with psycopg.connect(url) as connection:
        for statement in _READ:
            connection.execute(statement, arguments)
        _multiply_sales(connection, 1 + arguments["copies"])
        _take_from_cards(connection, arguments["copies"])


def _multiply_sales(connection: psycopg.Connection, factor: int) -> None:
    rows = connection.execute("SELECT key, value FROM tandem_read.sales_summary").fetchall()
    changed = []
    for key, value in rows:
        row = SalesSummaryRow.FromString(value)
        for field, number in row.sold.ListFields():
            setattr(row.sold, field.name, factor * number)
        changed.append((row.SerializeToString(deterministic=True), key))
    connection.execute(
        "UPDATE tandem_read.sales_summary SET order_count = order_count * %(factor)s,"
        " unit_count = unit_count * %(factor)s, revenue = revenue * %(factor)s,"
        " shipping_fees = shipping_fees * %(factor)s",
        {"factor": factor},
    )
    with connection.cursor() as cursor:
        cursor.executemany("UPDATE tandem_read.sales_summary SET value = %s WHERE key = %s", changed)


def _take_from_cards(connection: psycopg.Connection, copies: int) -> None:
    rows = connection.execute(
        "SELECT c.key, c.value, CAST(sum(s.unit_count) AS bigint) FROM tandem_read.product_card AS c"
        " JOIN tandem_read.sales_summary AS s ON s.product_id = c.key GROUP BY c.key"
    ).fetchall()
    changed = []
    for key, value, sold_by_all in rows:
        card = ProductCard.FromString(value)
        # The sales are multiplied already: of that, what the copies sold.
        card.available -= sold_by_all // (1 + copies) * copies
        changed.append((card.available, card.SerializeToString(deterministic=True), key))
    with connection.cursor() as cursor:
        cursor.executemany("UPDATE tandem_read.product_card SET available = %s, value = %s WHERE key = %s", changed)
