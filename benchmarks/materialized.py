"""How late a reader sees what was written: CQRS lite, and a materialized view of PostgreSQL over the same orders.

    python -m benchmarks.materialized

Both are in one database. The materialized view has a row for each order, with its customer, its address and its lines,
as GetOrderDetails answers. It is as old as its last REFRESH, which computes it whole. Refreshed again and again, with
nothing in between, a row that is read shows what was written up to two refreshes ago.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil
import psycopg

from benchmarks.contenders import joins_tables
from benchmarks.lag import probe
from benchmarks.plan import progress
from benchmarks.processor import cpu_seconds
from benchmarks.world import World, open_world

SIZES = (1_000, 10_000, 100_000)
"""Orders."""
ADDED = 100
"""Orders that come between two refreshes."""
ROUNDS = 3
SECONDS = 3.0

_VIEW = """
CREATE MATERIALIZED VIEW joins.order_page AS
SELECT o.id, o.version, o.status, o.currency, o.shipping_fee, o.total, o.placed_at, o.customer_id,
    c.name AS customer_name, a.street, a.city, a.region, a.postal_code, a.country_code, l.lines
FROM joins.customer_order AS o
JOIN joins.customer AS c ON c.id = o.customer_id JOIN joins.address AS a ON a.id = o.address_id
CROSS JOIN LATERAL (
    SELECT json_agg(json_build_array(l.line_number, l.product_id, p.name, l.quantity, l.unit_price, l.line_total)
        ORDER BY l.line_number)::text AS lines
    FROM joins.order_line AS l JOIN joins.product AS p ON p.id = l.product_id WHERE l.order_id = o.id
) AS l
"""
# Copies of orders that are there.
_ADD = f"""
WITH source AS MATERIALIZED (
    SELECT gen_random_uuid() AS new_id, * FROM joins.customer_order LIMIT {ADDED}
), placed AS (
    INSERT INTO joins.customer_order
    SELECT new_id, version, customer_id, address_id, status, currency, shipping_fee, total, now() FROM source
)
INSERT INTO joins.order_line
SELECT s.new_id, line_number, product_id, quantity, unit_price, discount_basis_points, line_total
FROM joins.order_line AS l JOIN source AS s ON s.id = l.order_id
"""


def main() -> int:
    say = progress()
    print("orders     REFRESH, its processor time   CONCURRENTLY   CQRS lite, commit to visible: p50, p99; an order")
    for orders in SIZES:
        with (
            tempfile.TemporaryDirectory(prefix="tandem-bench-") as folder,
            open_world(Path(folder), orders, say, lite=True) as world,
        ):
            print(f"{orders:7,}  {refreshed(world)}   {followed(world)}", flush=True)
    return 0


def refreshed(world: World) -> str:
    """Medians, in seconds, of both ways to refresh after some orders were added."""
    joins_tables.fill(world.stack.write_url)
    said = []
    with psycopg.connect(world.stack.write_url, autocommit=True) as connection:
        # A key to an order may be inserted in the statement that inserts the order.
        connection.execute("ALTER TABLE joins.order_line ALTER CONSTRAINT order_line_order_id_fkey DEFERRABLE")
        connection.execute(_VIEW)
        connection.execute("CREATE UNIQUE INDEX ON joins.order_page (id)")
        connection.execute("VACUUM ANALYZE joins.order_page")
        for how in ("", "CONCURRENTLY "):
            taken, spent = [], []
            for _ in range(ROUNDS):
                connection.execute(_ADD)
                before, began = cpu_seconds(world.stores), time.perf_counter()
                connection.execute(f"REFRESH MATERIALIZED VIEW {how}joins.order_page")
                taken.append(time.perf_counter() - began)
                spent.append(cpu_seconds(world.stores) - before)
            said.append(f"{statistics.median(taken):8.3f} s {statistics.median(spent):8.3f} s")
    return "    ".join(said)


def followed(world: World) -> str:
    """What one order after the other takes to be read, and all that Tandem spends on each: commands and reads too."""
    services = (world.stack.command_server, world.stack.projector, world.stack.query_server)
    processes = [*world.stores, *(psutil.Process(it.pid) for it in services)]
    before = cpu_seconds(processes)
    lags = probe(world, SECONDS)
    spent = (cpu_seconds(processes) - before) / len(lags.visible)
    sample = lags.to_sample()
    return f"{1e3 * sample.p50:20.2f} ms {1e3 * sample.p99:8.2f} ms {1e3 * spent:14.2f} ms"


if __name__ == "__main__":
    sys.exit(main())
