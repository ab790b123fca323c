import signal
from pathlib import Path

import pytest

from tandem.cli.child import Child, StackError
from tandem.cli.supervisor import MAX_QUICK_DEATHS, QUICK_SECONDS, Supervisor


class FakeChild(Child):
    """Runs until a test says how it ends."""

    def __init__(self, name: str = "query_server") -> None:
        super().__init__(name, 1, Path("/nowhere"))
        self.launches = 0
        self.code: int | None = None
        self.refuses_to_start = False

    def launch(self) -> None:
        if self.refuses_to_start:
            raise StackError("no room")
        self.launches += 1
        self.code = None

    def exit_code(self) -> int | None:
        return self.code

    def stop(self) -> int:
        return self.code or 0

    def log_tail(self, lines: int = 15) -> str:
        return "its last words"


class Scene:
    def __init__(self, *children: FakeChild) -> None:
        self.now = 100.0
        self.said: list[str] = []
        self.supervisor = Supervisor(children, self.said.append, lambda: self.now)

    def after(self, seconds: float) -> None:
        self.now += seconds
        self.supervisor.check()


def test_children_that_run_are_left_alone() -> None:
    child = FakeChild()
    scene = Scene(child)
    scene.after(1)
    assert child.launches == 0
    assert scene.said == []


def test_a_death_is_told_with_name_cause_and_last_log_lines() -> None:
    child = FakeChild()
    scene = Scene(child)
    child.code = -signal.SIGKILL
    scene.after(1)
    [told] = scene.said
    assert told.startswith("query_server died (signal SIGKILL); its log ends:\nits last words\n")
    assert told.endswith("query_server is started again in 0.5 s")


def test_of_one_that_wrote_nothing_the_log_is_named() -> None:
    child = FakeChild()
    child.log_tail = lambda: ""  # type: ignore[method-assign, assignment, misc]
    scene = Scene(child)
    child.code = 0
    scene.after(1)
    assert scene.said[0].startswith(f"query_server died (exit code 0); its log is empty: {child.log}")


def test_a_child_that_died_is_started_again_after_a_pause() -> None:
    child = FakeChild()
    scene = Scene(child)
    child.code = 1
    scene.after(1)
    scene.after(0.4)
    assert child.launches == 0
    scene.after(0.2)
    assert child.launches == 1
    assert scene.said[-1] == "query_server was started again"


def test_the_pause_grows_with_each_quick_death() -> None:
    child = FakeChild()
    scene = Scene(child)
    for pause in (0.5, 1, 2, 4):
        child.code = 1
        scene.after(0)
        assert scene.said[-1].endswith(f"is started again in {pause:g} s")
        scene.after(pause)


def test_a_child_that_dies_quickly_again_and_again_is_given_up() -> None:
    child = FakeChild()
    scene = Scene(child)
    for _ in range(MAX_QUICK_DEATHS - 1):
        child.code = 1
        scene.after(0.1)
        scene.after(QUICK_SECONDS - 1)
    child.code = 1
    with pytest.raises(StackError, match=r"query_server died 5 times in a row, giving up") as caught:
        scene.after(0.1)
    assert "its last words" in str(caught.value)
    assert child.launches == MAX_QUICK_DEATHS - 1


def test_deaths_after_a_long_life_do_not_add_up() -> None:
    child = FakeChild()
    scene = Scene(child)
    for _ in range(3 * MAX_QUICK_DEATHS):
        child.code = 1
        scene.after(QUICK_SECONDS + 1)
        scene.after(0.5)
    assert child.launches == 3 * MAX_QUICK_DEATHS


def test_a_start_that_fails_counts_as_a_death() -> None:
    child = FakeChild()
    child.refuses_to_start = True
    scene = Scene(child)
    child.code = 1
    for _ in range(MAX_QUICK_DEATHS - 1):
        scene.after(5)
    with pytest.raises(StackError, match="no room"):
        scene.after(5)


def test_one_child_that_waits_for_its_restart_does_not_hold_up_another() -> None:
    first, second = FakeChild("PostgreSQL"), FakeChild("projector")
    scene = Scene(first, second)
    first.code = second.code = 1
    scene.after(1)
    scene.after(0.5)
    assert (first.launches, second.launches) == (1, 1)
