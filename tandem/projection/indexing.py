"""A view's rows are put into a search engine, behind the view: ADR 77.

    projector ──▶ rows, change log, announcement     as of every view; it waits for no engine
    Indexer ◀──── announcement                       on a thread and connections of its own, in the same program
       └────────▶ documents, refresh                 each with its row's position as its version
       └────────▶ the index's row of `projection`,   with which a query server's statement sees how far the index is
                  announcement                       under the index's name, as if it were a view

One indexer at a time holds the index's advisory lock, on the connection that writes the index's row: who lost it writes
no row, and the engine refuses what it stores late. An index's life in this program:

    filling ──▶ serving    all rows are in it that the view had when filling began, and what changed meanwhile
    serving ──▶ serving    the view is exchanged for its other generation, or another release makes other documents:
                           another index is filled, and the old one is followed meanwhile
            ──▶ filling    the view is made anew, or of another epoch of the feed; the change log does not say what
                           changed, and the same index is filled once more; or the engine has lost it
            ──▶ away       the engine does not answer

While no index serves, its announcement says a problem, and searches are the database's.
"""

import asyncio
import threading
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from prometheus_client import Counter, Gauge
from sqlalchemy.exc import SQLAlchemyError

from tandem.feed.token import Token
from tandem.projection import metrics
from tandem.projection.settings import FollowSettings
from tandem.read_store.announcement import Announcement
from tandem.read_store.search_engine import SearchEngine
from tandem.read_store.search_index import Document, EngineAway, IndexGone, SearchEngineSettings, SearchIndex
from tandem.read_store.tables import CHANNEL, change, newest, parked_in, projection
from tandem.runtime.arrays import array
from tandem.runtime.database import Driver, create_database_engine, driver_under, first_line
from tandem.runtime.listener import Listener
from tandem.runtime.notifications import Notified
from tandem.runtime.settings import DatabaseSettings
from tandem.runtime.supervised import SupervisedThread
from tandem.runtime.telemetry import log

SERVES = Gauge(
    "tandem_index_serves", "1 while searches may use a view's index, at the projector that fills it", ["view"]
)
DOCUMENTS = Counter("tandem_index_documents_total", "Documents that the search engine took", ["view"])
REFUSED = Counter(
    "tandem_index_documents_refused_total",
    "Documents that the search engine had in a later version: those of a projector that was late",
    ["view"],
)

INDEX_AWAY = "INDEX_AWAY"
"""Why an index cannot go on, as announcements have it."""

_NAME = "tandem-indexer"
# Rows that are read and stored together.
_ROWS = 500
# Of the change log in one look: to store as many one by one takes longer than to fill the index anew.
_MOST_CHANGED = 10_000
_LOCK = 7_246_002
_FIRST = uuid.UUID(int=0)


@dataclass(frozen=True)
class _Source:
    """The view, as its row of `projection` says it."""

    at: Token
    content: uuid.UUID | None
    parked: int
    parked_since: int | None


@dataclass
class _Filling:
    """after: the last row that is in it."""

    name: str
    after: uuid.UUID = _FIRST


