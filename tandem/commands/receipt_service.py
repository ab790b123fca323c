"""ReceiptService: what a request_id was told, for operators."""

from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc.status_pb2 import Status
from sqlalchemy import Connection, Engine, text

from tandem.commands.receipts import Receipt, find_receipts, receipt
from tandem.feed.token import encode_token
from tandem.runtime.call import Call
from tandem.runtime.checker import Checker
from tandem.runtime.errors import NotFound, RefusedBefore, code_of
from tandem.runtime.inquiries import answer_by, of_database
from tandem.runtime.server import Service
from tandem.runtime.worker import Worker, one_by_one

_CREATED_AT = text(f"SELECT created_at FROM {receipt.fullname} WHERE request_id = :request_id")  # noqa: S608


class ReceiptService:
    """A Component. Answers on one thread, beside the commands."""

    def __init__(self, descriptor: ServiceDescriptor, engine: Engine) -> None:
        """descriptor: a service with GetReceipt, as commerce.command.v1.ReceiptService has it.

        engine: of the write database; whoever made it disposes of it.
        """
        self._response: Any = GetMessageClass(descriptor.methods_by_name["GetReceipt"].output_type)
        self._database = of_database(engine, "write database", at_once=1)
        self._worker = Worker("receipts", [one_by_one(self._get)], max_batch=100, max_waiting=1000)
        self.service = Service(descriptor, {"GetReceipt": self._worker}, audited=True)

    async def start(self) -> None:
        await self._worker.start()

    async def stop(self) -> None:
        await self._worker.stop()
        await self._database.stop()

    def _get(self, call: Call) -> Message:
        request: Any = call.request
        checker = Checker()
        checker.uuid("request_id", request.request_id)
        checker.finish()
        found = self._database.ask(lambda it: _read(it, request.request_id.lower()), answer_by(call))
        if found is None:
            raise NotFound("receipt", f"receipts/{request.request_id}")
        it, created_at = found
        answer = self._response(aggregate_id=it.subject_id, version=it.version, unfinished=it.unfinished is not None)
        answer.stored_at.FromDatetime(created_at)
        if it.refusal is not None:
            refused = RefusedBefore(Status.FromString(it.refusal))
            code: grpc.StatusCode = code_of(refused)
            answer.refusal.code, answer.refusal.reason, answer.refusal.message = (
                code.name,
                refused.reason,
                refused.message,
            )
        else:
            assert it.epoch is not None, "of the feed"
            answer.position = it.position
            answer.consistency_token = encode_token(it.epoch, it.position, it.mark)
        message: Message = answer
        return message


def _read(connection: Connection, request_id: str) -> tuple[Receipt, Any] | None:
    found = find_receipts(connection, [request_id])().get(request_id)
    if found is None:
        return None
    return found, connection.execute(_CREATED_AT, {"request_id": request_id}).scalar_one()
