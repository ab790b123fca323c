"""A query server in this process, on a real read database and real cache nodes; the test is its projector."""

import asyncio
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf import message_factory
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc import aio
from grpc_status import rpc_status
from pydantic import SecretStr
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.dialects.postgresql import insert

from commerce.query.v1.query_service_pb2_grpc import QueryServiceStub
from projector.app import MIGRATIONS
from query_server.app import build
from query_server.search.memory import SearchMemory
from query_server.search.synonyms import NO_SYNONYMS, Synonyms
from query_server.settings import SearchSettings, Settings
from shop.views import VIEWS, order_summary
from tandem.feed.token import Token, decode_token, encode_token
from tandem.queries.settings import CacheSettings, FreshnessSettings, ReaderSettings, WatchSettings
from tandem.read_store.announcement import Announcement
from tandem.read_store.cache import CacheEpochs, Signer, decode_entry, encode_entry, key_prefix
from tandem.read_store.node import NEVER
from tandem.read_store.nodes import node_client
from tandem.read_store.tables import CHANNEL, READ, SCHEMA, change, parked, projection
from tandem.runtime.call import LocalCall, Method
from tandem.runtime.database import create_database_engine
from tandem.runtime.identity import Permission
from tandem.runtime.migrations import migrate
from tandem.runtime.server import Application, RunningApplication
from tandem.runtime.settings import DatabaseSettings, ServerSettings
from tests.support.metrics import sample
from tests.support.searching import Searcher, Shelf
from tests.support.stack import Databases

if TYPE_CHECKING:
    # The stubs alone know it.
    from commerce.query.v1.query_service_pb2_grpc import QueryServiceAsyncStub

# Positions differ between tests, so that the one that a metric shows is this test's.
_POSITIONS = itertools.count(1000, 1000)


