"""The shop as real processes on real stores, for tests."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

import command_server
import projector
from commerce.command.v1.command_service_pb2_grpc import CommandServiceStub
from commerce.projection.v1.projection_service_pb2_grpc import ProjectionServiceStub
from commerce.query.v1.query_service_pb2_grpc import QueryServiceStub
from shop.cli import SHOP
from shop.views import VIEWS
from tandem.cli.embedded import Postgres
from tandem.cli.services import Service
from tandem.testing import stack
from tests.support.forking import ForkedService

if TYPE_CHECKING:
    from commerce.command.v1.command_service_pb2_grpc import CommandServiceAsyncStub
    from commerce.projection.v1.projection_service_pb2_grpc import ProjectionServiceAsyncStub
    from commerce.query.v1.query_service_pb2_grpc import QueryServiceAsyncStub

_MIGRATIONS: dict[stack.Side, Path] = {
    "write": Path(command_server.__path__[0]) / "migrations",
    "read": Path(projector.__path__[0]) / "migrations",
}


class Databases(stack.Databases):
    """New databases of the shop."""

    def __init__(self, postgres: Postgres) -> None:
        super().__init__(postgres, _MIGRATIONS)


@dataclass(frozen=True)
class AsyncStubs:
    commands: "CommandServiceAsyncStub"
    queries: "QueryServiceAsyncStub"
    projections: "ProjectionServiceAsyncStub"


class Stack(stack.Stack):
    """The shop's three services, forks unless `service` says otherwise. Settings as of every stack."""

    def __init__(
        self, databases: Databases, folder: Path, *, service: type[Service] = ForkedService, **settings: Any
    ) -> None:
        super().__init__(databases, folder, modules=SHOP.modules, views=len(VIEWS), service=service, **settings)

    @property
    def commands(self) -> CommandServiceStub:
        return CommandServiceStub(self.channel(self.command_server))

    @property
    def queries(self) -> QueryServiceStub:
        return QueryServiceStub(self.channel(self.query_server))

    @property
    def projections(self) -> ProjectionServiceStub:
        return ProjectionServiceStub(self.channel(self.projector))

    @asynccontextmanager
    async def async_stubs(self) -> AsyncIterator[AsyncStubs]:
        """Stubs for the running event loop."""
        async with AsyncExitStack() as exits:
            to_command, to_query, to_projector = [
                await exits.enter_async_context(grpc.aio.insecure_channel(it.address, stack.CHANNEL_OPTIONS))
                for it in (self.command_server, self.query_server, self.projector)
            ]
            yield AsyncStubs(
                CommandServiceStub(to_command), QueryServiceStub(to_query), ProjectionServiceStub(to_projector)
            )
