"""What holds for every query of the contract, those to come included: `consistency` in, `as_of` out."""

import uuid
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from grpc import aio

from commerce.query.v1 import query_service_pb2 as queries
from commerce.type.v1.consistency_pb2 import Consistency
from tandem.feed.token import encode_token
from tests.integration.query_server.conftest import ReadSide, Serve, position_of, reason
from tests.support.builders import identity

METHODS = {method.name: method for method in queries.DESCRIPTOR.services_by_name["QueryService"].methods}
# What a request needs besides ids to be a right one.
FIELDS: dict[str, dict[str, Any]] = {"GetSalesSummary": {"start_date": "2026-01-01", "end_date": "2026-01-31"}}

each_query = pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))


@pytest.fixture
def transport() -> str:
    """It has no part in this."""
    return "auto"


def request(method: MethodDescriptor, **consistency: Any) -> Message:
    """A right request for something that is not there."""
    made = message_factory.GetMessageClass(method.input_type)(**FIELDS.get(method.name, {}))
    for field in method.input_type.fields:
        if field.name.endswith("_id"):
            setattr(made, field.name, identity("nothing"))
        elif field.name.endswith("_ids") and field.type == FieldDescriptor.TYPE_STRING:
            getattr(made, field.name).append(identity("nothing"))
    made.consistency.CopyFrom(Consistency(**consistency))  # type: ignore[attr-defined]
    return made


async def first_answer(stub: Any, method: MethodDescriptor, wanted: Message) -> Any:
    call = getattr(stub, method.name)(wanted, timeout=20)
    return await anext(aiter(call)) if method.server_streaming else await call


async def refusal(stub: Any, method: MethodDescriptor, wanted: Message) -> aio.AioRpcError:
    with pytest.raises(aio.AioRpcError) as raised:
        await first_answer(stub, method, wanted)
    return raised.value


@each_query
async def test_a_token_of_another_feed_is_refused_with_its_reason(
    read_side: ReadSide, serve: Serve, method: MethodDescriptor
) -> None:
    stub = await serve()
    await read_side.announce()
    error = await refusal(stub, method, request(method, at_least_as_fresh=encode_token(uuid.uuid4(), 1)))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert reason(error) == "TOKEN_EPOCH_MISMATCH"


@each_query
async def test_a_token_that_is_not_reached_is_not_passed_over(
    read_side: ReadSide, serve: Serve, method: MethodDescriptor
) -> None:
    stub = await serve()
    token = read_side.token(await read_side.announce() + 1)
    error = await refusal(stub, method, request(method, at_least_as_fresh=token, max_wait={"nanos": 1}))
    assert reason(error) == "PROJECTION_LAG"


@each_query
async def test_each_of_several_tokens_counts(read_side: ReadSide, serve: Serve, method: MethodDescriptor) -> None:
    stub = await serve()
    reached = await read_side.announce()
    here, ahead, elsewhere = read_side.token(reached), read_side.token(reached + 1), encode_token(uuid.uuid4(), 1)
    assert reason(await refusal(stub, method, request(method, tokens=[here, elsewhere]))) == "TOKEN_EPOCH_MISMATCH"
    lagging = request(method, at_least_as_fresh=here, tokens=[here, ahead], max_wait={"nanos": 1})
    assert reason(await refusal(stub, method, lagging)) == "PROJECTION_LAG"
    if not method.name.startswith(("Get", "Watch")) or method.name in FIELDS:
        answer = await first_answer(stub, method, request(method, tokens=[here, here]))
        assert position_of(answer.as_of) == reached


@each_query
async def test_fully_consistent_is_not_passed_over(serve: Serve, method: MethodDescriptor) -> None:
    error = await refusal(await serve(), method, request(method, fully_consistent=True))
    assert reason(error) == "FULLY_CONSISTENT_NOT_CONFIGURED"


@each_query
async def test_an_answer_says_as_of_when_it_is(read_side: ReadSide, serve: Serve, method: MethodDescriptor) -> None:
    assert method.output_type.fields_by_name["as_of"].type == FieldDescriptor.TYPE_STRING
    stub = await serve()
    announced = await read_side.announce()
    if method.name.startswith(("Get", "Watch")) and method.name not in FIELDS:
        # One thing, which is not there.
        assert (await refusal(stub, method, request(method))).code() == grpc.StatusCode.NOT_FOUND
    else:
        assert position_of((await first_answer(stub, method, request(method))).as_of) == announced