class Indexer:
    """A Component: the thread that keeps the index of a view."""

    def __init__(
        self,
        index: SearchIndex,
        engine: SearchEngineSettings,
        *,
        read_database: DatabaseSettings,
        follow: FollowSettings,
        log_keeps_seconds: float,
    ) -> None:
        """log_keeps_seconds: how long the change log keeps an entry. Raises SettingsError."""
        self._index = index
        self._prefix = engine.prefix
        self._search_engine = SearchEngine(engine)
        self._follow = follow
        self._log_keeps = log_keeps_seconds
        self._database = create_database_engine(read_database, name=_NAME, pool_size=1, by_key=True, autocommit=True)
        self._listener = Listener(read_database, CHANNEL, _NAME)
        self._stopping = threading.Event()
        self._readers = Notified("the readers of the index")
        self._thread = SupervisedThread("indexer", self._run)
        self._forget()

    def _forget(self) -> None:
        # Where the index's row is, which searches see, and the name there. The one that serves; "" for none.
        self._row: Token | None = None
        self._row_name = self._serving = ""
        self._filling: _Filling | None = None
        # What has been put into all of these.
        self._seen: _Source | None = None
        self._looked_at = float("-inf")
        self._said_at = float("-inf")
        self._problem = ""

    async def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        self._stopping.set()
        await asyncio.to_thread(self._thread.join)
        self._listener.close()
        self._search_engine.close()
        self._database.dispose()

    def _run(self) -> None:
        problem = ""
        while not self._stopping.is_set():
            try:
                with self._database.connect() as connection:
                    # Closed at the end and not pooled: the lock is to end with it.
                    connection.detach()
                    driver = driver_under(connection)
                    if not self._takes_lock(driver):
                        self._stopping.wait(self._follow.standby_seconds)
                        continue
                    self._resume(driver)
                    problem = ""
                    while not self._stopping.is_set():
                        if not self._try_turn(driver):
                            self._wait()
            except (SQLAlchemyError, psycopg.Error) as error:
                if first_line(error) != problem:
                    problem = first_line(error)
                    log.warning("a view is not indexed", view=self._index.source, error=problem)
                self._stopping.wait(self._follow.retry_seconds / 10)
            finally:
                self._forget()
                SERVES.labels(self._index.view).set(0)

    def _takes_lock(self, driver: Driver) -> bool:
        row = driver.execute("SELECT pg_try_advisory_lock(%s, hashtext(%s))", (_LOCK, self._index.view)).fetchone()
        return row is not None and bool(row[0])

    def _resume(self, driver: Driver) -> None:
        """Goes on where the index's row says that it is."""
        row = driver.execute(_ROW, (self._index.view,)).fetchone()
        if row is None:
            return
        *at, content, parked, since, name = row
        self._row = Token(*at)
        self._row_name = self._serving = name or ""
        self._seen = _Source(self._row, content, parked, since)

    def _wait(self) -> None:
        """For the next announcement of the view; what is announced of the index comes back here too."""
        until = time.monotonic() + self._follow.heartbeat_seconds
        while not self._stopping.is_set() and (seconds := until - time.monotonic()) > 0:
            if any(f'"{self._index.source}":' in it for it in self._listener.wait(seconds)):
                return

    def _try_turn(self, driver: Driver) -> bool:
        """Whether there is more to do at once. Raises psycopg.Error."""
        try:
            return self._turn(driver)
        except EngineAway as error:
            if str(error) != self._problem:
                self._problem = str(error)
                log.warning("an index does not serve", view=self._index.source, error=self._problem)
            if isinstance(error, IndexGone):
                self._serving, self._filling = "", None
            self._announce(driver)
            self._stopping.wait(self._follow.standby_seconds)
            return True

    def _turn(self, driver: Driver) -> bool:
        """Brings the indexes to where the view is; whether there is more to do at once.

        Raises psycopg.Error, EngineAway and IndexGone.
        """
        is_due = time.monotonic() - self._said_at >= self._follow.heartbeat_seconds
        now = self._source(driver)
        if now is not None:
            if is_due and self._serving:
                self._check()
            self._choose(now)
            if now != self._seen:
                self._follow_view(driver, now)
            if self._filling is not None:
                self._fill(driver, self._filling)
            self._problem = ""
        if is_due:
            self._announce(driver)
        return self._filling is not None

    def _source(self, driver: Driver) -> _Source | None:
        row = driver.execute(_source(self._index.source), prepare=True).fetchone()
        if row is None:
            return None
        *at, content, parked, since = row
        return _Source(Token(*at), content, parked, since)

    def _check(self) -> None:
        if not self._search_engine.is_there(self._serving):
            raise IndexGone(f"the index {self._serving} is not there any more")

    def _choose(self, now: _Source) -> None:
        """Which index serves, and which is to be filled."""
        if self._serving and self._seen is not None:
            before = self._seen.at
            if before.epoch != now.at.epoch or before.position > now.at.position:
                # Another history: what has the same versions there may be something else.
                self._serving, self._filling = "", None
        wanted = self._index.name(self._prefix, now.at)
        filling = self._filling.name if self._filling is not None else self._serving
        if filling != wanted:
            self._begin(wanted, now)

    def _begin(self, name: str, now: _Source) -> None:
        log.info("an index is filled", index=name, view=self._index.source, position=now.at.position)
        self._search_engine.create(name, self._index)
        self._filling = _Filling(name)
        if not self._serving:
            # What is read from now on includes all of it.
            self._note_seen(now)

    def _note_seen(self, now: _Source) -> None:
        self._seen = now
        self._looked_at = time.monotonic()

    def _follow_view(self, driver: Driver, now: _Source) -> None:
        keys = self._changed(driver, now)
        if keys is None:
            self._serving = ""
            self._begin(self._index.name(self._prefix, now.at), now)
            return
        targets = list(dict.fromkeys(it for it in (self._serving, self._filling and self._filling.name) if it))
        if keys:
            self._write(targets, self._rows_of(driver, keys, now.at.position))
            self._search_engine.refresh(targets)
        self._note_seen(now)
        if self._serving:
            self._move(driver)

    def _changed(self, driver: Driver, now: _Source) -> Sequence[uuid.UUID] | None:
        """The keys of the rows that may be others than those that were seen; None where nobody can say."""
        seen = self._seen
        assert seen is not None
        if now.content is not None and now.content == seen.content:
            return ()
        if time.monotonic() - self._looked_at > self._log_keeps / 2:
            # Where the log reaches back it is whole: it is purged from its beginning.
            row = driver.execute(_REACHES_BACK, (self._index.source, seen.at.position)).fetchone()
            if row is None or not row[0]:
                return None
        # Those of the position itself once more: a row that was parked may have taken in what waited since.
        found = driver.execute(_CHANGED, (self._index.source, seen.at.position, _MOST_CHANGED + 1)).fetchall()
        if len(found) > _MOST_CHANGED or (not found and now.content is not None):
            return None
        return [key for (key,) in found]

    def _fill(self, driver: Driver, filling: _Filling) -> None:
        """Puts the next rows into it."""
        found = driver.execute(_after(self._index), (filling.after, _ROWS)).fetchall()
        self._write([filling.name], map(self._document, found))
        if len(found) == _ROWS:
            filling.after = uuid.UUID(found[-1][0])
            return
        self._search_engine.refresh([filling.name])
        old, self._serving, self._filling = self._row_name, filling.name, None
        self._move(driver)
        log.info("an index serves", index=self._serving, view=self._index.source)
        if old not in {"", self._serving}:
            self._search_engine.drop(old)

    def _rows_of(self, driver: Driver, keys: Sequence[uuid.UUID], position: int) -> Iterable[Document]:
        for first in range(0, len(keys), _ROWS):
            some = keys[first : first + _ROWS]
            found = driver.execute(_by_key(self._index), (array("UUID", some),), prepare=True).fetchall()
            yield from map(self._document, found)
            gone = {it.hex for it in some} - {row[0] for row in found}
            yield from (self._document((it, position)) for it in gone)

    def _document(self, row: Sequence[Any]) -> Document:
        key, position, *values = row
        return Document(key, position, dict(zip(self._index.fields, values, strict=False)))

    def _write(self, names: Sequence[str], documents: Iterable[Document]) -> None:
        written = self._search_engine.write(names, documents)
        DOCUMENTS.labels(self._index.view).inc(written.taken)
        REFUSED.labels(self._index.view).inc(written.refused)

    def _move(self, driver: Driver) -> None:
        """Says where the index is that serves: what was seen is in it, and searches find it."""
        seen = self._seen
        assert seen is not None
        # Which time the view was made is in the index's name. Who has seen an answer of either is not to wait.
        at = replace(seen.at, generation=0)
        values = {
            "epoch": at.epoch,
            "position": at.position,
            "mark": at.mark,
            "content": seen.content,
            "parked": seen.parked,
            "since": seen.parked_since,
            "name": self._serving,
            "view": self._index.view,
            "before": self._row.position if self._row is not None else 0,
        }
        if self._row is None or not driver.execute(_MOVE, values, prepare=True).rowcount:
            driver.execute(_INSERT, values)
        self._row, self._row_name = at, self._serving
        self._problem = ""
        metrics.position_of(self._index.view).set(at.position)
        self._announce(driver)

    def _announce(self, driver: Driver) -> None:
        self._said_at = time.monotonic()
        view, at = self._index.view, self._row
        serves = bool(self._serving) and not self._problem and at is not None
        SERVES.labels(view).set(serves)
        said = Announcement(
            feed_epoch=at.epoch if at is not None else _FIRST,
            positions={view: at.position} if at is not None else {},
            cache_epochs={},
            marks={view: at.mark} if at is not None else {},
            problems={} if serves else {view: INDEX_AWAY},
        )
        with self._readers.trying(driver):
            driver.execute("SELECT pg_notify(%s, %s)", (CHANNEL, said.encode()), prepare=True)


