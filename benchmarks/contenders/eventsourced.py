"""PyPI's `eventsourcing` on the same PostgreSQL, in a process of its own: it saves orders, or reads them all again.

`python -m benchmarks.contenders.eventsourced save URL --threads 16 --seconds 5` saves new aggregates that hold what
OrderPlaced holds, one a call, as a service does that gets an order a request. `fill URL --events 10000` stores as many
at once, for `read URL`: every notification from the first, decoded to its domain event, and nothing done with it. Each
prints JSON.

The persistence module, the JSON transcoder and the pool are the library's; the pool has a connection a thread.
Everything in an order is a string, a number, a list or a dict, which it writes without a transcoding of ours: its
cheapest way. Its stored procedure is off as it is by default; --functions turns it on. That spares it round trips and
the lock on the table, and with the lock goes the promise that who reads the notifications never passes one that is
committed later.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import psycopg
from eventsourcing.application import Application, LocalNotificationLog
from eventsourcing.domain import Aggregate, event
from eventsourcing.projection import ApplicationSubscription
from eventsourcing.system import NotificationLogReader

PRODUCTS = 1000
LINES = 3
DEFAULT_SECTION_SIZE = LocalNotificationLog.DEFAULT_SECTION_SIZE
# It stores that many at once when it only fills the database.
_FILL = 500


@dataclass(frozen=True)
class Done:
    """What a process of this module has done. cpu_seconds: its own. latencies: of each save, ascending, in seconds."""

    operations: int
    seconds: float
    cpu_seconds: float
    latencies: list[float] = field(default_factory=list)


class Order(Aggregate):
    @event("Placed")
    def __init__(  # noqa: PLR0917 - the library's event has what its constructor takes
        self,
        customer_id: str,
        customer_name: str,
        address: dict[str, str],
        lines: list[dict[str, Any]],
        shipping_fee: int,
        total: int,
        currency: str,
        placed_at: str,
    ) -> None:
        self.customer_id = customer_id
        self.customer_name = customer_name
        self.address = address
        self.lines = lines
        self.shipping_fee = shipping_fee
        self.total = total
        self.currency = currency
        self.placed_at = placed_at


class Shop(Application[uuid.UUID]):
    """Its notification log gives sections of 10 unless it is told otherwise."""


def run(action: str, url: str, **options: object) -> Done:
    """Does it in a process of its own; options: as on the command line, such as section_size=10, functions=True.

    Raises CalledProcessError with what it said when that did not end well.
    """
    command = [sys.executable, "-m", __spec__.name, action, url]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        command += [flag] if value is True else [] if value is False else [flag, str(value)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Done(**json.loads(result.stdout))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.contenders.eventsourced", description=__doc__)
    parser.add_argument("action", choices=("save", "fill", "read"))
    parser.add_argument("url", help="of an empty database, or for `read` of a filled one")
    parser.add_argument("--threads", type=int, default=16, help="that save at once")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long is saved, after a second of warming up")
    parser.add_argument("--events", type=int, default=10_000, help="how many are filled in, or must be read")
    parser.add_argument(
        "--section-size", type=int, default=0, help="of the notification log; 0: a subscription instead"
    )
    parser.add_argument("--functions", action="store_true", help="use the library's stored procedures")
    arguments = parser.parse_args()
    shop = Shop(env=environment(arguments.url, arguments.threads, functions=arguments.functions))
    try:
        if arguments.action == "save":
            result = save(shop, arguments.url, arguments.threads, arguments.seconds)
        elif arguments.action == "fill":
            result = fill(shop, arguments.url, arguments.events)
        else:
            shop.log_section_size = arguments.section_size
            result = read(shop, arguments.events, arguments.section_size)
    finally:
        shop.close()
    sys.stdout.write(json.dumps(asdict(result)) + "\n")
    return 0


def environment(url: str, connections: int, *, functions: bool) -> dict[str, str]:
    parts = urlsplit(url)
    return {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": parts.path.lstrip("/"),
        "POSTGRES_HOST": parts.hostname or "",
        "POSTGRES_PORT": str(parts.port),
        "POSTGRES_USER": parts.username or "",
        # The server trusts who reaches its port; the library wants a word nevertheless.
        "POSTGRES_PASSWORD": parts.password or "none",
        "POSTGRES_POOL_SIZE": str(connections),
        "POSTGRES_ENABLE_DB_FUNCTIONS": "yes" if functions else "no",
    }


def an_order(number: int) -> Order:
    """Order `number`: what Tandem's OrderPlaced of three lines holds."""
    lines = [
        {
            "product_id": str(uuid.UUID(int=product)),
            "product_name": f"Product {product}",
            "unit_price": 1999,
            "quantity": 1,
            "discount_basis_points": 0,
            "line_total": 1999,
        }
        for product in ((number * LINES + step) % PRODUCTS for step in range(LINES))
    ]
    name = f"Customer {number % PRODUCTS}"
    return Order(
        customer_id=str(uuid.UUID(int=number % PRODUCTS)),
        customer_name=name,
        address={
            "recipient": name,
            "street": "Obere Str. 57",
            "city": "Berlin",
            "postal_code": "12209",
            "country_code": "DE",
        },
        lines=lines,
        shipping_fee=0,
        total=1999 * LINES,
        currency="USD",
        placed_at=datetime.now(UTC).isoformat(),
    )


