"""The feed's oldest events are in files: views are made of both as of the table, and nothing is lost."""

import json
import uuid
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import zstandard
from sqlalchemy import Connection, text

from commerce.projection.v1.projection_service_pb2 import ProjectionState
from projector import order_details
from shop.events import EVENTS
from tandem.commands import archiving, partitions
from tandem.commands.archiving import ArchivingSettings
from tandem.commands.partitions import Partition, ensure_partitions, list_detached, list_partitions
from tandem.feed import archive
from tandem.feed.archive import Archive, ArchiveSettings
from tandem.feed.lookup import TableLookup
from tandem.feed.reader import EventsArchived, read_events
from tandem.internal.v1.stored_pb2 import ArchivedEvents
from tandem.projection.replay import KeyRange, Replay
from tandem.runtime.actions import ActionRefused
from tests.integration.projector.conftest import Project, Stores
from tests.support import events
from tests.support.archiving import PARTITION, archive_all, archived_files, database, small, small_partitions
from tests.support.builders import identity

RUNNING, FAILED = ProjectionState.PROJECTION_STATE_RUNNING, ProjectionState.PROJECTION_STATE_FAILED


@pytest.fixture(autouse=True)
def _small(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    small_partitions(stores.write)


def read_all(stores: Stores, folder: Path | None) -> list[Any]:
    """(position, what it says, envelope, mark) of all events, a few at a time, each read with the mark before."""
    found: list[Any] = []
    reader = Archive(folder)
    with stores.write.connect() as connection:
        while part := read_events(
            connection, EVENTS, len(found), 9, mark=found[-1][3] if found else 0, archive=reader
        ).events:
            found += [(it.position, it.event.SerializeToString(), it.envelope_payload, it.mark) for it in part]
    return found


def epoch_of(stores: Stores) -> uuid.UUID:
    epoch: uuid.UUID = stores.run("SELECT epoch FROM tandem_write.feed_head", "write")
    return epoch


def served_values(stores: Stores) -> dict[uuid.UUID, bytes]:
    with stores.read.connect() as connection:
        rows = connection.exec_driver_sql("SELECT key, value FROM tandem_read.order_details").all()
    return {row.key: row.value for row in rows}


def oldest(stores: Stores) -> int:
    """The first position of the oldest partition."""
    with stores.write.connect() as connection:
        return list_partitions(connection)[0].first


async def test_views_are_made_of_archive_and_table_as_of_the_table_alone(
    stores: Stores, project: Project, tmp_path: Path
) -> None:
    head = stores.append([*events.a_history(68), events.customer_erased()])
    projector = await project()
    await stores.caught_up()
    served = stores.rows()
    everything = read_all(stores, None)
    await projector.stop()

    assert archive_all(stores.write_url, tmp_path).text.startswith("archived 59 events in 6 files")
    assert oldest(stores) == 60
    assert stores.run("SELECT min(position) FROM tandem_write.event", "write") == 60
    assert len(everything) == head
    assert read_all(stores, tmp_path) == everything

    stores.run(
        "TRUNCATE tandem_read.change, tandem_read.projection, " + ", ".join(f"tandem_read.{it}" for it in served)
    )
    without = await project()
    found = await without.until_state(FAILED)
    assert all(it.error.startswith("EVENTS_MISSING: events 1 to 59 cannot be read: ") for it in found.values())
    assert all("ARCHIVE__FOLDER" in it.error for it in found.values())
    assert not any(stores.rows().values()), "nothing is passed over"
    await without.stop()

    restored = await project(archive={"folder": tmp_path})
    await stores.caught_up()
    assert stores.rows() == served
    await restored.stop()

    order = uuid.UUID(identity("order", 1))
    for wanted in (KeyRange(), frozenset([order.bytes])):
        replay = Replay(EVENTS, order_details.PROJECTION, wanted, epoch=epoch_of(stores))
        with stores.write.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            while replay.position < head:
                replay.advance(TableLookup(connection, EVENTS, Archive(tmp_path)), head)
        made = {key: row.value for key, row in replay.rows.items()}
        assert made == {it.bytes: value for it, value in served_values(stores).items() if it.bytes in wanted}


def test_what_is_archived_stays_sealed_and_what_is_erased_stays_erased(stores: Stores, tmp_path: Path) -> None:
    registered = events.customer_registered()
    stores.append([registered, *events.a_history(30)])
    archive_all(stores.write_url, tmp_path)
    name, *_ = archived_files(tmp_path)
    # As any tool reads it: the frames one behind the other, and what says where they are is skipped.
    with zstandard.ZstdDecompressor().stream_reader(name.read_bytes(), read_across_frames=True) as reader:
        plain = reader.read()
    stored = ArchivedEvents.FromString(plain).events
    assert [it.position for it in stored] == list(range(1, len(stored) + 1))
    person = registered.customer_registered.personal
    assert person.email.encode() not in plain
    [*_, (position, first, _, _)] = reversed(read_all(stores, tmp_path))
    assert (position, person.email.encode() in first) == (1, True)
    subject = identity("customer", 1)
    stores.run(f"UPDATE tandem_write.subject_key SET key = NULL WHERE subject_id = '{subject}'", "write")
    assert all(person.email.encode() not in it[1] for it in read_all(stores, tmp_path))


def test_young_partitions_stay_and_a_plan_changes_nothing(stores: Stores, tmp_path: Path) -> None:
    stores.append(events.a_history(50))
    settings = ArchivingSettings(folder=tmp_path, keep_days=30)
    assert archiving.plan(database(stores.write_url), settings).done().text.startswith("no partition")
    stores.run("UPDATE tandem_write.event SET recorded_at = now() - interval '31 days' WHERE position <= 20", "write")
    planned = archiving.plan(database(stores.write_url), settings)
    assert ([it.first for it in planned.partitions], planned.events) == ([0], 19)
    [partition] = planned.done().fields["partitions"]
    assert (partition["first"], partition["last"]) == (1, 19)
    assert (oldest(stores), list(tmp_path.iterdir())) == (0, [])
    archive_all(stores.write_url, tmp_path, keep_days=30)
    assert oldest(stores) == 20


class Ended(Exception):
    """The process was."""


def test_who_is_ended_anywhere_goes_on_where_it_was(
    stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores.append(events.a_history(PARTITION // 2))
    places = ["write_file", "read_file", "_append_to_index", "_check_files", "drop_partition", "drop_detached"]
    for number, where in enumerate(places, start=1):
        head = stores.append(events.a_history(PARTITION, seed=number))
        with stores.write.begin() as connection:
            ensure_partitions(connection, PARTITION)
        everything = read_all(stores, tmp_path)
        with monkeypatch.context() as patch:
            # At its second call in this partition, where there are several.
            modules = {"write_file": archive, "read_file": archive, "drop_detached": partitions}
            end_at_call(patch, modules.get(where, archiving), where, 2 if modules.get(where) is archive else 1)
            with pytest.raises(Ended):
                archive_all(stores.write_url, tmp_path)
        assert read_all(stores, tmp_path) == everything, "also meanwhile"
        archive_all(stores.write_url, tmp_path)
        assert oldest(stores) == number * PARTITION
        assert read_all(stores, tmp_path) == everything
    assert archive_all(stores.write_url, tmp_path).text.startswith("archived 0 events")
    with stores.write.connect() as connection:
        assert list_detached(connection) == []
    known = archiving.verify(database(stores.write_url), ArchiveSettings(folder=tmp_path))
    assert known.text == f"{2 * len(places)} files with {head - 1 - head % PARTITION} events are what was archived"
    index = {json.loads(it)["name"] for it in (tmp_path / "index.jsonl").read_text().splitlines()}
    assert {it.name for it in tmp_path.glob("*.zst")} >= index


def end_at_call(patch: pytest.MonkeyPatch, module: ModuleType, name: str, number: int) -> None:
    original, calls = getattr(module, name), 0

    def ends(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            raise Ended
        return original(*arguments)

    patch.setattr(module, name, ends)


def test_nothing_is_dropped_that_is_not_in_the_files(
    stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores.append(events.a_history(50))
    everything = read_all(stores, None)
    original = archiving._check_files

    def check(connection: Connection, folder: Path, partition: Partition) -> None:
        """A bit of a file flips after it was read back."""
        flip_a_bit(sorted(folder.glob("*.zst"))[0])
        original(connection, folder, partition)

    monkeypatch.setattr(archiving, "_check_files", check)
    with pytest.raises(ActionRefused, match="its checksum is another one"):
        archive_all(stores.write_url, tmp_path)
    assert oldest(stores) == 0
    assert read_all(stores, tmp_path) == everything


def flip_a_bit(file: Path, content: bytes | None = None) -> None:
    data = bytearray(content or file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


async def test_a_file_that_is_not_the_one_is_named_and_never_read(
    stores: Stores, project: Project, tmp_path: Path
) -> None:
    head = stores.append(events.a_history(50))
    archive_all(stores.write_url, tmp_path)
    first, second, *_ = archived_files(tmp_path)
    kept = second.read_bytes()
    for spoil in (lambda: second.write_bytes(first.read_bytes()), second.unlink, lambda: flip_a_bit(second, kept)):
        spoil()
        with pytest.raises(EventsArchived, match=second.name):
            read_all(stores, tmp_path)
        with pytest.raises(ActionRefused, match=second.name):
            archiving.verify(database(stores.write_url), ArchiveSettings(folder=tmp_path))
    projector = await project(archive={"folder": tmp_path})
    found = await projector.until_state(FAILED)
    assert all(second.name in it.error for it in found.values())
    assert {it.position for it in found.values()} == {14}, "what is before it is taken in"
    second.write_bytes(kept)
    await projector.until_state(RUNNING)
    await stores.reached(head)


def test_events_that_come_back_by_a_restore_are_read_from_the_table(stores: Stores, tmp_path: Path) -> None:
    """The database was restored to before they were archived; a reader goes on that knew where they were."""
    stores.append(events.a_history(50))
    rows = stores.run("CREATE TABLE kept AS SELECT * FROM tandem_write.event", "write")
    assert rows is None
    everything = read_all(stores, None)
    archive_all(stores.write_url, tmp_path)
    reader = Archive(tmp_path)
    with stores.write.connect() as connection:
        assert len(read_events(connection, EVENTS, 0, 9, archive=reader).events) == 9
        assert reader.through == 39
    small_again(stores)
    with stores.write.connect() as connection:
        found = read_events(connection, EVENTS, 9, 100, archive=reader).events
    assert [it.position for it in found] == [it[0] for it in everything[9:]]


def small_again(stores: Stores) -> None:
    with stores.write.begin() as connection:
        for it in list_partitions(connection):
            connection.execute(text(f"DROP TABLE tandem_write.{it.name}"))
        connection.execute(text("DELETE FROM tandem_write.archive_file"))
        ensure_partitions(connection, 100)
        connection.execute(text("INSERT INTO tandem_write.event SELECT * FROM kept"))
