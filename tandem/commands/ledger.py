"""The ledger: a file beside the database, of what must stay true when the database is restored from a backup.

That is which data subjects were erased, so that a backup does not bring them back, and which epochs the feed has had,
so that views of one that the backup does not know are known as its own. Lines are only ever added:

    <CRC-32 of the rest> <erased or epoch> <UUID> <when it was written down>
"""

import fcntl
import os
import threading
import uuid
import zlib
from collections.abc import Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from prometheus_client import Gauge
from sqlalchemy import Connection, select, text

from tandem.feed.head import read_head
from tandem.feed.table import subject_key
from tandem.feed.token import epoch_order
from tandem.runtime.clock import utc_now
from tandem.runtime.telemetry import log

BEHIND = Gauge("tandem_ledger_behind", "1 while something that belongs into the ledger is not in it")
OVERDUE = Gauge("tandem_restore_overdue", "1 while the write database is from before what the ledger says")

# What is asked of a disk takes milliseconds. One that hangs must not keep commands waiting.
_PATIENCE_SECONDS = 1.0


class Kind(StrEnum):
    ERASED = "erased"
    EPOCH = "epoch"


class Entry(NamedTuple):
    """A data subject that was erased, or an epoch of the feed."""

    kind: Kind
    id: uuid.UUID


class LedgerDamaged(Exception):
    """Lines of a ledger are not what was written; the message names file and lines."""


def read_ledger(path: Path) -> set[Entry]:
    """Raises LedgerDamaged and OSError. A last line without its end was never answered for, and is passed over."""
    entries, damaged = _parse(path.read_bytes())
    if damaged:
        raise LedgerDamaged(f"{path}: damaged lines: {', '.join(map(str, damaged))}")
    return entries


def _parse(content: bytes) -> tuple[set[Entry], list[int]]:
    """What is written, and the numbers of the lines that are damaged."""
    entries: set[Entry] = set()
    damaged: list[int] = []
    whole, _, _ = content.rpartition(b"\n")
    for number, line in enumerate(whole.split(b"\n") if whole else (), 1):
        check, _, rest = line.partition(b" ")
        try:
            if check != _check(rest):
                raise ValueError("checksum")
            kind, identity, _ = rest.decode("ascii").split(" ")
            entries.add(Entry(Kind(kind), uuid.UUID(identity)))
        except ValueError:
            damaged.append(number)
    return entries, damaged


def _check(rest: bytes) -> bytes:
    return b"%08x" % zlib.crc32(rest)


def find_kept(connection: Connection, ids: Collection[uuid.UUID]) -> list[uuid.UUID]:
    """Those of the data subjects whose keys are there: whose personal data can be read."""
    return list(connection.execute(_KEPT, {"ids": list(ids)}).scalars()) if ids else []


_KEPT = text(f"SELECT subject_id FROM {subject_key.fullname} WHERE subject_id = ANY(:ids) AND key IS NOT NULL")  # noqa: S608


class Ledger:
    """For any thread. It writes on a thread of its own, so that a disk that hangs holds nobody up for longer than 1 s.

    What could not be written is counted and logged, and `catch_up` writes it when it can be: the database knows it.
    """

    def __init__(self, path: Path | None) -> None:
        """path: None to keep none. Several servers may write to one file, if its file system knows locks."""
        self._path = path
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "ledger")
        self._writing: Future[None] | None = None
        # What the file had when it was read or written last; and its inode and size then.
        self._known: set[Entry] = set()
        self._state: tuple[int, int] | None = None

    @property
    def is_kept(self) -> bool:
        return self._path is not None

    def add(self, kind: Kind, ids: Iterable[str | uuid.UUID]) -> bool:
        """Whether it is on disk. Never raises."""
        entries = [Entry(kind, uuid.UUID(str(it))) for it in ids]
        if self._path is None:
            return False
        with self._lock:
            if self._writing is not None and not self._writing.done():
                # It hangs. Nobody waits for it a second time.
                BEHIND.set(1)
                return False
            self._writing = self._thread.submit(self._write, self._path, entries)
        try:
            self._writing.result(_PATIENCE_SECONDS)
        except (OSError, TimeoutError) as error:
            BEHIND.set(1)
            log.error("the ledger cannot be written", path=str(self._path), error=str(error) or "it takes too long")
            return False
        return True

    def catch_up(self, connection: Connection) -> None:
        """Writes down what the database has and the file has not: from a server that ended before it did.

        Says so where the database is from before what is written down. Raises SQLAlchemyError.
        """
        if self._path is None:
            return
        epoch = read_head(connection).epoch
        erased = connection.execute(select(subject_key.c.subject_id).where(subject_key.c.key.is_(None))).scalars().all()
        if not self.add(Kind.EPOCH, [epoch]) or not self.add(Kind.ERASED, erased):
            return
        BEHIND.set(0)
        is_old = any(epoch_order(it.id) > epoch_order(epoch) for it in self._known if it.kind is Kind.EPOCH)
        others = {it.id for it in self._known if it.kind is Kind.ERASED}.difference(erased)
        overdue = is_old or bool(find_kept(connection, others))
        OVERDUE.set(overdue)
        if overdue:
            log.error(
                "the write database is from before what the ledger says: stop the servers and run `tandem restore`"
            )

    def _write(self, path: Path, entries: Collection[Entry]) -> None:
        """On the ledger's thread."""
        with path.open("a+b") as file:
            # Until the file is closed.
            fcntl.flock(file, fcntl.LOCK_EX)
            self._read_again(path, file.fileno())
            new = [it for it in entries if it not in self._known]
            if new:
                at = utc_now().isoformat(timespec="seconds")
                rests = [f"{it.kind} {it.id} {at}".encode("ascii") for it in new]
                file.write(b"".join(b"%s %s\n" % (_check(rest), rest) for rest in rests))
                file.flush()
                os.fsync(file.fileno())
            self._known.update(new)
            self._state = _state_of(file.fileno())

    def _read_again(self, path: Path, file: int) -> None:
        """If somebody else has written to it, or it is another file, or a new one."""
        state = _state_of(file)
        if state == self._state:
            return
        content = path.read_bytes()
        self._known, damaged = _parse(content)
        if damaged:
            log.error("lines of the ledger are damaged", path=str(path), lines=damaged)
        # The rest of a line that was cut off would damage the next one.
        os.ftruncate(file, content.rfind(b"\n") + 1)
        # Whoever wrote it, this process too, may have failed or ended before it was on the disk.
        os.fsync(file)
        _sync_folder(path.parent)
        self._state = _state_of(file)


def _state_of(file: int) -> tuple[int, int]:
    found = os.fstat(file)
    return found.st_ino, found.st_size


def _sync_folder(folder: Path) -> None:
    """So that the new file is found after a crash of the machine."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
