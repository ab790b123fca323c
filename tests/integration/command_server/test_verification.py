"""Write tables compared with the feed: nothing differs by itself, and what is changed by hand is named."""

import asyncio
import uuid
from collections.abc import Iterable
from typing import Any

import pytest
from google.protobuf.message import Message

from command_server.app import DOMAIN
from commerce.command.v1 import command_service_pb2 as commands
from tandem.commands import verification
from tandem.commands.verification import WriteVerification
from tandem.feed.archive import Archive
from tandem.feed.verification import EVENT, EXTRA, MISSING, ROW, CannotVerify, Chosen, Difference, Step
from tests.integration.command_server.conftest import Commands, WriteDatabase, submit, submit_all
from tests.support.builders import (
    add_product,
    address,
    identity,
    place_order,
    register_customer,
    revise_product,
    start_subscription,
    usd,
)

SUBJECTS = [it.name for it in DOMAIN.model.aggregates]


def steps(database: WriteDatabase, subject: str, chosen: Chosen = Chosen()) -> list[Step]:  # noqa: B008 - frozen
    return list(
        WriteVerification(DOMAIN, database.settings, Archive(None)).verify(subject, chosen, True, lambda: False)
    )


def differences(database: WriteDatabase, chosen: Chosen = Chosen()) -> list[Difference]:  # noqa: B008
    return [one for it in SUBJECTS for step in steps(database, it, chosen) for one in step.differences]


def found(differences: Iterable[Difference]) -> set[tuple[str, str, str, tuple[str, ...]]]:
    return {(it.subject, str(uuid.UUID(bytes=it.key)), it.kind, it.columns) for it in differences}


def run(database: WriteDatabase, *statements: str) -> None:
    with database.engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def a_shops_life() -> list[Message]:
    """Each kind of command, some of which follow one another."""
    customer, product, order = identity("customer", 1), identity("product", 1), identity("order", 1)
    subscription = identity("subscription", 1)
    return [
        *(register_customer(number) for number in range(1, 4)),
        *(add_product(number) for number in range(1, 4)),
        commands.RenameCustomerRequest(customer_id=customer, name="Another"),
        commands.UpdateAddressRequest(customer_id=customer, address=address(city="Bonn"), address_name="work"),
        commands.UpdateAddressRequest(
            customer_id=customer, address=address(city="Ulm"), address_name="new", make_default=True
        ),
        commands.RemoveAddressRequest(customer_id=customer, address_name="work"),
        revise_product(1, name="Revised"),
        commands.ChangePriceRequest(product_id=product, price=usd(777)),
        commands.AdjustStockRequest(product_id=product, delta=50),
        *(place_order(number, customer=1 + number % 3, lines={1: 2, 2: number}) for number in range(1, 9)),
        commands.PayOrderRequest(order_id=order, payment_reference="p"),
        commands.ShipOrderRequest(order_id=order, carrier="c"),
        commands.DeliverOrderRequest(order_id=order),
        commands.PayOrderRequest(order_id=identity("order", 2)),
        commands.ChangeShippingAddressRequest(order_id=identity("order", 2), address=address(city="Jena")),
        commands.CancelOrderRequest(order_id=identity("order", 3)),
        commands.DiscontinueProductRequest(product_id=identity("product", 3)),
        start_subscription(1),
        commands.ChangeSubscriptionPlanRequest(
            subscription_id=subscription, plan="large", price=usd(5), period_months=2
        ),
        commands.CancelSubscriptionRequest(subscription_id=subscription, when=commands.CANCELLATION_TIME_AT_PERIOD_END),
        commands.ResumeSubscriptionRequest(subscription_id=subscription),
        commands.EraseCustomerRequest(customer_id=identity("customer", 3)),
    ]


async def live(executor: Any) -> None:
    for request in a_shops_life():
        await submit(executor, request)


async def test_nothing_differs_after_every_kind_of_command(database: WriteDatabase, commands_on: Commands) -> None:
    await live(await commands_on.executor())
    assert differences(database) == []
    counted = {it: sum(step.keys for step in steps(database, it)) for it in SUBJECTS}
    assert counted == {"order": 8, "subscription": 1, "customer": 3, "product": 3}
    assert differences(database, Chosen(sample=100)) == []
    key = uuid.UUID(identity("product", 1)).bytes
    assert [it.keys for it in steps(database, "product", Chosen(frozenset({key}))) if it.keys] == [1]