class ReadSide:
    """What a projector does: rows, positions, cache entries and announcements."""

    def __init__(self, url: str) -> None:
        self.settings = DatabaseSettings(url=SecretStr(url))
        self.engine = create_database_engine(self.settings, name="test", pool_size=10)
        self.feed = uuid.uuid4()
        self.position = next(_POSITIONS)
        self.cache_epochs: CacheEpochs = {}
        """Announced with the identities of the nodes."""

    def migrate(self) -> None:
        migrate(self.settings, MIGRATIONS, READ)
        self.write_positions()

    def write_positions(self) -> None:
        with self.engine.begin() as connection:
            self._write_positions(connection)

    def put(self, view: str, key: str, message: Message) -> int:
        """Commits a row at the next position; returns the position."""
        return self._put(view, key, message, {})

    def put_summary(self, key: str, message: Message, *, customer: str, at: datetime) -> int:
        columns = {"customer_id": uuid.UUID(customer), "placed_at": at}
        return self.put_listed(order_summary.name, key, message, columns, "placed_position")

    def put_listed(self, view: str, key: str, message: Message, columns: dict[str, Any], first_position: str) -> int:
        """As `put`, with the columns that lists go by; `first_position` is the one for where a row's first event is."""
        return self._put(view, key, message, {**columns, first_position: self.position + 1})

    def _put(self, view: str, key: str, message: Message, columns: dict[str, Any]) -> int:
        self.position += 1
        value = message.SerializeToString(deterministic=True)
        row = {"key": uuid.UUID(key), "position": self.position, "value": value, **columns}
        with self.engine.begin() as connection:
            statement = insert(VIEWS[view]).values(row)
            connection.execute(statement.on_conflict_do_update(index_elements=["key"], set_=row))
            connection.execute(change.insert().values(view=view, key=row["key"], position=self.position))
            self._write_positions(connection)
        return self.position

    def _write_positions(self, connection: Connection) -> None:
        row = {"feed_epoch": self.feed, "position": self.position}
        moved = projection.update().where(projection.c.view.in_(VIEWS)).values(row).returning(projection.c.view)
        new = VIEWS.keys() - connection.execute(moved).scalars()
        if new:
            connection.execute(projection.insert().values([{"view": view, **row} for view in sorted(new)]))

    def park(self, view: str, key: str, scope: str | None = None) -> int:
        """Passes the next position without the event there for a row; returns the position."""
        self.position += 1
        with self.engine.begin() as connection:
            row = {"view": view, "key": uuid.UUID(key), "position": self.position, "kind": "any", "error": "it fails"}
            connection.execute(parked.insert().values(**row, scope=scope))
            connection.execute(change.insert().values(view=view, key=row["key"], position=self.position))
            self._write_positions(connection)
            counted = {"parked": projection.c.parked + 1}
            connection.execute(projection.update().where(projection.c.view == view).values(counted))
        return self.position

    def redrive(self, view: str, key: str, message: Message, position: int) -> None:
        """A row takes in what waits for it, the last of it at `position`; nothing of the view is parked any more."""
        value = message.SerializeToString(deterministic=True)
        with self.engine.begin() as connection:
            row = VIEWS[view].update().where(VIEWS[view].c.key == uuid.UUID(key))
            connection.execute(row.values(position=position, value=value))
            connection.execute(parked.delete().where(parked.c.view == view))
            connection.execute(projection.update().where(projection.c.view == view).values(parked=0))

    def advance(self) -> int:
        """Commits a position that changes no row."""
        self.position += 1
        with self.engine.begin() as connection:
            self._write_positions(connection)
        return self.position

    async def announce(self, *, lost: bool = False) -> int:
        """Announces the next position with the cache epochs, until the server has heard it; returns the position.

        lost: the position is not in the database, as after a failover that lost a commit.
        """
        position = self.position + 1 if lost else self.advance()
        epochs = {node: it and it + self._identity(node) for node, it in self.cache_epochs.items()}
        payload = Announcement(self.feed, dict.fromkeys(VIEWS, position), dict.fromkeys(VIEWS, epochs)).encode()

        def heard() -> bool:
            with self.engine.begin() as connection:
                connection.execute(
                    text("SELECT pg_notify(:channel, :payload)"), {"channel": CHANNEL, "payload": payload}
                )
            return all(sample("tandem_announced_position", view=view) == position for view in VIEWS)

        await until(heard, "the announcement is heard")
        return position

    def token(self, position: int) -> str:
        return encode_token(self.feed, position)

    def cached(self, node: str, view: str, key: str, epoch: str) -> bytes | None:
        """What is in the cache: the view's bytes, b"" for a placeholder, None for nothing."""
        client = node_client(node, timeout=2)
        try:
            name = self.prefix(node, view, epoch) + uuid.UUID(key).hex
            raw = client.ask([name]).answer().get(name)
        finally:
            client.close()
        return None if raw is None else decode_entry(raw) or b""

    def store(self, node: str, view: str, key: str, epoch: str, message: Message | None) -> None:
        """Sets an entry as a projector does; None deletes it, as an eviction does."""
        client = node_client(node, timeout=2)
        name = self.prefix(node, view, epoch) + uuid.UUID(key).hex
        try:
            if message is None:
                client.remove([name])
            else:
                entry = encode_entry(message.SerializeToString(deterministic=True))
                client.store({name: Signer().sign(name, entry)}, NEVER)
        finally:
            client.close()

    def prefix(self, node: str, view: str, epoch: str) -> str:
        """What keys begin with in an epoch that is announced of a node."""
        return key_prefix(view, epoch + self._identity(node))

    def _identity(self, node: str) -> str:
        client = node_client(node, timeout=2)
        try:
            return client.identity
        finally:
            client.close()

    def end_sessions(self, name: str) -> None:
        """Ends the server's connections of that name, as a failover does."""
        statement = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = :name"
        with self.engine.connect() as connection:
            assert connection.execute(text(statement), {"name": name}).all()

    def let_in(self, *, anybody: bool) -> None:
        """Whether the database takes connections; those that there are end."""
        name = self.engine.url.database
        self.engine.dispose()
        admin = create_engine(self.engine.url.set(database="postgres"), isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {str(anybody).lower()}"))
            connection.execute(
                text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"), {"name": name}
            )
        admin.dispose()

    def drop_schema(self) -> None:
        with self.engine.begin() as connection:
            connection.execute(text(f"DROP SCHEMA {SCHEMA} CASCADE"))

    def query_sessions(self, condition: str) -> int:
        """How many of the server's connections are as `condition` says, in pg_stat_activity's words."""
        statement = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            f" AND application_name = 'tandem-query' AND {condition}"
        )
        with self.engine.connect() as connection:
            count: int = connection.execute(text(statement)).scalar_one()
            return count

    async def until_blocked(self) -> None:
        """Until the server waits for a lock that the test holds."""
        await until(lambda: self.query_sessions("wait_event_type = 'Lock'") > 0, "the server waits for a lock")


class TablesLocked:
    """No view can be read from the database while this is entered."""

    def __init__(self, read_side: ReadSide) -> None:
        self._connection = read_side.engine.connect()

    def __enter__(self) -> None:
        names = ", ".join(table.fullname for table in VIEWS.values())
        self._connection.execute(text(f"LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE"))

    def __exit__(self, *_: object) -> None:
        self._connection.rollback()
        self._connection.close()


async def until(condition: Callable[[], Any], what: str) -> None:
    """Asks, in a thread, until the answer is true; AssertionError with `what` after a while."""
    await eventually(lambda: asyncio.to_thread(condition), what)


