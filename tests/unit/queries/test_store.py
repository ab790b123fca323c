"""What the log says of the read database."""

import pytest
from structlog.testing import capture_logs

from tandem.queries import store
from tandem.queries.store import Store
from tandem.runtime.errors import Unavailable
from tandem.runtime.settings import DatabaseSettings
from tandem.testing.ports import free_port


def test_the_check_of_readiness_says_that_the_database_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    read = Store(DatabaseSettings(url=f"postgresql://x@127.0.0.1:{free_port()}/x"), connections=1)
    is_there = False
    monkeypatch.setattr(store, "has_revision", lambda *_: is_there)
    with capture_logs() as logs:
        with pytest.raises(Unavailable):
            read.positions()
        assert not read.has_revision("0001")
        assert [it["event"] for it in logs] == ["the read database is away"]
        is_there = True
        assert read.has_revision("0001")
        assert read.has_revision("0001")
    assert [it["event"] for it in logs] == ["the read database is away", "the read database is back"]
    read.close()
