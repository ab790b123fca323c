"""What the commands ask of the services' own programs."""

from types import SimpleNamespace

import pytest

from tandem.cli import services
from tests.support.forking import run_forked


@pytest.fixture
def forked_actions(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked of forks, which import nothing: `python -m` takes a second of processor time for each question."""
    monkeypatch.setattr(services, "subprocess", SimpleNamespace(run=run_forked))