def save(shop: Shop, url: str, threads: int, seconds: float) -> Done:
    """Closed loop: each thread saves its next order as soon as the one before is stored."""
    start = threading.Barrier(threads + 1)
    measured_from, until = 0.0, 0.0
    saved = [0] * threads
    latencies: list[list[float]] = [[] for _ in range(threads)]
    failures: list[BaseException] = []

    def buy(buyer: int) -> None:
        start.wait()
        number = buyer
        try:
            while (began := time.perf_counter()) < until:
                shop.save(an_order(number))
                saved[buyer] += 1
                if began >= measured_from:
                    latencies[buyer].append(time.perf_counter() - began)
                number += threads
        except BaseException as error:
            failures.append(error)
            raise

    buyers = [threading.Thread(target=buy, args=(buyer,)) for buyer in range(threads)]
    for it in buyers:
        it.start()
    measured_from = time.perf_counter() + 1.0
    until = measured_from + seconds
    start.wait()
    time.sleep(max(0.0, measured_from - time.perf_counter()))
    cpu = time.process_time()
    for it in buyers:
        it.join()
    elapsed, cpu = time.perf_counter() - measured_from, time.process_time() - cpu
    if failures:
        raise failures[0]
    check(url, sum(saved))
    taken = sorted(it for each in latencies for it in each)
    return Done(len(taken), elapsed, cpu, taken)


def fill(shop: Shop, url: str, events: int) -> Done:
    started, cpu = time.perf_counter(), time.process_time()
    for first in range(0, events, _FILL):
        shop.save(*map(an_order, range(first, min(first + _FILL, events))))
    elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
    check(url, events)
    return Done(events, elapsed, cpu)


def read(shop: Shop, events: int, section_size: int) -> Done:
    """In sections of the notification log, or as the library feeds its own projections."""
    count = 0
    started, cpu = time.perf_counter(), time.process_time()
    if section_size:
        reader = NotificationLogReader(shop.notification_log, section_size)
        for section in reader.select(start=1):
            count += sum(isinstance(shop.mapper.to_domain_event(it), Aggregate.Created) for it in section)
    else:
        with ApplicationSubscription(shop) as subscription:
            for found, _ in subscription:
                count += isinstance(found, Aggregate.Created)
                if count == events:
                    break
    elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
    assert count == events, f"{count} orders were read of {events}"
    return Done(count, elapsed, cpu)


def check(url: str, expected: int) -> None:
    """What was saved is there. AssertionError otherwise."""
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM shop_events").fetchone()
    assert row == (expected,), f"{row} events are stored, {expected} orders were saved"


if __name__ == "__main__":
    sys.exit(main())
