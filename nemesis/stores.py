"""Compares all stores when nothing happens: tables with the feed, views with a replay, the cache with the views."""

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import psycopg
from pydantic import SecretStr
from sqlalchemy import Connection, select, text

from nemesis.checker import Feed, Violation
from nemesis.shop import receipts, written_states
from projector.app import VIEWS
from shop.events import EVENTS
from shop.views import CACHED_VIEWS
from tandem.feed.reader import read_events
from tandem.read_store.announcement import Announcement
from tandem.read_store.cache import CacheEpochs, Ring, Signer, decode_entry, key_prefix
from tandem.read_store.nodes import node_client
from tandem.read_store.tables import ALL_NEWEST, CHANNEL, parked, written_columns
from tandem.runtime.database import transaction
from tandem.runtime.settings import DatabaseSettings
from tandem.testing.stack import wait_until
from tests.support.projecting import fold

_KEYS_TOGETHER = 100

Rows = dict[bytes, tuple[Any, ...]]


def _transaction(url: str) -> AbstractContextManager[Connection]:
    return transaction(DatabaseSettings(url=SecretStr(url)), "nemesis")


def wait_until_followed(write_url: str, read_url: str, seconds: float = 60.0) -> None:
    """Until every view has all events. AssertionError after so many seconds, with the views' positions."""
    with psycopg.connect(write_url, autocommit=True) as write, psycopg.connect(read_url, autocommit=True) as read:

        def positions() -> list[tuple[str, int]]:
            found: list[Any] = read.execute("SELECT view, position FROM tandem_read.projection").fetchall()
            return found

        def head() -> int:
            [position] = write.execute("SELECT max(position) FROM tandem_write.feed_head").fetchone() or (0,)
            return int(position)

        end = time.monotonic() + seconds
        while {it for _, it in positions()} != {head()}:
            assert time.monotonic() < end, f"the feed is at {head()}, the views stay at {positions()}"
            time.sleep(0.05)


def compare(write_url: str, read_url: str, feed: Feed, nodes: Mapping[str, str]) -> list[Violation]:
    """What differs, when nothing happens any more. feed: all of it.

    nodes: of the cache, where each is reached by its address as the projectors have it; "host:port" both.
    """
    with psycopg.connect(write_url) as write:
        found = [*_tables_hold_the_feed(write, feed), *_receipts_match(write, feed)]
    with _transaction(read_url) as read:
        views = {view: _rows(read, view) for view in VIEWS.projections}
        found += _nothing_is_parked(read)
    found += _views_match(write_url, views)
    if nodes:
        epochs = _announced_epochs(read_url)
        for view in CACHED_VIEWS:
            found += _cache_matches(view, views[view], epochs[view], nodes)
    return found


def _tables_hold_the_feed(write: "psycopg.Connection[Any]", feed: Feed) -> Iterator[Violation]:
    written, expected = written_states(write), feed.last()
    for subject in sorted(written.keys() | expected.keys()):
        if written.get(subject) != expected.get(subject):
            text = f"{subject} is written as {written.get(subject)}, its events make {expected.get(subject)}"
            yield Violation("G2", text)


def _receipts_match(write: "psycopg.Connection[Any]", feed: Feed) -> Iterator[Violation]:
    """Each command with events has its receipt, and no receipt is of a command without."""
    stored = {it: position for it, position in receipts(write).items() if position}
    for request_id in sorted(stored.keys() | feed.of_request.keys()):
        position, events = stored.get(request_id), feed.of_request.get(request_id, [])
        if not events or position != events[-1]:
            yield Violation("G2", f"request {request_id} has events {events}, and a receipt for {position}")


def _rows(read: Connection, view: str) -> Rows:
    rows = read.execute(select(*written_columns(VIEWS.projections[view].table)))
    return {key.bytes: _comparable(rest) for key, *rest in rows}


def _comparable(row: Iterable[Any]) -> tuple[Any, ...]:
    """Ids are text where they are made, and UUIDs where they are read."""
    return tuple(str(it) if isinstance(it, uuid.UUID) else it for it in row)


def _nothing_is_parked(read: Connection) -> Iterator[Violation]:
    """What a fault has parked was redriven when the fault ended, and nothing else may be."""
    listed = select(parked.c.view, parked.c.key, parked.c.position, parked.c.error).where(parked.c.error.is_not(None))
    for it in read.execute(listed):
        yield Violation("G9", f"{it.view} {it.key} is parked since event {it.position}: {it.error}")
    for it in read.execute(text(f"SELECT view, parked FROM {ALL_NEWEST} AS p WHERE parked > 0")):
        yield Violation("G9", f"{it.view} says that {it.parked} of its rows are parked")


def _views_match(write_url: str, views: dict[str, Rows]) -> Iterator[Violation]:
    """Each view is what one replay of all events makes, byte for byte."""
    with _transaction(write_url) as write:
        events, part = [], read_events(write, EVENTS, 0, 10_000).events
        while part:
            events += part
            part = read_events(write, EVENTS, part[-1].position, 10_000).events
    for view, rows in views.items():
        changes = fold(VIEWS.projections[view], events, {})
        assert changes.stopped_by is None, changes.stopped_by
        made = {
            key: _comparable((it.position, *it.columns, it.value)) for key, it in changes.rows.items() if it is not None
        }
        for key in made.keys() | rows.keys():
            if made.get(key) != rows.get(key):
                yield Violation(
                    "G5", f"{view} {uuid.UUID(bytes=key)} is {rows.get(key)}, a replay makes {made.get(key)}"
                )


def _announced_epochs(read_url: str) -> dict[str, CacheEpochs]:
    """Of all cached views, as query servers receive them now."""
    found: dict[str, CacheEpochs] = {}
    with psycopg.connect(read_url, autocommit=True) as connection:
        connection.execute(f"LISTEN {CHANNEL}".encode())

        def receive() -> bool:
            for it in connection.notifies(timeout=0.1):
                found.update(Announcement.decode(it.payload).cache_epochs)
            return found.keys() >= CACHED_VIEWS

        wait_until(receive, "the cached views are announced")
    return found


def _cache_matches(view: str, rows: Rows, epochs: CacheEpochs, nodes: Mapping[str, str]) -> Iterator[Violation]:
    ring, signer = Ring(list(epochs)), Signer()
    keys: dict[str, list[bytes]] = {}
    for key in rows:
        keys.setdefault(ring.node_of(key.hex()), []).append(key)
    for node, of_node in keys.items():
        epoch = epochs[node]
        if epoch is None:
            continue
        names = {key_prefix(view, epoch) + key.hex(): key.hex() for key in of_node}
        listed = list(names)
        entries: dict[str, bytes] = {}
        client = node_client(nodes[node], timeout=5)
        try:
            for start in range(0, len(listed), _KEYS_TOGETHER):
                asked = listed[start : start + _KEYS_TOGETHER]
                entries |= signer.unsigned(client.ask(asked).answer(), names)
        finally:
            client.close()
        for digits, entry in entries.items():
            cached = decode_entry(entry)
            stored = rows[bytes.fromhex(digits)][-1]
            if cached is not None and cached != stored:
                yield Violation("G7", f"the cache has {cached!r} of {view} {uuid.UUID(digits)}, the view {stored!r}")
