"""G13: every event says who caused it, in answer to what, and as part of what."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc import aio

from command_server.app import build
from command_server.settings import Settings
from commerce.command.v1 import command_service_pb2 as commands
from commerce.command.v1.command_service_pb2_grpc import CommandServiceStub
from tandem.feed.envelope import IGNORED
from tandem.internal.v1.stored_pb2 import Envelope
from tandem.runtime.errors import InvalidArgument
from tandem.runtime.server import RunningApplication
from tandem.runtime.settings import ServerSettings
from tests.integration.command_server.conftest import Commands, WriteDatabase, submit, submit_all
from tests.support.builders import add_product, identity, place_order, register_customer
from tests.support.issuer import Issuer, bearer, settings_of

if TYPE_CHECKING:
    # The stubs alone know it.
    from commerce.command.v1.command_service_pb2_grpc import CommandServiceAsyncStub

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TOLD = (
    ("tandem-actor", "user-7"),
    ("tandem-causation-id", "event/41"),
    ("tandem-correlation-id", "checkout/7"),
    ("traceparent", TRACE),
)
WRONG = (("tandem-actor", "ada@example.org"), ("traceparent", "none"), ("tandem-correlation-id", "checkout/8"))


def told(request_id: str) -> Envelope:
    return Envelope(
        actor="user-7",
        request_id=request_id,
        causation_id="event/41",
        correlation_id="checkout/7",
        traceparent=TRACE,
    )


def envelopes(database: WriteDatabase) -> list[tuple[str, Envelope | None]]:
    return [(it.kind, it.envelope) for it in database.feed()]


async def test_all_events_of_a_command_have_its_envelope_and_those_of_others_have_theirs(
    commands_on: Commands, database: WriteDatabase
) -> None:
    executor = await commands_on.executor()
    await submit_all(executor, [register_customer(), add_product(stock=1000)])
    await submit_all(executor, [place_order(number) for number in range(1, 151)])
    erase = commands.EraseCustomerRequest(request_id=identity("erase"), customer_id=identity("customer", 1))
    await submit(executor, erase, metadata=TOLD)
    found = envelopes(database)
    assert [kind for kind, _ in found[-3:]] == ["customer_erased", "orders_anonymized", "orders_anonymized"]
    assert [envelope for _, envelope in found[-3:]] == [told(erase.request_id)] * 3
    alone = [identity("register", 1), identity("add", 1), *(identity("place", number) for number in range(1, 151))]
    assert [it for _, it in found[:-3]] == [Envelope(request_id=it, correlation_id=it) for it in alone]


async def test_a_command_without_a_request_id_has_the_one_that_the_server_gave_it(
    commands_on: Commands, database: WriteDatabase
) -> None:
    executor = await commands_on.executor()
    request = add_product()
    request.ClearField("request_id")
    await submit(executor, request)
    [(_, envelope)] = envelopes(database)
    assert envelope is not None
    assert envelope.request_id
    assert envelope.correlation_id == envelope.request_id


async def test_a_repeated_command_keeps_the_envelope_that_was_stored_first(
    commands_on: Commands, database: WriteDatabase
) -> None:
    executor = await commands_on.executor()
    await submit(executor, add_product(), metadata=TOLD)
    again = await submit(executor, add_product(), metadata=(("tandem-actor", "somebody-else"),))
    assert again.replayed
    assert envelopes(database) == [("product_added", told(identity("add", 1)))]


async def test_what_is_told_wrongly_fails_no_command_and_is_counted(
    commands_on: Commands, database: WriteDatabase
) -> None:
    names = ("tandem-actor", "traceparent")
    before = [IGNORED.labels(name)._value.get() for name in names]
    executor = await commands_on.executor()
    await submit(executor, add_product(), metadata=WRONG)
    assert envelopes(database) == [
        ("product_added", Envelope(request_id=identity("add", 1), correlation_id="checkout/8"))
    ]
    assert [IGNORED.labels(name)._value.get() for name in names] == [it + 1 for it in before]


@asynccontextmanager
async def serving(database: WriteDatabase, transport: str, **settings: Any) -> AsyncIterator["CommandServiceAsyncStub"]:
    server = ServerSettings(port=0, transport=transport, **settings)
    running = RunningApplication(build(Settings(database=database.settings, server=server)))
    await running.start()
    try:
        async with aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
            yield CommandServiceStub(channel)
    finally:
        await running.stop()


@pytest.mark.parametrize("transport", ["native", "grpcio"])
async def test_metadata_reaches_the_events_on_both_transports(database: WriteDatabase, transport: str) -> None:
    async with serving(database, transport) as stub:
        response = await stub.AddProduct(add_product(), metadata=TOLD)
        assert (response.product_id, response.receipt.position) == (identity("product", 1), 1)
        await stub.AddProduct(add_product(2), metadata=(*WRONG, *TOLD[1:2] * 2))
    assert envelopes(database) == [
        ("product_added", told(identity("add", 1))),
        ("product_added", Envelope(request_id=identity("add", 2), correlation_id="checkout/8")),
    ]


@pytest.mark.parametrize("transport", ["native", "grpcio"])
async def test_who_was_proved_to_call_is_the_actor(database: WriteDatabase, transport: str, tmp_path: Path) -> None:
    issuer, keys = Issuer(), tmp_path / "keys.json"
    keys.write_text(issuer.keys())
    async with serving(database, transport, **settings_of(keys)) as stub:
        await stub.AddProduct(add_product(), metadata=(*TOLD, *bearer(issuer.token("clerk-9"))))
    [(_, envelope)] = envelopes(database)
    expected = told(identity("add", 1))
    expected.actor = "clerk-9"
    assert envelope == expected


@pytest.mark.parametrize("transport", ["native", "grpcio"])
async def test_a_wrong_request_fails_its_own_call_and_no_other_of_the_batch(
    database: WriteDatabase, transport: str
) -> None:
    async with serving(database, transport) as stub:
        calls = [stub.AddProduct(add_product(number, price=-1 if number == 2 else 100)) for number in (1, 2, 3)]
        assert [await call.code() for call in calls] == [
            grpc.StatusCode.OK,
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.OK,
        ]
    assert len(database.feed()) == 2


async def test_a_request_that_is_wrong_is_told_so_and_the_others_of_its_batch_are_stored(
    commands_on: Commands, database: WriteDatabase
) -> None:
    executor = await commands_on.executor()
    first, second, third = await submit_all(executor, [add_product(1), add_product(2, price=-1), add_product(3)])
    assert isinstance(second, InvalidArgument)
    assert [it.kind for it in database.feed()] == ["product_added"] * 2
    assert not isinstance(first, BaseException)
    assert not isinstance(third, BaseException)
