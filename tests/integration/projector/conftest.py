"""Projectors in this process, on a real feed, a real read database and real cache nodes; the test writes the feed."""

import hashlib
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
import pytest
from grpc import aio
from pydantic import SecretStr
from sqlalchemy import Engine, select, text

from commerce.event.v1.event_pb2 import Event
from commerce.projection.v1.projection_service_pb2 import (
    GetOperationRequest,
    GetOperationResponse,
    ListParkedKeysRequest,
    ListProjectionsRequest,
    ParkedKey,
    Projection,
    RedriveParkedKeysRequest,
)
from commerce.projection.v1.projection_service_pb2_grpc import ProjectionServiceStub
from projector.app import build
from projector.settings import Settings
from shop.events import EVENTS
from shop.views import VIEWS
from tandem.cli.embedded import Memcached
from tandem.feed import table as feed
from tandem.feed.archive import ArchiveSettings
from tandem.feed.events import FeedEvent
from tandem.feed.head import read_head
from tandem.feed.reader import read_events
from tandem.feed.token import new_mark
from tandem.internal.v1.stored_pb2 import Envelope
from tandem.projection.settings import AuditSettings, CacheSettings, ChangeLogSettings, FollowSettings
from tandem.read_store.announcement import Announcement
from tandem.read_store.cache import CacheEpochs, Ring, decode_entry, key_prefix
from tandem.read_store.nodes import node_client
from tandem.read_store.tables import CHANNEL, change, projection, written_columns
from tandem.runtime.bulk import execute, inserted
from tandem.runtime.database import create_database_engine
from tandem.runtime.server import RunningApplication
from tandem.runtime.settings import DatabaseSettings, ServerSettings
from tandem.testing.stack import until
from tests.support.projecting import upsert
from tests.support.stack import Databases, Stack

if TYPE_CHECKING:
    # The stubs alone know it.
    from commerce.projection.v1.projection_service_pb2_grpc import ProjectionServiceAsyncStub

Rows = dict[str, list[tuple[Any, ...]]]


class Stored(NamedTuple):
    """An event as it is stored."""

    kind: str
    payload: bytes
    subject_id: str | None = None
    envelope: bytes | None = None


class Stores:
    """Both databases, as the test sees them. `write` and `read` are engines of the test's own."""

    def __init__(self, write_url: str, read_url: str) -> None:
        self.write_url, self.read_url = write_url, read_url
        self.write = self._engine(write_url)
        self.read = self._engine(read_url)

    @staticmethod
    def _engine(url: str) -> Engine:
        return create_database_engine(DatabaseSettings(url=SecretStr(url)), name="test", pool_size=5)

    def append(self, events: Iterable[Event], envelope: Envelope | None = None) -> int:
        """Commits events to the feed, as a command server does; returns the feed's head."""
        return self.append_stored(self._sealed(events, envelope))

    def append_unheard(self, events: Iterable[Event]) -> int:
        """As `append`, with a notification that is lost."""
        return self.append_stored(self._sealed(events), notify=False)

    def append_stored(self, rows: Sequence[Stored], *, notify: bool = True) -> int:
        with self.write.begin() as connection:
            base = connection.execute(
                text(f"UPDATE {feed.feed_head.fullname} SET position = position + {len(rows)} RETURNING position")
            ).scalar_one() - len(rows)
            now, mark = datetime.now(UTC), new_mark()
            stored = [
                (position, it.kind, now, it.payload, it.subject_id, it.envelope, mark)
                for position, it in enumerate(rows, start=base + 1)
            ]
            execute(connection, inserted(feed.event, stored))
            if notify:
                connection.execute(text(f"NOTIFY {feed.CHANNEL}"))
        return int(base) + len(rows)

    def _sealed(self, events: Iterable[Event], envelope: Envelope | None = None) -> list[Stored]:
        """The data subjects that the events tell of get keys."""
        listed = list(events)
        subjects = {subject for event in listed if (subject := EVENTS.subject_of(event))}
        keys = {subject: hashlib.sha256(subject.encode()).digest() for subject in subjects}
        with self.write.begin() as connection:
            upsert(connection, feed.subject_key, keys.items())
        stored: list[Stored] = []
        for event in listed:
            subject = EVENTS.subject_of(event)
            payload = (EVENTS.seal(event, keys[subject]) if subject else event).SerializeToString(deterministic=True)
            written = None if envelope is None else envelope.SerializeToString()
            stored.append(Stored(str(EVENTS.kind_in(event)), payload, subject, written))
        return stored

    def new_feed_epoch(self) -> uuid.UUID:
        """As after a restore from a backup."""
        epoch: uuid.UUID = self.run(
            f"UPDATE {feed.feed_head.fullname} SET epoch = gen_random_uuid() RETURNING epoch", "write"
        )
        return epoch

    def events(self) -> list[FeedEvent]:
        with self.write.connect() as connection:
            return read_events(connection, EVENTS, 0, 1_000_000).events

    def positions(self) -> dict[str, int]:
        with self.read.connect() as connection:
            return {row.view: row.position for row in connection.execute(select(projection))}

    def rows(self, *views: str) -> Rows:
        """All that a projector has written of all rows, by view."""
        with self.read.connect() as connection:
            return {
                view: [tuple(row) for row in connection.execute(select(*written_columns(VIEWS[view])).order_by("key"))]
                for view in views or VIEWS
            }

    def value(self, view: str, key: str) -> bytes | None:
        with self.read.connect() as connection:
            table = VIEWS[view]
            found: bytes | None = connection.execute(
                select(table.c.value).where(table.c.key == uuid.UUID(key))
            ).scalar_one_or_none()
            return found

    def change_log(self) -> list[tuple[Any, ...]]:
        """(view, position, key), in order."""
        with self.read.connect() as connection:
            query = select(change.c.view, change.c.position, change.c.key)
            return [tuple(row) for row in connection.execute(query.order_by("view", "position", "key"))]

    def left_epochs(self, view: str) -> CacheEpochs | None:
        with self.read.connect() as connection:
            left = connection.execute(select(projection.c.cache_epochs).where(projection.c.view == view)).scalar_one()
            return None if left is None else dict(left)

    def run(self, statement: str, side: str = "read") -> Any:
        """Executes SQL in a transaction; returns the first value, if it returns rows."""
        with (self.read if side == "read" else self.write).begin() as connection:
            result = connection.execute(text(statement))
            return result.scalar() if result.returns_rows else None

    def end_sessions(self, side: str = "read", name: str = "tandem-projector") -> None:
        """Ends the projectors' sessions, as a failover does."""
        ended = self.run(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            f" WHERE datname = current_database() AND application_name = '{name}'",
            side,
        )
        assert ended

    @contextmanager
    def refused(self, side: str) -> Iterator[None]:
        """While this is entered, one database takes no connections and has none."""
        server, name = getattr(self, f"{side}_url").rsplit("/", 1)
        with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:

            def allow(allowed: bool) -> None:
                connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {allowed}".encode())

            allow(False)
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            # The test's own went with them.
            getattr(self, side).dispose()
            try:
                yield
            finally:
                allow(True)

    async def caught_up(self, *views: str) -> None:
        """Waits until the views, or all, are at the head of the feed."""
        with self.write.connect() as connection:
            head = read_head(connection).position
        await self.reached(head, *views)

    async def reached(self, position: int, *views: str) -> None:
        async def there() -> bool:
            positions = self.positions()
            return all(positions.get(view, -1) >= position for view in views or VIEWS)

        await until(there, f"the views are at {position}", seconds=60)

    def close(self) -> None:
        self.write.dispose()
        self.read.dispose()