_AT = "p.feed_epoch, p.position, p.mark, p.generation, p.content, p.parked"
_ROW = f"SELECT {_AT}, p.parked_since, p.index_name FROM {newest('%s')} AS p"  # noqa: S608 - names of ours, here and below


def _source(view: str) -> str:
    quoted, parked = f"'{view}'", parked_in({"p": view})
    return f"SELECT {_AT}, k.since FROM {newest(quoted)} AS p CROSS JOIN LATERAL {parked} AS k WHERE p.filled"  # noqa: S608


_REACHES_BACK = f"SELECT EXISTS (SELECT FROM {change.fullname} WHERE view = %s AND position <= %s)"  # noqa: S608
_CHANGED = f"SELECT DISTINCT key FROM {change.fullname} WHERE view = %s AND position >= %s LIMIT %s"  # noqa: S608
_SET = """feed_epoch = %(epoch)s, position = %(position)s, mark = %(mark)s, content = %(content)s,
parked = %(parked)s, parked_since = %(since)s, index_name = %(name)s"""
_MOVE = f"UPDATE {projection.fullname} SET {_SET} WHERE view = %(view)s AND span = %(before)s::bigint >> 6"  # noqa: S608
_INSERT = f"""
INSERT INTO {projection.fullname} (view, feed_epoch, position, mark, content, parked, parked_since, index_name)
VALUES (%(view)s, %(epoch)s, %(position)s, %(mark)s, %(content)s, %(parked)s, %(since)s, %(name)s)
"""  # noqa: S608


def _select(index: SearchIndex) -> str:
    fields = "".join(f", {it}" for it in index.fields.values())
    return f"SELECT encode(uuid_send(key), 'hex'), position{fields} FROM {index.table.fullname}"  # noqa: S608


def _by_key(index: SearchIndex) -> str:
    return f"{_select(index)} WHERE key = ANY (%s::uuid[])"


def _after(index: SearchIndex) -> str:
    return f"{_select(index)} WHERE key > %s ORDER BY key LIMIT %s"
