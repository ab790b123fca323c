"""What an operator asks of the command server: its actions at a shell, ReceiptService and ReactionService."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from command_server.program import ACTIONS
from command_server.reactions import reactions
from command_server.settings import Settings
from commerce.command.v1 import reaction_service_pb2 as reaction_calls
from commerce.command.v1 import receipt_service_pb2 as receipts
from shop.events import EVENTS
from tandem.commands.archiving import ArchivingSettings
from tandem.commands.receipt_service import ReceiptService
from tandem.commands.receipts import Receipt, append_refusals
from tandem.feed.archive import Archive
from tandem.feed.events import FeedEvent
from tandem.reactions.running import Reactions
from tandem.reactions.service import ReactionService
from tandem.reactions.settings import ReactionSettings, WebhookSettings
from tandem.reactions.tasks import insert_tasks, parked_event
from tandem.runtime.actions import ActionRefused
from tandem.runtime.call import LocalCall, Method
from tandem.runtime.errors import InvalidArgument, NotFound
from tandem.runtime.worker import Worker
from tests.integration.command_server.conftest import WriteDatabase
from tests.support.builders import identity


def test_archiving_names_the_setting_that_is_missing_and_does_nothing_where_nothing_is_old(
    database: WriteDatabase, tmp_path: Path
) -> None:
    def settings(folder: Path | None) -> Settings:
        return Settings(database=database.settings, archive=ArchivingSettings(folder=folder))

    assert ACTIONS["archive-plan"].do(settings(None)).text.startswith("no partition")
    for folder, problem in ((None, "ARCHIVE__FOLDER is not set"), (tmp_path / "absent", "is no folder")):
        for action in ("archive", "verify-archive"):
            with pytest.raises(ActionRefused, match=problem):
                ACTIONS[action].do(settings(folder))
    assert ACTIONS["archive"].do(settings(tmp_path)).fields == {"events": 0, "files": 0, "bytes": 0, "dropped": []}
    assert ACTIONS["verify-archive"].do(settings(tmp_path)).text.startswith("0 files")


async def test_a_receipt_says_whether_its_command_has_steps_left(database: WriteDatabase) -> None:
    with database.engine.begin() as connection:
        append_refusals(connection, [Receipt(identity("erase"), b"f", identity("customer", 1), 0, 0)])
        begun = text("INSERT INTO tandem_write.unfinished VALUES (:id, '', '', '')")
        connection.execute(begun, {"id": identity("erase")})
    service = ReceiptService(receipts.DESCRIPTOR.services_by_name["ReceiptService"], database.engine)
    await service.start()

    async def get(request_id: str) -> Any:
        request = receipts.GetReceiptRequest(request_id=request_id)
        call = LocalCall(Method("GetReceipt", type(request)), request, seconds=20)
        service.service.workers["GetReceipt"].put_all([call])
        return await asyncio.wrap_future(call.future)

    found = await get(identity("erase"))
    assert (found.unfinished, found.aggregate_id) == (True, identity("customer", 1))
    with pytest.raises(NotFound):
        await get(identity("nobody"))
    with pytest.raises(InvalidArgument):
        await get("x")
    await service.stop()


async def test_what_reactions_have_parked_is_listed_and_redriven_page_by_page(
    database: WriteDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = Worker("nobody", [], max_batch=1, max_waiting=1)
    of_shop = reactions(Settings(database=database.settings))
    reacting = Reactions(
        database.settings, nobody, of_shop, ReactionSettings(), webhook=WebhookSettings(), archive=Archive(None),
        keep=timedelta(days=7),
    )  # fmt: skip
    reacting.follower.begin()

    def park(first: int, end: int) -> None:
        with database.engine.begin() as connection:
            now = connection.execute(text("SELECT now()")).scalar_one()
            events = [FeedEvent(EVENTS, number + 1, "order_placed", b"", mark=7) for number in range(first, end)]
            keys = [identity("order", number) for number in range(first, end)]
            parked = [
                parked_event("unpaid_orders", event, key, now, f"bug {event.position - 1}")
                for event, key in zip(events, keys, strict=True)
            ]
            insert_tasks(connection, parked)

    park(0, 5)
    descriptor = reaction_calls.DESCRIPTOR.services_by_name["ReactionService"]
    service = ReactionService(descriptor, database.engine, reacting, Archive(None))
    await service.start()

    async def ask(name: str, request: Any) -> Any:
        call = LocalCall(Method(name, type(request)), request, seconds=20)
        service.service.workers[name].put_all([call])
        return await asyncio.wrap_future(call.future)

    found, token = [], ""
    while True:
        page = await ask("ListParkedTasks", reaction_calls.ListParkedTasksRequest(page_size=2, page_token=token))
        found += [(it.position, it.key, it.error) for it in page.parked_tasks]
        token = page.next_page_token
        if not token:
            break
    assert found == [(number + 1, identity("order", number), f"bug {number}") for number in range(5)]
    listed = await ask("ListReactions", reaction_calls.ListReactionsRequest())
    assert {it.name: it.parked_tasks for it in listed.reactions}["unpaid_orders"] == 5
    park(5, 205)
    # The time of each call is up after its first part.
    monkeypatch.setattr("tandem.reactions.service.answer_by", lambda _: 0.0)
    parts = []
    while True:
        request = reaction_calls.RedriveParkedTasksRequest(reaction="unpaid_orders", page_token=token)
        done = await ask("RedriveParkedTasks", request)
        parts.append(done.redriven_tasks)
        token = done.next_page_token
        if not token:
            break
    assert parts == [100, 100, 5]
    for wrong in ({"page_token": "x"}, {"page_token": f"a/{10**19}/0"}, {"page_size": 1001}, {"page_size": -1}):
        with pytest.raises(InvalidArgument):
            await ask("ListParkedTasks", reaction_calls.ListParkedTasksRequest(**wrong))
    with pytest.raises(InvalidArgument):
        await ask("DropParkedTasks", reaction_calls.DropParkedTasksRequest(reaction="unpaid_orders", key=identity("x")))
    with pytest.raises(NotFound):
        await ask("ListParkedTasks", reaction_calls.ListParkedTasksRequest(reaction="none"))
    await service.stop()
    await reacting.stop()
