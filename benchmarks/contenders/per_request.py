"""PlaceOrder as a service without group commit does it: grpc.aio, SQLAlchemy's asyncio engine, a transaction a request.

`python -m benchmarks.contenders.per_request URL --port 50070` serves PlaceOrder of Tandem's own contract on Tandem's
own write tables, which must be migrated and hold the shop, until SIGTERM. Each request is what it is in many a Python
service: is its request_id known, lock the products in order of their ids, check the stock, insert order, lines, event
and receipt, commit.

It is meant to be good at that: uvloop, SQLAlchemy Core without sessions and objects, the receipt's insert as the
look-up for a repeated request, lines and stock in one round trip each, an event's position from a sequence, a
connection for every few requests under way. It does less than Tandem: personal data is not sealed, positions may
leave gaps and commit out of order, nobody is notified, and it has no views.
"""

import argparse
import asyncio
import hashlib
import signal
import sys
import uuid
from datetime import UTC, datetime
from typing import Any

import grpc
import uvloop
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import BigInteger, Row, Sequence, bindparam, func, select, update
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.types import Uuid

from command_server.storage.tables import customer, customer_order, order_line, product, receipt
from commerce.command.v1.command_service_pb2 import PlaceOrderRequest, PlaceOrderResponse
from commerce.command.v1.command_service_pb2_grpc import CommandServiceServicer, add_CommandServiceServicer_to_server
from commerce.event.v1.event_pb2 import Event, OrderLine, OrderPlaced, PersonalData
from commerce.type.v1.address_pb2 import Address, AddressBook
from commerce.type.v1.money_pb2 import Money
from commerce.type.v1.order_status_pb2 import OrderStatus
from commerce.type.v1.receipt_pb2 import CommandReceipt
from tandem.feed.table import SCHEMA, event, feed_head

POSITIONS = Sequence("benchmark_position", schema=SCHEMA, data_type=BigInteger)

# `= ANY(array)` is one prepared statement for every number of lines.
_LOCK_PRODUCTS = (
    select(product)
    .where(product.c.id == bindparam("ids", type_=ARRAY(Uuid)).any_())
    .order_by(product.c.id)
    .with_for_update()
)
_TAKE_STOCK = (
    update(product).where(product.c.id == bindparam("b_id")).values(stock=product.c.stock - bindparam("b_quantity"))
)


class PlaceOrders(CommandServiceServicer):
    """The one RPC; all others are UNIMPLEMENTED."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def PlaceOrder(
        self, request: PlaceOrderRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> PlaceOrderResponse:
        try:
            request_id, order_id = uuid.UUID(request.request_id), uuid.UUID(request.order_id)
            customer_id = uuid.UUID(request.customer_id)
            quantities = {uuid.UUID(line.product_id): line.quantity for line in request.lines}
        except ValueError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if not quantities or len(quantities) < len(request.lines) or not all(quantities.values()):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "lines: each product once, at least one of it")
        async with self._engine.connect() as connection:
            position = await _claim(connection, request, request_id, order_id)
            if position is None:
                return await _repeated(connection, request, request_id, context)
            buyer = (await connection.execute(select(customer).where(customer.c.id == customer_id))).one_or_none()
            rows = {it.id: it for it in await connection.execute(_LOCK_PRODUCTS, {"ids": sorted(quantities)})}
            refusal = _refusal(buyer, rows, quantities)
            if buyer is None or refusal:
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, refusal)
            placed = _placed(request, buyer, rows)
            await _take_stock(connection, quantities)
            await _store(connection, placed, position)
            await connection.commit()
        return PlaceOrderResponse(
            order_id=request.order_id, receipt=CommandReceipt(position=position, version=placed.version)
        )


async def _claim(
    connection: AsyncConnection, request: PlaceOrderRequest, request_id: uuid.UUID, order_id: uuid.UUID
) -> int | None:
    """Stores the receipt and returns the event's position; None when the request_id has a receipt.

    It waits for another transaction that stores the same.
    """
    position: int | None = await connection.scalar(
        insert(receipt)
        .values(
            request_id=request_id,
            fingerprint=_fingerprint(request),
            subject_id=order_id,
            position=POSITIONS.next_value(),
            version=1,
        )
        .on_conflict_do_nothing()
        .returning(receipt.c.position)
    )
    return position


async def _repeated(
    connection: AsyncConnection, request: PlaceOrderRequest, request_id: uuid.UUID, context: Any
) -> PlaceOrderResponse:
    """The first answer, for a request that was stored before."""
    found = (await connection.execute(select(receipt).where(receipt.c.request_id == request_id))).one()
    if found.fingerprint != _fingerprint(request):
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "request_id: was used for another command")
    proof = CommandReceipt(position=found.position, version=found.version, replayed=True)
    return PlaceOrderResponse(order_id=str(found.subject_id), receipt=proof)


def _fingerprint(request: PlaceOrderRequest) -> bytes:
    return hashlib.sha256(request.SerializeToString(deterministic=True)).digest()


def _refusal(buyer: "Row[Any] | None", rows: "dict[uuid.UUID, Row[Any]]", quantities: dict[uuid.UUID, int]) -> str:
    """Why the order cannot be placed; empty when it can."""
    if buyer is None or buyer.erased:
        return "the customer is not known"
    for product_id, quantity in quantities.items():
        row = rows.get(product_id)
        if row is None or row.discontinued:
            return f"products/{product_id} is not sold"
        if row.stock < quantity:
            return f"products/{product_id}: {quantity} are ordered, {row.stock} are left"
    if len({row.currency for row in rows.values()}) > 1:
        return "the products are sold in more than one currency"
    return ""


def _placed(request: PlaceOrderRequest, buyer: "Row[Any]", rows: "dict[uuid.UUID, Row[Any]]") -> OrderPlaced:
    """The event, as Tandem's own."""
    lines = []
    for line in request.lines:
        row = rows[uuid.UUID(line.product_id)]
        cost = (row.price * line.quantity * (10_000 - line.discount_basis_points) + 5_000) // 10_000
        lines.append(
            OrderLine(
                product_id=line.product_id,
                product_name=row.name,
                unit_price=Money(minor_units=row.price, currency_code=row.currency),
                quantity=line.quantity,
                discount_basis_points=line.discount_basis_points,
                line_total=Money(minor_units=cost, currency_code=row.currency),
            )
        )
    currency = lines[0].unit_price.currency_code
    fee = request.shipping_fee.minor_units
    total = sum(line.line_total.minor_units for line in lines) + fee
    now = Timestamp()
    now.GetCurrentTime()
    return OrderPlaced(
        order_id=request.order_id,
        version=1,
        customer_id=request.customer_id,
        personal=PersonalData(name=buyer.name, address=_destination(request, buyer)),
        lines=lines,
        shipping_fee=Money(minor_units=fee, currency_code=currency),
        total=Money(minor_units=total, currency_code=currency),
        placed_at=now,
    )


