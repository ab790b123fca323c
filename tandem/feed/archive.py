"""The feed's archive: its oldest events, in files of a folder instead of the write database.

A file has a row in the table `archive_file`, with its checksum: the database says what is archived, and who reads a
file knows that it is the one. `zstd -d` takes all events out of a file, which is, one behind the other:

    frames             each a zstd frame with an ArchivedEvents, FRAME_EVENTS of them and FRAME_BYTES at most
    a skippable frame  an ArchiveContents, which says where the frames are, and its length in 4 bytes

A file is written once and never changed. What may still change stays in the database: the keys of data subjects, so
that an erased person is erased here too, and supplements.
"""

import hashlib
import os
import struct
import threading
import uuid
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import zstandard
from pydantic import Field
from sqlalchemy import Connection

from tandem.feed import table
from tandem.internal.v1.stored_pb2 import ArchiveContents, ArchivedEvent, ArchivedEvents
from tandem.runtime.arrays import array
from tandem.runtime.database import driver_of
from tandem.runtime.settings import Block

FRAME_EVENTS = 1000
FRAME_BYTES = 2**20
"""Of payloads: who wants one event reads a frame."""
FILE_EVENTS = 100_000
FILE_BYTES = 256 * 2**20
"""Of payloads: a file is looked through in a second, and an archive of 10^9 events has 10,000 of them."""

# Higher ones took three times as long for 2 % fewer bytes: ids, and what is sealed, have no pattern.
_LEVEL = 9
_SKIPPABLE = struct.Struct("<II")
_SKIPPABLE_MAGIC = 0x184D2A50
_LENGTH = struct.Struct("<I")
# Frames that are kept parsed: a rebuild reads on in one, and so does each of some followers.
_FRAMES_KEPT = 8
_FILES_KEPT = 64
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

K = TypeVar("K")
V = TypeVar("V")


class ArchiveSettings(Block):
    """The feed's archive, for who reads events."""

    folder: Path | None = Field(
        None,
        description="The folder with the files that `tandem feed archive` wrote; without it archived events are"
        " not read",
    )


class ArchiveProblem(Exception):
    """The archive cannot be read; the message names the file or the setting."""


class NoFolder(ArchiveProblem):
    """This program was not told where the archive is."""


class ArchiveFile(NamedTuple):
    """A row of `archive_file`: events `first` to `last`, without a gap, in the file `name` of `size` bytes."""

    first: int
    last: int
    name: str
    sha256: bytes
    size: int


class FramePlace(NamedTuple):
    """Where the frame is in a file that begins with event `first`."""

    first: int
    offset: int
    size: int


class Archive:
    """Reads archived events. For any threads.

    through: events up to here were found to be in the archive alone; 0 while nothing is known.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self.through = 0
        self._lock = threading.Lock()
        self._contents: OrderedDict[str, list[FramePlace]] = OrderedDict()
        self._frames: OrderedDict[tuple[str, int], Sequence[ArchivedEvent]] = OrderedDict()

    def read(self, connection: Connection, after: int, limit: int, max_bytes: int) -> list[ArchivedEvent]:
        """At most `limit` events that follow a position without a gap; none where the archive does not have the next.

        No more are returned than hold `max_bytes` and the event with which they reach it. Raises ArchiveProblem.
        """
        found: list[ArchivedEvent] = []
        size = 0
        while len(found) < limit and size < max_bytes:
            if (file := _file_with(connection, after + 1)) is None:
                break
            try:
                events = self._events_of(file, after + 1, min(limit - len(found), FRAME_EVENTS))
            except ArchiveProblem:
                if found:
                    break
                raise
            for event in events:
                if size >= max_bytes:
                    break
                found.append(event)
                size += len(event.payload)
                after = event.position
        return found

    def event_at(self, connection: Connection, position: int) -> ArchivedEvent | None:
        """None where the archive does not have it. Raises ArchiveProblem."""
        return next(iter(self.read(connection, position - 1, 1, 1)), None)

    def _events_of(self, file: ArchiveFile, first: int, most: int) -> Sequence[ArchivedEvent]:
        """At most so many of a file from a position on, of one frame: at least one."""
        begins = [it.first for it in self._contents_of(file)]
        number = bisect_right(begins, first) - 1
        start = first - begins[number]
        return self._frame(file, number)[start : start + most]

    def _contents_of(self, file: ArchiveFile) -> list[FramePlace]:
        """Where a file's frames are. The file is compared with its checksum, once."""
        with self._lock:
            known = self._contents.get(file.name)
        if known is None:
            data = verified_bytes(self._folder, file)
            known = _contents(data, file.name)
            with self._lock:
                _keep(self._contents, file.name, known, _FILES_KEPT)
        return known

    def _frame(self, file: ArchiveFile, number: int) -> Sequence[ArchivedEvent]:
        with self._lock:
            known = self._frames.get((file.name, number))
        if known is None:
            _, offset, size = self._contents_of(file)[number]
            try:
                with _path(self._folder, file).open("rb") as opened:
                    opened.seek(offset)
                    known = _parse_frame(opened.read(size), file.name)
            except OSError as error:
                raise _unreadable(file.name, error) from error
            with self._lock:
                _keep(self._frames, (file.name, number), known, _FRAMES_KEPT)
        return known


def _keep(kept: OrderedDict[K, V], key: K, value: V, most: int) -> None:
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)


def recorded_at(event: ArchivedEvent) -> datetime:
    return _EPOCH + timedelta(microseconds=event.recorded_at_micros)


# The index.


