"""An order in Protean, run by an environment that has Protean and nothing of ours: see contenders/protean.py.

`python shop.py URL --threads 16 --seconds 5` places new orders by commands, one a call, and prints JSON. An order is an
aggregate of a root, an address and three lines, as Protean's guides model one; its handler adds it to its repository in
the unit of work that `handle` opens. The event that it raises goes to the outbox in the same transaction, which is how
Protean says that no event is lost.

Its event store, to which commands and events are appended besides, keeps nothing here. The one that it has by default
is for tests: it copies all that it holds for each message. The one for production is Message DB, which PostgreSQL
would have to have: with it there would be two statements more for each order.
"""

import argparse
import itertools
import json
import sys
import threading
import time
import uuid
from datetime import UTC, datetime

from protean import Domain, handle
from protean.adapters.event_store import EVENT_STORE_PROVIDERS
from protean.adapters.event_store.memory import MemoryEventStore
from protean.fields import DateTime, Dict, HasMany, Identifier, Integer, List, String, ValueObject
from protean.utils.globals import current_domain

PRODUCTS = 1000
LINES = 3


class Forgetful(MemoryEventStore):
    _positions = itertools.count()

    def _write(self, *_, **__) -> int:
        return next(self._positions)


EVENT_STORE_PROVIDERS["forgetful"] = f"{__name__}.Forgetful"


def shop(url: str, connections: int) -> Domain:
    domain = Domain(
        name="Shop",
        config={
            "databases": {
                "default": {
                    "provider": "postgresql",
                    "database_uri": url.replace("postgresql://", "postgresql+psycopg://"),
                    "pool_size": connections,
                }
            },
            "event_store": {"provider": "forgetful"},
            "command_processing": "sync",
            "event_processing": "async",
            "enable_outbox": True,
            "server": {"default_subscription_type": "stream"},
        },
    )

    @domain.value_object
    class Address:
        recipient = String(max_length=100, required=True)
        street = String(max_length=100, required=True)
        city = String(max_length=100, required=True)
        postal_code = String(max_length=20, required=True)
        country_code = String(max_length=2, required=True)

    @domain.event(part_of="Order")
    class OrderPlaced:
        order_id = Identifier(required=True)
        customer_id = Identifier(required=True)
        customer_name = String(required=True)
        address = Dict(required=True)
        lines = List(content_type=dict, required=True)
        shipping_fee = Integer(required=True)
        total = Integer(required=True)
        currency = String(max_length=3, required=True)
        placed_at = DateTime(required=True)

    @domain.aggregate
    class Order:
        order_id = Identifier(identifier=True)
        customer_id = Identifier(required=True)
        customer_name = String(max_length=100, required=True)
        address = ValueObject(Address)
        lines = HasMany("OrderLine")
        shipping_fee = Integer(required=True)
        total = Integer(required=True)
        currency = String(max_length=3, required=True)
        placed_at = DateTime(required=True)

    @domain.entity(part_of=Order)
    class OrderLine:
        product_id = Identifier(required=True)
        product_name = String(max_length=100, required=True)
        unit_price = Integer(required=True)
        quantity = Integer(required=True)
        discount_basis_points = Integer(required=True)
        line_total = Integer(required=True)

    @domain.command(part_of=Order)
    class PlaceOrder:
        order_id = Identifier(identifier=True)
        customer_id = Identifier(required=True)
        customer_name = String(max_length=100, required=True)
        address = Dict(required=True)
        lines = List(content_type=dict, required=True)
        currency = String(max_length=3, required=True)

    @domain.command_handler(part_of=Order)
    class OrderHandler:
        @handle(PlaceOrder)
        def place_order(self, command):
            order = Order(
                order_id=command.order_id,
                customer_id=command.customer_id,
                customer_name=command.customer_name,
                address=Address(**command.address),
                lines=[OrderLine(**line) for line in command.lines],
                shipping_fee=0,
                total=sum(line["line_total"] for line in command.lines),
                currency=command.currency,
                placed_at=datetime.now(UTC),
            )
            order.raise_(
                OrderPlaced(
                    order_id=order.order_id,
                    customer_id=order.customer_id,
                    customer_name=order.customer_name,
                    address=command.address,
                    lines=command.lines,
                    shipping_fee=order.shipping_fee,
                    total=order.total,
                    currency=order.currency,
                    placed_at=order.placed_at,
                )
            )
            current_domain.repository_for(Order).add(order)

    domain.PlaceOrder = PlaceOrder
    domain.init(traverse=False)
    return domain


def command(domain: Domain, number: int):
    """Order `number`: what Tandem's order of three lines holds."""
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
    return domain.PlaceOrder(
        order_id=str(uuid.uuid4()),
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
        currency="USD",
    )


def place(domain: Domain, threads: int, seconds: float) -> dict:
    """Closed loop: each thread gives its next command as soon as the one before was handled."""
    start = threading.Barrier(threads + 1)
    measured_from, until = 0.0, 0.0
    placed = [0] * threads
    latencies = [[] for _ in range(threads)]
    failures = []

    def buy(buyer: int) -> None:
        start.wait()
        number = buyer
        try:
            with domain.domain_context():
                while (began := time.perf_counter()) < until:
                    domain.process(command(domain, number), asynchronous=False)
                    placed[buyer] += 1
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
    taken = sorted(it for each in latencies for it in each)
    done = {"operations": len(taken), "seconds": elapsed, "cpu_seconds": cpu, "latencies": taken}
    return {**done, "placed": sum(placed)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="of an empty database")
    parser.add_argument("--threads", type=int, default=16, help="that place orders at once")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long is measured, after a second of warming up")
    arguments = parser.parse_args()
    domain = shop(arguments.url, arguments.threads)
    with domain.domain_context():
        domain.setup_database()
        done = place(domain, arguments.threads, arguments.seconds)
    json.dump(done, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
