"""Moves the feed's oldest partitions into the archive.

Files are written and read back, and only then is a partition dropped.

It can be ended at any moment and goes on where it was. How far it came is in the table `archive_file`:

    a file is written     it has a name that nobody knows: nothing has changed
    a row of archive_file the file was read back and is the same as the table, event by event
    the partition dropped all its events are in files that were compared with their checksums once more
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field
from sqlalchemy import Connection, text

from tandem.commands.partitions import (
    Partition,
    drop_detached,
    drop_partition,
    list_detached,
    list_partitions,
)
from tandem.feed import archive, table
from tandem.feed.archive import ArchiveFile, ArchiveProblem, ArchiveSettings
from tandem.feed.head import read_head
from tandem.internal.v1.stored_pb2 import ArchivedEvent
from tandem.runtime.actions import ActionRefused, Done
from tandem.runtime.clock import ClocksDiffer, agreed_time, utc_now
from tandem.runtime.database import create_database_engine, driver_under
from tandem.runtime.settings import DatabaseSettings
from tandem.runtime.telemetry import log

_ARCHIVE_LOCK = 7_246_004
_SECONDS_BETWEEN_LOGS = 5.0
_INDEX = "index.jsonl"


class ArchivingSettings(ArchiveSettings):
    """What is archived, and where."""

    keep_days: float = Field(
        90.0, ge=0, description="A partition is archived when its newest event was stored so long ago"
    )


class Plan(NamedTuple):
    """What is to be done. partitions: those whose events are old. archived: events that are in files already."""

    partitions: list[Partition]
    archived: int

    @property
    def events(self) -> int:
        return sum(it.end - max(it.first, 1, self.archived + 1) for it in self.partitions)

    def done(self) -> Done:
        partitions = [{"name": it.name, "first": max(it.first, 1), "last": it.end - 1} for it in self.partitions]
        fields = {"partitions": partitions, "events": self.events}
        if not partitions:
            return Done("no partition of the feed is old enough to be archived", fields)
        names = ", ".join("{name} (events {first} to {last})".format_map(it) for it in partitions)
        return Done(f"to be archived and dropped: {names}; {self.events} events are in no file yet", fields)


def plan(database: DatabaseSettings, settings: ArchivingSettings) -> Plan:
    """Changes nothing. Raises ActionRefused where the clocks differ."""
    with _connection(database) as connection:
        return _plan(connection, settings)


def run(database: DatabaseSettings, settings: ArchivingSettings) -> Done:
    """Archives and drops what is old. For one at a time. Raises ActionRefused."""
    folder = _folder(settings)
    with _connection(database) as connection:
        if not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": _ARCHIVE_LOCK}).scalar_one():
            raise ActionRefused("another one is archiving")
        try:
            for partial in folder.glob("unfinished-*.part"):
                partial.unlink()
            _drop_detached(connection)
            due = _plan(connection, settings)
            written = _Progress(due.events)
            for partition in due.partitions:
                for file in _write_files(connection, folder, partition):
                    written.add(file)
                _check_files(connection, folder, partition)
                drop_partition(connection, partition)
                log.info("dropped a partition of the feed, whose events are archived", partition=partition.name)
        except (ArchiveProblem, OSError) as error:
            raise ActionRefused(f"nothing was dropped that is not archived: {error}") from error
    return Done(
        f"archived {written.events} events in {written.files} files, {written.bytes} bytes; dropped"
        f" {len(due.partitions)} partitions",
        {
            "events": written.events,
            "files": written.files,
            "bytes": written.bytes,
            "dropped": [it.name for it in due.partitions],
        },
    )


def verify(database: DatabaseSettings, settings: ArchiveSettings) -> Done:
    """Reads the whole archive: each file with its checksum, its frames and its positions. Raises ActionRefused."""
    folder = _folder(settings)
    problems: list[str] = []
    with _connection(database) as connection:
        files = archive.list_files(connection)
        expected = 1
        progress = _Progress(files[-1].last if files else 0)
        for file in files:
            if file.first != expected:
                problems.append(f"events {expected} to {file.first - 1} are in no file")
            try:
                positions = [it.position for frame in archive.read_file(folder, file) for it in frame]
                if positions != list(range(file.first, file.last + 1)):
                    problems.append(f"{file.name} has not the events {file.first} to {file.last}")
            except ArchiveProblem as error:
                problems.append(str(error))
            expected = file.last + 1
            progress.add(file)
        oldest = connection.execute(text(f"SELECT min(position) FROM {table.event.fullname}")).scalar_one()  # noqa: S608
        head = read_head(connection).position
        if (oldest or head + 1) > expected:
            problems.append(f"events {expected} to {(oldest or head + 1) - 1} are neither in a file nor in the table")
    if problems:
        raise ActionRefused("; ".join(problems))
    count = expected - 1
    return Done(f"{len(files)} files with {count} events are what was archived", {"files": len(files), "events": count})


def _folder(settings: ArchiveSettings) -> Path:
    if settings.folder is None:
        raise ActionRefused("ARCHIVE__FOLDER is not set: where are the files to be?")
    if not settings.folder.is_dir():
        raise ActionRefused(f"{settings.folder} is no folder")
    return settings.folder


@contextmanager
def _connection(database: DatabaseSettings) -> Iterator[Connection]:
    engine = create_database_engine(
        database, name="tandem-command-archive", pool_size=1, autocommit=True, durable=True, patient=True
    )
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def _plan(connection: Connection, settings: ArchivingSettings) -> Plan:
    try:
        before = agreed_time(connection, utc_now) - timedelta(days=settings.keep_days)
    except ClocksDiffer as error:
        raise ActionRefused(str(error)) from error
    head = read_head(connection).position
    due = []
    for it in list_partitions(connection):
        if it.end > head or not (it.leaving or _newest(connection, it) < before):
            # Those behind it are younger.
            break
        due.append(it)
    files = archive.list_files(connection)
    return Plan(due, files[-1].last if files else 0)


def _newest(connection: Connection, partition: Partition) -> datetime:
    newest: datetime | None = connection.execute(
        text(f"SELECT recorded_at FROM {table.event.fullname} WHERE position = :last"),  # noqa: S608
        {"last": partition.end - 1},
    ).scalar_one_or_none()
    if newest is None:
        raise ActionRefused(f"event {partition.end - 1} is not in the feed, whose head is behind it")
    return newest


class _Progress:
    """Says in the log how far it is."""

    def __init__(self, all_events: int) -> None:
        self.events = self.files = self.bytes = 0
        self._all = all_events
        self._began = self._logged = time.monotonic()

    def add(self, file: ArchiveFile) -> None:
        self.events += file.last - file.first + 1
        self.files += 1
        self.bytes += file.size
        now = time.monotonic()
        if now >= self._logged + _SECONDS_BETWEEN_LOGS:
            self._logged = now
            rate = self.events / (now - self._began)
            left = round((self._all - self.events) / rate)
            log.info("archive", events=self.events, of=self._all, events_per_second=round(rate), seconds_left=left)


_ROWS = f"""
SELECT position, kind, payload, subject_id, envelope, mark, version,
  CAST(extract(epoch FROM recorded_at) * 1000000 AS bigint)