_COLUMNS = "first, last, name, sha256, size"
_FILE_WITH = f"""
SELECT {_COLUMNS} FROM {table.archive_file.fullname} WHERE first <= %s AND last >= %s ORDER BY first DESC LIMIT 1
"""  # noqa: S608


def _file_with(connection: Connection, position: int) -> ArchiveFile | None:
    with driver_of(connection) as driver:
        row = driver.execute(_FILE_WITH, (position, position), binary=True).fetchone()
    return None if row is None else ArchiveFile(*row)


def list_files(connection: Connection) -> list[ArchiveFile]:
    """All of them, in the order of their positions."""
    with driver_of(connection) as driver:
        rows = driver.execute(
            f"SELECT {_COLUMNS} FROM {table.archive_file.fullname} ORDER BY first",  # noqa: S608
            binary=True,
        ).fetchall()
    return [ArchiveFile(*row) for row in rows]


_BESIDE = f"""
SELECT (SELECT key FROM {table.subject_key.fullname} AS k WHERE k.subject_id = e.subject_id),
  (SELECT payload FROM {table.event_supplement.fullname} AS s WHERE s.position = e.position)
FROM unnest(CAST(%s AS bigint[]), CAST(%s AS uuid[])) WITH ORDINALITY AS e (position, subject_id, ordinal)
ORDER BY ordinal
"""  # noqa: S608


def rows_of(connection: Connection, events: Sequence[ArchivedEvent]) -> list[tuple[Any, ...]]:
    """The events as `scan_events` has them: with the keys and supplements that the database has today."""
    subjects = [str(uuid.UUID(bytes=it.subject_id)) if it.HasField("subject_id") else None for it in events]
    with driver_of(connection) as driver:
        positions = array("BIGINT", [it.position for it in events])
        beside = driver.execute(_BESIDE, (positions, array("UUID", subjects)), binary=True).fetchall()
    return [
        (
            it.position,
            it.kind,
            it.payload,
            key,
            it.envelope if it.HasField("envelope") else None,
            it.version,
            supplement,
            it.mark if it.HasField("mark") else None,
            recorded_at(it),
        )
        for it, (key, supplement) in zip(events, beside, strict=True)
    ]


# Files.


def write_file(folder: Path, frames: Iterable[Sequence[ArchivedEvent]]) -> ArchiveFile:
    """Writes a file, which is on disk when this returns. Its name has its checksum: no other one is written over.

    frames: at least one, none empty. Raises OSError.
    """
    digest = hashlib.sha256()
    contents = ArchiveContents()
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    partial = folder / f"unfinished-{os.getpid()}.part"
    size = last = 0
    with partial.open("wb") as file:
        for events in frames:
            compressed = compressor.compress(ArchivedEvents(events=events).SerializeToString())
            contents.frames.add(first=events[0].position, offset=size, size=len(compressed))
            last = events[-1].position
            size += file.write(compressed)
            digest.update(compressed)
        index = contents.SerializeToString()
        index += _LENGTH.pack(len(index))
        end = _SKIPPABLE.pack(_SKIPPABLE_MAGIC, len(index)) + index
        size += file.write(end)
        digest.update(end)
        file.flush()
        os.fsync(file.fileno())
        # So that who reads it back reads the disk.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    first = contents.frames[0].first
    name = f"events-{first:020}-{last:020}-{digest.hexdigest()[:12]}.zst"
    partial.rename(folder / name)
    sync_folder(folder)
    return ArchiveFile(first, last, name, digest.digest(), size)


def sync_folder(folder: Path) -> None:
    """So that a name that was given in it survives a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_file(folder: Path, file: ArchiveFile) -> Iterator[Sequence[ArchivedEvent]]:
    """A file's frames, in their order; the file is what its checksum says. Raises ArchiveProblem."""
    data = verified_bytes(folder, file)
    for _, offset, size in _contents(data, file.name):
        yield _parse_frame(data[offset : offset + size], file.name)


def verified_bytes(folder: Path | None, file: ArchiveFile) -> bytes:
    """What is in a file. Raises ArchiveProblem where that is not what was archived."""
    try:
        data = _path(folder, file).read_bytes()
    except OSError as error:
        raise _unreadable(file.name, error) from error
    if hashlib.sha256(data).digest() != file.sha256:
        raise ArchiveProblem(f"{file.name} of the archive is not what was archived: its checksum is another one")
    return data


def _path(folder: Path | None, file: ArchiveFile) -> Path:
    if folder is None:
        raise NoFolder(f"{file.name} is in the archive, and this program has no ARCHIVE__FOLDER")
    return folder / file.name


def _unreadable(name: str, error: OSError) -> ArchiveProblem:
    return ArchiveProblem(f"{name} of the archive cannot be read: {error.strerror or error}")


def _contents(data: bytes, name: str) -> list[FramePlace]:
    [length] = _LENGTH.unpack(data[-_LENGTH.size :])
    end = len(data) - _LENGTH.size
    frames = ArchiveContents.FromString(data[end - length : end]).frames
    if not frames:
        raise ArchiveProblem(f"{name} of the archive has no events")
    return [FramePlace(it.first, it.offset, it.size) for it in frames]


def _parse_frame(compressed: bytes, name: str) -> Sequence[ArchivedEvent]:
    try:
        return list(ArchivedEvents.FromString(zstandard.ZstdDecompressor().decompress(compressed)).events)
    except zstandard.ZstdError as error:
        # The file was changed since its checksum was compared.
        raise ArchiveProblem(f"{name} of the archive is damaged: {error}") from error
