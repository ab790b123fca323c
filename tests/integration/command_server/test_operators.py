"""What an operator asks of the command server: its actions at a shell, and ReceiptService."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from command_server.__main__ import ACTIONS
from command_server.settings import Settings
from commerce.command.v1 import receipt_service_pb2 as receipts
from tandem.commands.archiving import ArchivingSettings
from tandem.commands.receipt_service import ReceiptService
from tandem.commands.receipts import Receipt, append_refusals
from tandem.runtime.actions import ActionRefused
from tandem.runtime.call import LocalCall, Method
from tandem.runtime.errors import InvalidArgument, NotFound
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
