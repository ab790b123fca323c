"""`tandem reactions redrive`, where one call does not get through all that is parked."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from typer.testing import CliRunner

from commerce.command.v1.reaction_service_pb2 import RedriveParkedTasksResponse
from shop.cli import app
from tandem.cli import reactions

PARTS = {
    "": RedriveParkedTasksResponse(redriven_tasks=100, parked_tasks=1, next_page_token="there"),
    "there": RedriveParkedTasksResponse(redriven_tasks=7),
}


@contextmanager
def asking(*_: object, **__: object) -> Iterator[Any]:
    def ask(name: str, *, page_token: str, **fields: str) -> RedriveParkedTasksResponse:
        assert (name, fields) == ("RedriveParkedTasks", {"reaction": "low_stock", "key": ""})
        return PARTS[page_token]

    yield ask


@pytest.mark.parametrize("as_json", [True, False])
def test_a_redrive_goes_on_until_all_had_their_turn_and_counts_all(
    monkeypatch: pytest.MonkeyPatch, *, as_json: bool
) -> None:
    monkeypatch.setattr(reactions, "asking", asking)
    result = CliRunner().invoke(app, ["reactions", "redrive", "low_stock", "--all", *(["--json"] if as_json else [])])
    assert result.exit_code == 1, "some stay parked"
    assert "100 are done from now on, 1 events stay parked, so far" in result.stderr
    if as_json:
        assert json.loads(result.stdout) == {"redriven_tasks": "107", "parked_tasks": "1"}
    else:
        assert result.stdout == "107 are done from now on, 1 events stay parked\n"