class Announcements:
    """All announcements since it was started, in order."""

    def __init__(self, url: str) -> None:
        self.heard: list[Announcement] = []
        self._connection = psycopg.connect(url, autocommit=True)
        self._connection.execute(f"LISTEN {CHANNEL}")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while not self._stopping.is_set():
            self.heard += [
                Announcement.decode(it.payload) for it in self._connection.notifies(timeout=0.05, stop_after=1)
            ]

    def positions(self, view: str) -> list[int]:
        return [it.positions[view] for it in self.heard if view in it.positions]

    def epochs(self, view: str = "product_card") -> CacheEpochs:
        """The last that were announced."""
        return next(it.cache_epochs[view] for it in reversed(self.heard) if view in it.cache_epochs)

    async def reached(self, position: int, *views: str) -> None:
        async def there() -> bool:
            return all(max(self.positions(view), default=-1) >= position for view in views or VIEWS)

        await until(there, f"position {position} is announced")

    async def parked(self, expected: dict[str, int]) -> None:
        """The last one says that so many rows of each view are parked; what was committed may be still on its way."""

        async def said() -> bool:
            return self.heard[-1].parked == expected

        await until(said, f"{expected} parked rows are announced")

    async def one_more(self) -> Announcement:
        """The next one."""
        count = len(self.heard)

        async def more() -> bool:
            return len(self.heard) > count

        await until(more, "another announcement")
        return self.heard[-1]

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._connection.close()


