"""The file of what must stay true after a restore: added to, checked line by line, never holding anybody up."""

import os
import threading
import uuid
from pathlib import Path

import pytest

from tandem.commands import ledger as module
from tandem.commands.ledger import BEHIND, Entry, Kind, Ledger, LedgerDamaged, read_ledger

FIRST, SECOND, THIRD = (uuid.UUID(int=it) for it in (1, 2, 3))


def erased(*ids: uuid.UUID) -> set[Entry]:
    return {Entry(Kind.ERASED, it) for it in ids}


def test_what_was_added_is_read_once_each_whoever_added_it(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    one, other = Ledger(path), Ledger(path)
    assert one.add(Kind.ERASED, [FIRST, str(SECOND)])
    assert other.add(Kind.ERASED, [SECOND, THIRD])
    assert one.add(Kind.ERASED, [FIRST, THIRD])
    assert other.add(Kind.EPOCH, [FIRST])
    assert read_ledger(path) == erased(FIRST, SECOND, THIRD) | {Entry(Kind.EPOCH, FIRST)}
    assert len(path.read_text().splitlines()) == 4


def test_a_line_that_was_cut_off_is_no_line_and_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    Ledger(path).add(Kind.ERASED, [FIRST, SECOND])
    os.truncate(path, path.stat().st_size - 5)
    assert read_ledger(path) == erased(FIRST)
    Ledger(path).add(Kind.ERASED, [THIRD])
    assert read_ledger(path) == erased(FIRST, THIRD)


@pytest.mark.parametrize("damage", [b"9", b" ", b"\n", b"\xff"])
def test_a_damaged_line_is_named_and_written_anew_when_the_database_knows_it(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "ledger"
    Ledger(path).add(Kind.ERASED, [FIRST, SECOND])
    content = path.read_bytes()
    path.write_bytes(content[:20] + damage + content[21:])
    with pytest.raises(LedgerDamaged, match=r"ledger: damaged lines: 1"):
        read_ledger(path)
    Ledger(path).add(Kind.ERASED, [FIRST, SECOND])
    assert len(path.read_bytes()) > len(content)


def test_a_file_that_was_taken_away_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger = Ledger(path)
    ledger.add(Kind.ERASED, [FIRST])
    path.unlink()
    ledger.add(Kind.ERASED, [FIRST])
    assert read_ledger(path) == erased(FIRST)


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "missing" / "ledger")
    assert not ledger.add(Kind.ERASED, [FIRST])
    assert BEHIND._value.get() == 1


def test_what_was_written_and_did_not_come_to_the_disk_is_not_taken_for_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path / "ledger")
    assert ledger.add(Kind.ERASED, [FIRST])
    synced = os.fsync

    def fail(_file: int) -> None:
        raise OSError("the disk is broken")

    for it in (ledger, Ledger(tmp_path / "ledger")):
        monkeypatch.setattr(os, "fsync", fail)
        assert not it.add(Kind.ERASED, [SECOND])
        # Its line is in the file, and perhaps in no more than the kernel's memory.
        assert not it.add(Kind.ERASED, [SECOND])
        monkeypatch.setattr(os, "fsync", synced)
        assert it.add(Kind.ERASED, [SECOND])


def test_a_disk_that_hangs_holds_nobody_up_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on, waits = threading.Event(), threading.Event()

    def hang(_file: int) -> None:
        waits.set()
        goes_on.wait()

    monkeypatch.setattr(os, "fsync", hang)
    monkeypatch.setattr(module, "_PATIENCE_SECONDS", 0.01)
    ledger = Ledger(tmp_path / "ledger")
    assert not ledger.add(Kind.ERASED, [FIRST])
    assert waits.wait(20)
    monkeypatch.setattr(module, "_PATIENCE_SECONDS", 60)
    assert not ledger.add(Kind.ERASED, [SECOND])
    goes_on.set()
    assert ledger._writing is not None
    ledger._writing.result(20)
    assert ledger.add(Kind.ERASED, [SECOND])
    assert read_ledger(tmp_path / "ledger") == erased(FIRST, SECOND)
