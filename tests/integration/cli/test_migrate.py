import json
from collections.abc import Callable

import psycopg
import pytest
from typer.testing import CliRunner

from shop.cli import app


def schemas(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        query = "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'tandem%'"
        return {row[0] for row in connection.execute(query)}


@pytest.mark.usefixtures("forked_actions")
def test_migrate_brings_both_databases_up_to_date_and_may_be_repeated(
    fresh_database: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    write, read = fresh_database(), fresh_database()
    monkeypatch.setenv("TANDEM_COMMAND_DATABASE__URL", write)
    monkeypatch.setenv("TANDEM_PROJECTOR_FEED_DATABASE__URL", write)
    monkeypatch.setenv("TANDEM_PROJECTOR_READ_DATABASE__URL", read)
    for _ in range(2):
        assert CliRunner().invoke(app, ["migrate"]).exit_code == 0
        said = capfd.readouterr().out
        assert "tandem_write is at revision" in said
        assert "tandem_read is at revision" in said
    assert schemas(write) == {"tandem_write"}
    assert schemas(read) == {"tandem_read", "tandem_read_other", "tandem_read_passage"}
    assert CliRunner().invoke(app, ["feed", "archive", "--dry-run", "--json"]).exit_code == 0
    assert json.loads(capfd.readouterr().out) == {"partitions": [], "events": 0}
