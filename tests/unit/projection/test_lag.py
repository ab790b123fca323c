"""The lag in seconds is true also when nobody can say it."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest

from tandem.projection import lag
from tandem.projection.lag import LagWatch
from tandem.projection.views import Phase, Progress, ViewState
from tandem.runtime.errors import Unavailable
from tandem.testing.stack import wait_until
from tests.support.metrics import sample

VIEW = "some_view"


class Databases:
    """What they say; None while they are away."""

    def __init__(self) -> None:
        self.waits_since: datetime | None = None
        self.are_away = False
        self.looks = 0

    def look(self) -> Mapping[str, datetime | None]:
        self.looks += 1
        if self.are_away:
            raise Unavailable("away", reason="STORE_UNAVAILABLE")
        return {VIEW: self.waits_since}


def seconds() -> float:
    value = sample("tandem_projection_lag_seconds", view=VIEW)
    assert value is not None
    return value


async def test_the_lag_is_the_age_of_what_waits_and_grows_while_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lag, "LOOK_SECONDS", 0.01)
    databases = Databases()
    watch = LagWatch(Progress({VIEW: ViewState()}), databases.look)
    await watch.start()
    try:
        wait_until(lambda: databases.looks > 1, "it looks")
        assert seconds() == 0, "the view has all there is"
        databases.waits_since = datetime.now(UTC) - timedelta(seconds=100)
        wait_until(lambda: 100 <= seconds() < 200, "an event waits")
        databases.waits_since = None
        wait_until(lambda: seconds() == 0, "it was taken in")
        databases.are_away = True
        wait_until(lambda: seconds() > 0.1, "the lag grows while nobody can say what waits")
        databases.are_away = False
        wait_until(lambda: seconds() == 0, "they are back")
    finally:
        await watch.stop()


def is_in(phase: Phase) -> bool:
    return sample("tandem_projection_state", view=VIEW, state=phase.name) == 1


def test_a_view_is_in_one_state() -> None:
    progress = Progress({VIEW: ViewState(Phase.FAILED)})
    watch = LagWatch(progress, dict)
    states = {it: sample("tandem_projection_state", view=VIEW, state=it.name) for it in Phase}
    assert {it for it, value in states.items() if value} == {Phase.FAILED}
    progress.states[VIEW] = ViewState(Phase.RUNNING)
    assert {it for it in Phase if is_in(it)} == {Phase.RUNNING}
    assert watch.seconds(VIEW) == 0
