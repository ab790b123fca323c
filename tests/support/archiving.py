"""A feed with small partitions, and its archive."""

from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, text

from tandem.commands import archiving
from tandem.commands.archiving import ArchivingSettings
from tandem.commands.partitions import ensure_partitions, list_partitions
from tandem.feed import archive
from tandem.runtime.actions import Done
from tandem.runtime.settings import DatabaseSettings

PARTITION = 20
"""Positions in a partition."""


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of at most 14 events in frames of 7: a partition is several of both."""
    monkeypatch.setattr(archive, "FRAME_EVENTS", 7)
    monkeypatch.setattr(archive, "FILE_EVENTS", 14)


def small_partitions(write: Engine) -> None:
    """For a feed that is empty: in place of what the migrations made."""
    with write.begin() as connection:
        for it in list_partitions(connection):
            connection.execute(text(f"DROP TABLE tandem_write.{it.name}"))
        assert ensure_partitions(connection, PARTITION) == [0, 20, 40, 60]


def archive_all(url: str, folder: Path, *, keep_days: float = 0) -> Done:
    """What is old enough: with 0 days, all partitions but the last that has events."""
    return archiving.run(database(url), ArchivingSettings(folder=folder, keep_days=keep_days))


def archived_files(folder: Path) -> list[Path]:
    """In the order of their positions."""
    return sorted(folder.glob("*.zst"))


def database(url: str) -> DatabaseSettings:
    return DatabaseSettings(url=SecretStr(url))