class Running:
    """A projector that runs in this process."""

    def __init__(self, settings: Settings) -> None:
        self._application = RunningApplication(build(settings))
        self._stopped = False

    async def start(self) -> "Running":
        await self._application.start()
        return self

    @property
    def port(self) -> int:
        return self._application.port

    async def list(self) -> dict[str, Projection]:
        """ListProjections, by view."""
        async with aio.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            stub: ProjectionServiceAsyncStub = ProjectionServiceStub(channel)
            answer = await stub.ListProjections(ListProjectionsRequest(), timeout=10)
        return {it.view: it for it in answer.projections}

    @asynccontextmanager
    async def stub(self) -> AsyncIterator["ProjectionServiceAsyncStub"]:
        async with aio.insecure_channel(f"127.0.0.1:{self._application.port}") as channel:
            yield ProjectionServiceStub(channel)

    async def done(self, operation_id: str) -> GetOperationResponse:
        """What has become of an operation, once it is done."""
        async with self.stub() as stub:

            async def is_done() -> GetOperationResponse | None:
                answer = await stub.GetOperation(GetOperationRequest(operation_id=operation_id), timeout=10)
                return answer if answer.done else None

            answer = await until(is_done, "the operation is done")
        assert answer is not None
        return answer

    async def redrive(self, view: str, key: str = "") -> GetOperationResponse:
        async with self.stub() as stub:
            asked = await stub.RedriveParkedKeys(RedriveParkedKeysRequest(view=view, key=key), timeout=10)
        return await self.done(asked.operation_id)

    async def parked(self) -> dict[str, ParkedKey]:
        """ListParkedKeys of all views, by key."""
        async with self.stub() as stub:
            answer = await stub.ListParkedKeys(ListParkedKeysRequest(), timeout=10)
        return {it.key: it for it in answer.parked_keys}

    async def is_ready(self) -> bool:
        return await self._application._application.ready()

    async def projections_are_well(self) -> bool:
        """What ProjectionService's own health says."""
        [service] = [it for it in self._application._application.services if it.descriptor.name == "ProjectionService"]
        assert service.ready is not None
        return await service.ready()

    async def until_state(self, state: int, *views: str) -> dict[str, Projection]:
        async def there() -> dict[str, Projection] | None:
            found = await self.list()
            return found if all(found[view].state == state for view in views or VIEWS) else None

        answer = await until(there, f"{views or 'all views'} are in state {state}")
        assert answer is not None
        return answer

    async def stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            await self._application.stop()


def cached(view: str, key: str, epochs: CacheEpochs) -> bytes | None:
    """What a reader that heard these epochs finds: None for nothing, and where the node is fenced off."""
    node = Ring(list(epochs)).node_of(uuid.UUID(key).hex)
    epoch = epochs[node]
    if epoch is None:
        return None
    client = node_client(node, timeout=2)
    try:
        name = key_prefix(view, epoch) + uuid.UUID(key).hex
        raw = client.ask([name]).answer().get(name)
    finally:
        client.close()
    return None if raw is None else decode_entry(raw)


@pytest.fixture
def stores(databases: Databases) -> Iterator[Stores]:
    stores = Stores(databases.create("write"), databases.create("read"))
    yield stores
    stores.close()
    databases.drop(stores.write_url)
    databases.drop(stores.read_url)


@pytest.fixture
def announcements(stores: Stores) -> Iterator[Announcements]:
    announcements = Announcements(stores.read_url)
    yield announcements
    announcements.stop()


@pytest.fixture
def processes(
    databases: Databases, tmp_path: Path, memcached_nodes: Callable[[int], list[Memcached]]
) -> Iterator[Stack]:
    """Projectors as processes of their own, with one node; nothing is started."""
    settings = {"FOLLOW__HUNG_SECONDS": "3", "CACHE__TIMEOUT": "10", "FOLLOW__STANDBY_SECONDS": "0.05"}
    stack = Stack(databases, tmp_path, nodes=memcached_nodes(1), settings={"PROJECTOR": settings})
    yield stack
    stack.stop()


@pytest.fixture
def process_stores(processes: Stack) -> Iterator[Stores]:
    stores = Stores(processes.write_url, processes.read_url)
    yield stores
    stores.close()


@pytest.fixture
def heard(processes: Stack) -> Iterator[Announcements]:
    heard = Announcements(processes.read_url)
    yield heard
    heard.stop()


Project = Callable[..., Any]


@pytest.fixture
async def project(stores: Stores) -> AsyncIterator[Project]:
    """Starts a projector: `await project(nodes, follow={…}, cache={…}, change_log={…}, audit={…}, read={…})`.

    on: other stores.
    """
    running: list[Running] = []

    async def start(nodes: Iterable[str] = (), *, on: Stores = stores, **blocks: dict[str, Any]) -> Running:
        settings = Settings(
            feed_database=DatabaseSettings(url=SecretStr(on.write_url)),
            read_database=DatabaseSettings(url=SecretStr(on.read_url), **blocks.get("read", {})),
            cache_nodes=tuple(nodes),
            server=ServerSettings(port=0),
            follow=FollowSettings(**{"retry_seconds": 0.2, "standby_seconds": 0.05, **blocks.get("follow", {})}),
            cache=CacheSettings(**{"probe_seconds": 0.05, **blocks.get("cache", {})}),
            change_log=ChangeLogSettings(**blocks.get("change_log", {})),
            archive=ArchiveSettings(**blocks.get("archive", {})),
            audit=AuditSettings(**blocks.get("audit", {})),
        )
        projector = Running(settings)
        running.append(projector)
        return await projector.start()

    yield start
    for projector in running:
        await projector.stop()