async def test_what_somebody_has_changed_is_named_and_stays(database: WriteDatabase, commands_on: Commands) -> None:
    await live(await commands_on.executor())
    product, order, customer = identity("product", 1), identity("order", 4), identity("customer", 1)
    stray, gone = str(uuid.uuid4()), identity("subscription", 1)
    run(
        database,
        f"UPDATE tandem_write.product SET stock = stock + 1 WHERE id = '{product}'",
        f"UPDATE tandem_write.order_line SET quantity = 9 WHERE order_id = '{order}' AND line_number = 1",
        f"UPDATE tandem_write.customer SET name = 'Eve', version = version + 1 WHERE id = '{customer}'",
        f"UPDATE tandem_write.subject_key SET key = NULL WHERE subject_id = '{identity('customer', 2)}'",
        "INSERT INTO tandem_write.product SELECT"
        f" '{stray}', 1, name, description, category, price, currency, stock, discontinued, attributes"
        " FROM tandem_write.product LIMIT 1",
        f"DELETE FROM tandem_write.subscription WHERE id = '{gone}'",
    )
    expected = {
        ("product", product, ROW, ("stock",)),
        ("product", stray, EXTRA, ()),
        ("order", order, ROW, ("tandem_write.order_line",)),
        ("customer", customer, ROW, ("version", "name")),
        ("customer", identity("customer", 2), ROW, ("name", "addresses", "subject_key")),
        ("subscription", gone, MISSING, ()),
    }
    first = differences(database)
    assert found(first) == expected
    assert not any(it.repaired for it in first)
    assert found(differences(database)) == expected, "they are reported, and never repaired"
    chosen = Chosen(frozenset(uuid.UUID(it).bytes for it in (product, order)))
    assert {it[:2] for it in found(differences(database, chosen))} == {("product", product), ("order", order)}


async def test_an_event_that_does_not_follow_is_named_with_the_row_that_it_is_about(
    database: WriteDatabase, commands_on: Commands
) -> None:
    """The event that made a product is gone; orders of it and of others stand behind it."""
    await live(await commands_on.executor())
    run(
        database,
        "UPDATE tandem_write.event SET kind = 'product_discontinued', payload = (SELECT payload FROM"
        " tandem_write.event WHERE kind = 'product_discontinued') WHERE kind = 'product_added' AND"
        f" position('{identity('product', 2)}'::bytea IN payload) > 0",
    )
    assert {it[:3] for it in found(differences(database))} == {
        ("product", identity("product", 2), EVENT),
        # The other product's end came before its beginning.
        ("product", identity("product", 3), EVENT),
    }


async def test_a_range_with_too_many_is_done_in_parts(
    database: WriteDatabase, commands_on: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "_MOST_STATES", 20)
    monkeypatch.setattr(verification, "_CHUNK", 7)
    monkeypatch.setattr(verification, "_BATCH_EVENTS", 10)
    executor = await commands_on.executor()
    await submit_all(executor, [register_customer(number) for number in range(1, 101)])
    assert sum(it.keys for it in steps(database, "customer")) == 100
    run(database, f"DELETE FROM tandem_write.customer WHERE id = '{identity('customer', 50)}'")
    assert found(differences(database)) == {("customer", identity("customer", 50), MISSING, ())}


async def test_commands_that_go_on_meanwhile_are_no_difference(database: WriteDatabase, commands_on: Commands) -> None:
    executor = await commands_on.executor()
    await submit_all(executor, [*map(register_customer, range(1, 4)), *(add_product(it, stock=10**6) for it in (1, 2))])
    over = asyncio.Event()

    async def buy() -> int:
        number = 0
        while not over.is_set():
            number += 20
            orders = [place_order(it, customer=1 + it % 2, lines={1: 1, 2: 2}) for it in range(number, number + 20)]
            await submit_all(executor, orders)
        await submit(executor, commands.EraseCustomerRequest(customer_id=identity("customer", 1)))
        return number

    buying = asyncio.create_task(buy())
    for _ in range(4):
        assert await asyncio.to_thread(differences, database) == []
    over.set()
    assert await buying > 0
    assert differences(database) == []


async def test_a_feed_without_its_first_events_cannot_be_compared(
    database: WriteDatabase, commands_on: Commands
) -> None:
    await submit(await commands_on.executor(), register_customer(1))
    await submit(await commands_on.executor(), register_customer(2))
    run(database, "DELETE FROM tandem_write.event WHERE position = 1")
    with pytest.raises(CannotVerify, match="events 1 to 1"):
        steps(database, "customer")
