"""What an operator asks a projector about generations of views."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from grpc import aio

from commerce.projection.v1 import projection_service_pb2 as projections
from commerce.projection.v1.projection_service_pb2 import Generation, GenerationState
from commerce.projection.v1.projection_service_pb2_grpc import ProjectionServiceStub
from shop.views import VIEWS
from tandem.testing.stack import until

if TYPE_CHECKING:
    from commerce.projection.v1.projection_service_pb2_grpc import ProjectionServiceAsyncStub

READY, KEPT = GenerationState.GENERATION_STATE_READY, GenerationState.GENERATION_STATE_KEPT
FILLING, COMPARING = GenerationState.GENERATION_STATE_FILLING, GenerationState.GENERATION_STATE_COMPARING


class Operator:
    def __init__(self, stub: "ProjectionServiceAsyncStub") -> None:
        self.stub = stub

    async def rebuild(self, *views: str, **options: Any) -> None:
        for view in views:
            await self.stub.StartRebuild(projections.StartRebuildRequest(view=view, **options), timeout=10)

    async def switch(self, view: str) -> None:
        await self.stub.SwitchGeneration(projections.SwitchGenerationRequest(view=view), timeout=10)

    async def drop(self, view: str) -> None:
        await self.stub.DropGeneration(projections.DropGenerationRequest(view=view), timeout=10)

    async def list(self) -> dict[str, Generation]:
        answer = await self.stub.ListGenerations(projections.ListGenerationsRequest(), timeout=10)
        return {it.view: it for it in answer.generations}

    async def until(self, state: int, *views: str) -> dict[str, Generation]:
        async def there() -> dict[str, Generation] | None:
            found = await self.list()
            return found if all(view in found and found[view].state == state for view in views) else None

        found = await until(there, f"{views} are in state {state}")
        assert found is not None
        return found

    async def until_gone(self) -> None:
        async def gone() -> bool:
            return not await self.list()

        await until(gone, "no view has another generation")

    async def make_anew(self, *views: str) -> None:
        """Serves views, or all, that are made of the feed alone, and keeps nothing of those before."""
        await self.rebuild(*(views or VIEWS), switch_when_ready=True)
        await self.until(KEPT, *(views or VIEWS))
        for view in views or VIEWS:
            await self.drop(view)
        await self.until_gone()


@asynccontextmanager
async def operator(port: int) -> AsyncIterator[Operator]:
    """At the projector that listens there."""
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Operator(ProjectionServiceStub(channel))