FROM (
  SELECT *, sum(octet_length(payload)) OVER (ORDER BY position ROWS UNBOUNDED PRECEDING) AS bytes
  FROM (
    SELECT * FROM {table.event.fullname} WHERE position > %s AND position < %s ORDER BY position LIMIT %s
  ) AS next
) AS e WHERE bytes - octet_length(payload) < %s ORDER BY position
"""  # noqa: S608


def _read(connection: Connection, after: int, end: int) -> list[ArchivedEvent]:
    """A frame of the events between two positions. Raises ArchiveProblem where one is missing."""
    limits = (archive.FRAME_EVENTS, archive.FRAME_BYTES)
    rows = driver_under(connection).execute(_ROWS, (after, end, *limits), binary=True).fetchall()
    events = [_archived(row) for row in rows]
    if [it.position for it in events] != list(range(after + 1, after + len(events) + 1)):
        raise ArchiveProblem(f"the feed does not have all events behind {after}")
    return events


def _archived(row: Sequence[Any]) -> ArchivedEvent:
    position, kind, payload, subject, envelope, mark, version, micros = row
    return ArchivedEvent(
        position=position,
        kind=kind,
        payload=payload,
        subject_id=None if subject is None else subject.bytes,
        envelope=envelope,
        mark=mark,
        version=version,
        recorded_at_micros=micros,
    )


def _write_files(connection: Connection, folder: Path, partition: Partition) -> Iterator[ArchiveFile]:
    """Those that are missing for a partition. Each is in `archive_file` when it is given."""
    while (after := max(partition.first - 1, _archived_through(connection))) < partition.end - 1:
        file = archive.write_file(folder, _frames(lambda last: _read(connection, last, partition.end), after))
        last = file.first - 1
        for written in archive.read_file(folder, file):
            if written != _read(connection, last, file.last + 1):
                raise ArchiveProblem(f"{file.name} is not what was written to it")
            last = written[-1].position
        _append_to_index(folder, file)
        connection.execute(table.archive_file.insert().values(**file._asdict()))
        yield file


def _frames(read: Callable[[int], list[ArchivedEvent]], after: int) -> Iterator[Sequence[ArchivedEvent]]:
    events = size = 0
    while events < archive.FILE_EVENTS and size < archive.FILE_BYTES and (frame := read(after)):
        yield frame
        after = frame[-1].position
        events += len(frame)
        size += sum(len(it.payload) for it in frame)
    if not events:
        raise ArchiveProblem(f"the feed does not have event {after + 1}")


def _archived_through(connection: Connection) -> int:
    last = connection.execute(text(f"SELECT max(last) FROM {table.archive_file.fullname}")).scalar_one()  # noqa: S608
    return last or 0


def _append_to_index(folder: Path, file: ArchiveFile) -> None:
    """The folder says what is in it, too: for who has the files and not the database."""
    line = json.dumps(file._asdict() | {"sha256": file.sha256.hex()})
    with (folder / _INDEX).open("a", encoding="utf-8") as index:
        index.write(f"{line}\n")
        index.flush()
        os.fsync(index.fileno())
    archive.sync_folder(folder)


def _check_files(connection: Connection, folder: Path, partition: Partition) -> None:
    """That a partition's events are in the archive, before it is dropped. Raises ArchiveProblem."""
    first = max(partition.first, 1)
    for file in archive.list_files(connection):
        if file.first <= first <= file.last:
            archive.verified_bytes(folder, file)
            first = file.last + 1
    if first < partition.end:
        raise ArchiveProblem(f"event {first} is in no file")


def _drop_detached(connection: Connection) -> None:
    """What a run that was interrupted took out of the feed and did not drop."""
    through = _archived_through(connection)
    for name in list_detached(connection):
        last = connection.execute(text(f"SELECT max(position) FROM {table.SCHEMA}.{name}")).scalar_one()  # noqa: S608
        if last is not None and last <= through:
            drop_detached(connection, name)
            log.info("dropped a partition of the feed, whose events are archived", partition=name)
