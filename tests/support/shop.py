"""A small shop, and buyers who never give up on a command before they know its outcome."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import grpc

from commerce.command.v1 import command_service_pb2 as commands
from commerce.type.v1.receipt_pb2 import CommandReceipt
from tests.support.builders import add_product, identity, place_order, register_customer

CUSTOMERS = 5
PRODUCTS = 10

# What a mesh would repeat, and the deadline, after which the outcome is not known either.
_REPEATABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)


async def open_shop(stub: Any, *, stock: int = 1_000_000) -> str:
    """Registers CUSTOMERS and adds PRODUCTS; returns a token for all of it."""
    answers = await asyncio.gather(
        *(stub.RegisterCustomer(register_customer(number)) for number in range(1, CUSTOMERS + 1)),
        *(stub.AddProduct(add_product(number, stock=stock)) for number in range(1, PRODUCTS + 1)),
    )
    last = max((it.receipt for it in answers), key=lambda receipt: receipt.position)
    return str(last.consistency_token)


def an_order(number: int) -> commands.PlaceOrderRequest:
    """Order `number`, the same each time, of one to three products."""
    products = {(number * step) % PRODUCTS + 1: step for step in range(1, number % 3 + 2)}
    return place_order(number, customer=number % CUSTOMERS + 1, lines=products)


async def until_answered(call: Any, request: Any, *, seconds: float = 60.0) -> Any:
    """Repeats a call until it is answered; the request has a request_id, so that repeating is harmless."""
    end = asyncio.get_running_loop().time() + seconds
    while True:
        try:
            return await call(request, timeout=5)
        except grpc.aio.AioRpcError as error:
            if error.code() not in _REPEATABLE or asyncio.get_running_loop().time() > end:
                raise
            await asyncio.sleep(0.02)


@dataclass
class Load:
    """Buyers that place `count` orders; `receipts` by order id grows as they are acknowledged.

    cancel_every: every so manyth order is cancelled by its buyer; `cancellations` are the receipts for that.
    """

    count: int
    buyers: int = 32
    cancel_every: int = 0
    receipts: dict[str, CommandReceipt] = field(default_factory=dict)
    cancellations: dict[str, CommandReceipt] = field(default_factory=dict)

    @property
    def last(self) -> CommandReceipt:
        """The receipt of what was done last."""
        return max((*self.receipts.values(), *self.cancellations.values()), key=lambda receipt: receipt.position)

    async def run(self, stub: Any, *, first: int = 1) -> None:
        numbers = iter(range(first, first + self.count))

        async def buy() -> None:
            for number in numbers:
                answer = await until_answered(stub.PlaceOrder, an_order(number))
                self.receipts[answer.order_id] = answer.receipt
                if self.cancel_every and number % self.cancel_every == 0:
                    request_id = identity("cancel", number)
                    request = commands.CancelOrderRequest(request_id=request_id, order_id=answer.order_id)
                    cancelled = await until_answered(stub.CancelOrder, request)
                    self.cancellations[answer.order_id] = cancelled.receipt

        await asyncio.gather(*(buy() for _ in range(self.buyers)))