async def eventually(condition: Callable[[], Awaitable[Any]], what: str, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        if await condition():
            return
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(0.01)


def position_of(as_of: str) -> int:
    return decode_token(as_of).position


def token_of(as_of: str) -> Token:
    return decode_token(as_of)


def detail(error: aio.AioRpcError, kind: type[Any]) -> Any:
    """The detail of a kind that the error's status carries."""
    status = rpc_status.from_call(error)
    assert status is not None, error
    for packed in status.details:
        found = kind()
        if packed.Unpack(found):
            return found
    raise AssertionError(f"no {kind.__name__} in {status}")


def reason(error: aio.AioRpcError) -> str:
    text: str = detail(error, error_details_pb2.ErrorInfo).reason
    return text


def counted(result: str, view: str = "order_details") -> float:
    return sample("tandem_cache_reads_total", view=view, result=result) or 0


@pytest.fixture
def read_side(databases: Databases) -> Iterator[ReadSide]:
    url = databases.create("read")
    read_side = ReadSide(url)
    read_side.write_positions()
    yield read_side
    read_side.engine.dispose()
    databases.drop(url)


@pytest.fixture
def shelf(read_side: ReadSide) -> Shelf:
    return Shelf(read_side)


@pytest.fixture(params=["native", "grpcio"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


OpenSearcher = Callable[..., Searcher]


@pytest.fixture
def opened() -> Iterator[OpenSearcher]:
    """Opens searchers on the read side that is given, with a memory of their own unless it is given."""
    found: list[Searcher] = []

    def start(read_side: ReadSide, memory: SearchMemory | None = None, synonyms: Synonyms = NO_SYNONYMS) -> Searcher:
        found.append(Searcher(read_side.settings, SearchMemory(2**20) if memory is None else memory, synonyms))
        return found[-1]

    yield start
    for it in found:
        it.close()


Serve = Callable[..., Any]


@pytest.fixture
async def serve(read_side: ReadSide, transport: str) -> AsyncIterator[Serve]:
    """Starts a query server and returns a stub; keyword arguments change its settings' blocks.

    feed_database: DatabaseSettings, for fully_consistent queries. database: where rows are read, instead of at the read
    side's own; primary_database: where that is a replica.
    """
    running: list[RunningApplication] = []
    channels: list[aio.Channel] = []

    async def start(**blocks: Any) -> "QueryServiceAsyncStub":
        database = blocks.pop("database", read_side.settings)
        application = RunningApplication(build(query_settings(database, transport, **blocks)))
        await application.start()
        running.append(application)
        channel = aio.insecure_channel(f"127.0.0.1:{application.port}")
        channels.append(channel)
        stub: QueryServiceAsyncStub = QueryServiceStub(channel)
        return stub

    yield start
    for channel in channels:
        await channel.close()
    for application in running:
        await application.stop()


class LocalQueries:
    """A query server without a transport: calls are put into the queues of their workers."""

    def __init__(self, application: Application) -> None:
        self.application = application
        self._service = application.services[0]

    def ask(self, rpc: str, *requests: Message, owner: str | None = None) -> list[LocalCall]:
        """Calls that come together: they are one batch. Their futures have serialised responses.

        owner: whose rows alone the caller may see.
        """
        method = Method(rpc, message_factory.GetMessageClass(self._service.descriptor.methods_by_name[rpc].input_type))
        calls = [LocalCall(method, it, seconds=20) for it in requests]
        for it in calls:
            it.permission = Permission(owner=owner)
        self._service.workers[rpc].put_all(calls)
        return calls

    async def stop(self) -> None:
        for component in reversed(self.application.components):
            await component.stop()


@pytest.fixture
async def local(read_side: ReadSide) -> AsyncIterator[LocalQueries]:
    queries = LocalQueries(build(query_settings(read_side.settings, "native")))
    for component in queries.application.components:
        await component.start()
    yield queries
    await queries.stop()


def query_settings(database: DatabaseSettings, transport: str, **blocks: Any) -> Settings:
    # Announcements come when the test sends them: only the tests about blindness let them be missed.
    freshness = {"blind_after": 60.0, **blocks.get("freshness", {})}
    return Settings(
        database=database,
        primary_database=blocks.get("primary_database"),
        feed_database=blocks.get("feed_database"),
        server=ServerSettings(port=0, transport=transport, drain_seconds=5),
        reader=ReaderSettings(**blocks.get("reader", {})),
        cache=CacheSettings(**{"timeout": 1.0, **blocks.get("cache", {})}),
        freshness=FreshnessSettings(**freshness),
        watch=WatchSettings(**blocks.get("watch", {})),
        search=SearchSettings(**blocks.get("search", {})),
    )
