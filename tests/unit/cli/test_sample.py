from threading import Lock

import grpc
import grpc_testing
import pytest

from commerce.command.v1 import command_service_pb2 as commands
from commerce.command.v1.command_service_pb2_grpc import CommandServiceStub
from shop.sample import identity
from tandem.cli.child import StackError
from tandem.cli.sample import Stage, send_sample
from tests.support.fake_channel import Answer, FakeService, fake_channel

SERVICE = commands.DESCRIPTOR.services_by_name["CommandService"]
ADD, PLACE = SERVICE.methods_by_name["AddProduct"], SERVICE.methods_by_name["PlaceOrder"]


def add(number: int) -> commands.AddProductRequest:
    return commands.AddProductRequest(product_id=identity("product", number))


def place(number: int) -> commands.PlaceOrderRequest:
    return commands.PlaceOrderRequest(order_id=identity("order", number))


class Shop:
    """A command service on a fake channel that writes down what it is asked."""

    def __init__(self, channel: grpc_testing.Channel, adds: int, places: int) -> None:
        self.seen: list[str] = []
        self._lock = Lock()
        FakeService(channel, ADD, self._added, adds)
        FakeService(channel, PLACE, self._placed, places)

    def _note(self, what: str) -> None:
        with self._lock:
            self.seen.append(what)

    def _added(self, request: commands.AddProductRequest) -> Answer:
        self._note("AddProduct")
        return commands.AddProductResponse(product_id=request.product_id)

    def _placed(self, request: commands.PlaceOrderRequest) -> Answer:
        self._note("PlaceOrder")
        return commands.PlaceOrderResponse(order_id=request.order_id)


def test_a_stage_begins_when_the_one_before_is_done() -> None:
    channel = fake_channel([SERVICE])
    shop = Shop(channel, adds=5, places=7)
    stages = [
        Stage("products", tuple(map(add, range(5)))),
        Stage("orders", tuple(map(place, range(7)))),
    ]
    done: list[int] = []
    send_sample(CommandServiceStub(channel), stages, done.append)
    assert shop.seen == ["AddProduct"] * 5 + ["PlaceOrder"] * 7
    assert sum(done) == 12


def test_a_call_that_fails_in_passing_is_sent_again_as_it_was() -> None:
    channel = fake_channel([SERVICE])
    answers: list[Answer] = [
        (grpc.StatusCode.UNAVAILABLE, "the write database is away"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "overloaded"),
        commands.AddProductResponse(),
    ]
    service = FakeService(channel, ADD, lambda _: answers.pop(0), calls=3)
    send_sample(CommandServiceStub(channel), [Stage("products", (add(1),))])
    assert service.requests == [add(1)] * 3


def test_a_refused_command_ends_the_load_with_its_name_and_reason() -> None:
    channel = fake_channel([SERVICE])
    FakeService(channel, PLACE, lambda _: (grpc.StatusCode.FAILED_PRECONDITION, "refused: OUT_OF_STOCK"))
    with pytest.raises(StackError, match=r"PlaceOrder failed with FAILED_PRECONDITION: refused: OUT_OF_STOCK"):
        send_sample(CommandServiceStub(channel), [Stage("orders", (place(1),)), Stage("more", (place(2),))])
