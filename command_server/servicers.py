"""CommandService: each RPC validates and submits."""

from datetime import UTC, datetime
from typing import Any

from google.protobuf.message import Message
from uuid_utils.compat import uuid7

from command_server.aggregates import id_of
from command_server.catalogue import CATALOGUE
from command_server.command import Command, Receipt
from command_server.executor import Executor
from command_server.validation import Checker
from commerce.command.v1 import command_service_pb2 as commands
from commerce.type.v1.receipt_pb2 import CommandReceipt
from tandem.feed.token import encode_token
from tandem.runtime.calls import AnswerLater, Call, Reply


class CommandServicer:
    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    async def RegisterCustomer(self, request: commands.RegisterCustomerRequest, call: Call) -> Message:
        return await self._submit(request, call)

    async def RenameCustomer(self, request: commands.RenameCustomerRequest, call: Call) -> Message:
        return await self._submit(request, call)

    async def UpdateAddress(self, request: commands.UpdateAddressRequest, call: Call) -> Message:
        return await self._submit(request, call)

    async def RemoveAddress(self, request: commands.RemoveAddressRequest, call: Call) -> Message:
        return await self._submit(request, call)

    async def EraseCustomer(self, request: commands.EraseCustomerRequest, call: Call) -> Message:
        return await self._submit(request, call)

    async def AddProduct(self, request: commands.AddProductRequest, call: Call) -> Message:
        return await self._submit(request, call)

    async def ChangePrice(self, request: commands.ChangePriceRequest, call: Call) -> Message:
        return await self._submit(request, call)

    async def AdjustStock(self, request: commands.AdjustStockRequest, call: Call) -> Message:
        return await self._submit(request, call)

    async def DiscontinueProduct(self, request: commands.DiscontinueProductRequest, call: Call) -> Message:
        return await self._submit(request, call)

    async def ReviseProduct(self, request: commands.ReviseProductRequest, call: Call) -> Message:
        return await self._submit(request, call)

    async def PlaceOrder(self, request: commands.PlaceOrderRequest, call: Call) -> Message:
        return await self._submit(request, call)

    async def PayOrder(self, request: commands.PayOrderRequest, call: Call) -> Message:
        return await self._submit(request, call)

    async def ShipOrder(self, request: commands.ShipOrderRequest, call: Call) -> Message:
        return await self._submit(request, call)

    async def DeliverOrder(self, request: commands.DeliverOrderRequest, call: Call) -> Message:
        return await self._submit(request, call)

    async def ChangeShippingAddress(self, request: commands.ChangeShippingAddressRequest, call: Call) -> Message:
        return await self._submit(request, call)

    async def CancelOrder(self, request: commands.CancelOrderRequest, call: Call) -> Message:
        return await self._submit(request, call)

    async def StartSubscription(self, request: commands.StartSubscriptionRequest, call: Call) -> Message:
        return await self._submit(request, call)

    async def ChangeSubscriptionPlan(self, request: commands.ChangeSubscriptionPlanRequest, call: Call) -> Message:
        return await self._submit(request, call)

    async def RenewSubscription(self, request: commands.RenewSubscriptionRequest, call: Call) -> Message:
        return await self._submit(request, call)

    async def CancelSubscription(self, request: commands.CancelSubscriptionRequest, call: Call) -> Message:
        return await self._submit(request, call)

    async def ResumeSubscription(self, request: commands.ResumeSubscriptionRequest, call: Call) -> Message:
        return await self._submit(request, call)

    async def _submit(self, request: Message, call: Call) -> Message:
        command = command_of(request, datetime.now(UTC))
        return _response(request, await self._executor.submit(command, call.deadline))


def answer_from_lanes(executor: Executor) -> AnswerLater:
    """What each of the methods does, for calls that do not wait on the event loop."""

    def take(request: Message, call: Call, reply: Reply) -> None:
        def reply_with(outcome: Receipt | BaseException | None) -> None:
            reply(_response(request, outcome) if isinstance(outcome, Receipt) else outcome)

        executor.put(command_of(request, datetime.now(UTC)), call.deadline, reply_with, call.gone)

    return take


def _response(request: Message, receipt: Receipt) -> Message:
    kind = CATALOGUE[type(request)]
    assert kind.response is not None, "an RPC's request"
    proof = CommandReceipt(
        consistency_token=encode_token(receipt.epoch, receipt.position),
        position=receipt.position,
        version=receipt.version,
        replayed=receipt.replayed,
    )
    fields: dict[str, Any] = {kind.subject: receipt.subject_id, "receipt": proof}
    return kind.response(**fields)


def command_of(request: Any, now: datetime) -> Command:
    """The command that a request is, with the ids that the caller left to the server. Raises InvalidArgument."""
    kind = CATALOGUE[type(request)]
    check = Checker(now)
    if request.request_id:
        check.uuid("request_id", request.request_id)
    subject = getattr(request, kind.subject)
    named = not kind.creates or request.HasField(kind.subject)
    if named:
        check.uuid(kind.subject, subject)
    kind.validate(request, check)
    check.finish()
    return Command(
        request=request,
        request_id=id_of(request.request_id or str(uuid7())),
        subject_id=id_of(subject if named else str(uuid7())),
        now=now,
    )
