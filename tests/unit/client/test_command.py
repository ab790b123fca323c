import uuid
from itertools import count

import pytest

from tandem.client import command


def test_a_new_id_is_a_uuidv7_and_comes_after_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    milliseconds = count(0x0199_0000_FFF0)
    monkeypatch.setattr("time.time_ns", lambda: next(milliseconds) * 1_000_000 + 999_999)
    ids = [command.new_id() for _ in range(100)]
    assert ids[0].startswith("01990000-fff0-7")
    assert ids == sorted(ids) == [str(uuid.UUID(it)) for it in ids]
    assert {(uuid.UUID(it).version, uuid.UUID(it).variant) for it in ids} == {(7, uuid.RFC_4122)}


def test_new_ids_of_one_moment_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 1_767_225_600_000_000_000)
    assert len({command.new_id() for _ in range(1_000)}) == 1_000
