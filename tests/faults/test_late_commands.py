"""G3: what a request_id was told stays true, whichever server wakes late with the same command in its socket."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import psycopg
import pytest

from commerce.command.v1 import command_service_pb2 as commands
from commerce.command.v1.command_service_pb2_grpc import CommandServiceStub
from tandem.testing.stack import pause, resume
from tests.support.builders import add_product, identity, place_order, register_customer
from tests.support.proxy import CuttingProxy
from tests.support.stack import Stack

LATE = 8
"""The server that wakes must not do any of so many."""


async def test_a_command_that_was_refused_elsewhere_is_not_done_by_a_server_that_was_paused(
    new_stack: Callable[..., Stack],
) -> None:
    stack = new_stack()
    paused, other = stack.new_command_server(), stack.command_server
    paused.start()
    orders = [place_order(number) for number in range(1, LATE + 1)]
    proxy = CuttingProxy(("127.0.0.1", paused.port))
    async with (
        grpc.aio.insecure_channel(other.address) as to_other,
        grpc.aio.insecure_channel(f"127.0.0.1:{proxy.port}") as to_paused,
    ):
        stub: Any = CommandServiceStub(to_other)
        through_proxy: Any = CommandServiceStub(to_paused)
        await through_proxy.RegisterCustomer(register_customer(1))
        await stub.AddProduct(add_product(1, stock=0))

        pause(paused)
        sent = asyncio.gather(*(through_proxy.PlaceOrder(it, timeout=20) for it in orders), return_exceptions=True)
        await asyncio.to_thread(proxy.wait_for, orders[-1].order_id.encode())
        # Their connection breaks without a word to the server: no call is cancelled.
        proxy.cut_clients()
        assert {it.code() for it in await sent} == {grpc.StatusCode.UNAVAILABLE}  # type: ignore[union-attr]

        refused = [await _refusal(stub, it) for it in orders]
        await stub.AdjustStock(commands.AdjustStockRequest(product_id=identity("product", 1), delta=100))
        resume(paused)
    # What lay in its socket came before this.
    async with grpc.aio.insecure_channel(paused.address) as channel:
        back: Any = CommandServiceStub(channel)
        await back.AddProduct(add_product(2))
    proxy.close()
    with psycopg.connect(stack.write_url) as connection:
        kinds = [kind for (kind,) in connection.execute("SELECT kind FROM tandem_write.event ORDER BY position")]
    assert kinds == ["customer_registered", "product_added", "stock_adjusted", "product_added"]
    async with grpc.aio.insecure_channel(other.address) as channel:
        stub = CommandServiceStub(channel)
        assert [await _refusal(stub, it) for it in orders] == refused


async def _refusal(stub: Any, order: commands.PlaceOrderRequest) -> tuple[str, object]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.PlaceOrder(order)
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    return caught.value.details() or "", dict(caught.value.trailing_metadata() or ()).get("grpc-status-details-bin")