def _destination(request: PlaceOrderRequest, buyer: "Row[Any]") -> Address:
    if request.HasField("shipping_address"):
        return request.shipping_address
    book = AddressBook.FromString(buyer.addresses)
    return next((it.address for it in book.addresses if it.is_default), Address())


async def _take_stock(connection: AsyncConnection, quantities: dict[uuid.UUID, int]) -> None:
    taken = [{"b_id": product_id, "b_quantity": quantities[product_id]} for product_id in sorted(quantities)]
    await connection.execute(_TAKE_STOCK, taken)


async def _store(connection: AsyncConnection, placed: OrderPlaced, position: int) -> None:
    order_id, customer_id = uuid.UUID(placed.order_id), uuid.UUID(placed.customer_id)
    await connection.execute(
        insert(customer_order).values(
            id=order_id,
            version=placed.version,
            customer_id=customer_id,
            status=OrderStatus.ORDER_STATUS_PLACED,
            currency=placed.total.currency_code,
            total=placed.total.minor_units,
            placed_at=placed.placed_at.ToDatetime(tzinfo=UTC),
        )
    )
    await connection.execute(
        insert(order_line),
        [
            {
                "order_id": order_id,
                "line_number": number,
                "product_id": uuid.UUID(line.product_id),
                "quantity": line.quantity,
                "unit_price": line.unit_price.minor_units,
                "discount_basis_points": line.discount_basis_points,
                "line_total": line.line_total.minor_units,
            }
            for number, line in enumerate(placed.lines, start=1)
        ],
    )
    stored = Event(order_placed=placed)
    stored.recorded_at.FromDatetime(datetime.now(UTC))
    await connection.execute(
        insert(event).values(
            position=position,
            kind="order_placed",
            payload=stored.SerializeToString(deterministic=True),
            subject_id=customer_id,
        )
    )


async def serve(url: str, port: int, connections: int) -> None:
    engine = create_async_engine(
        url.replace("postgresql://", "postgresql+psycopg://", 1), pool_size=connections, max_overflow=0
    )
    async with engine.begin() as connection:
        # The shop's own events are at the first positions.
        await connection.run_sync(POSITIONS.create, checkfirst=True)
        head = (await connection.execute(select(feed_head.c.position))).scalar_one()
        await connection.execute(select(func.setval(f"{SCHEMA}.{POSITIONS.name}", head + 1)))
    server = grpc.aio.server()
    add_CommandServiceServicer_to_server(PlaceOrders(engine), server)  # type: ignore[abstract]
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(grace=5)
    await engine.dispose()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.contenders.per_request", description=__doc__)
    parser.add_argument("url", help="of a migrated write database that holds the shop")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--connections", type=int, default=16, help="to the database; requests beyond wait for one")
    arguments = parser.parse_args()
    uvloop.run(serve(arguments.url, arguments.port, arguments.connections))
    return 0


if __name__ == "__main__":
    sys.exit(main())
