import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.profiles import marks, steps
from benchmarks.profiles.marks import Mark, Taken
from benchmarks.profiles.steps import Step


@pytest.mark.parametrize("step", [*itertools.chain(*steps.OF.values())], ids=lambda step: step.function)
def test_what_is_noted_is_there(step: Step) -> None:
    owner, name = marks.place_of(step)
    assert callable(getattr(owner, name))


@pytest.mark.parametrize("service", list(steps.OF))
def test_a_service_that_is_noted_runs_as_its_command_does(service: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.profiles.marks", service, str(tmp_path / "marks")]
    ended = subprocess.run(command, env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"{service}: ")


def test_a_step_is_what_lies_between_two_marks_of_a_thread() -> None:
    # Ten rounds of two threads: one waits for half a second and works for as long, the other does not stop.
    found = []
    for second in range(10):
        found.append(Mark(second, 0.5 * second, 1, ""))
        found.append(Mark(second + 0.5, 0.5 * second, 1, "waits"))
        found.append(Mark(second + 0.75, 0.75 + second, 2, "works on"))
        found.append(Mark(second + 0.999, 0.5 * second + 0.499, 1, "works"))
    times, taken = marks.in_the_middle(found, "works")
    assert times == 6
    assert taken["works"].seconds == pytest.approx(6 * 0.499)
    assert taken["works"].cpu == pytest.approx(6 * 0.499)
    assert taken["waits"] == Taken(3.0, 0.0)
    assert taken["works on"] == Taken(5.0, 5.0)


def test_too_few_times_tell_nothing() -> None:
    with pytest.raises(AssertionError, match="done 4 times"):
        marks.in_the_middle([Mark(at, at, 1, "works") for at in range(4)], "works")


def test_marks_are_read_in_the_order_of_time(tmp_path: Path) -> None:
    file = tmp_path / "marks"
    file.write_text("2.5 0.25 7 stores all of it\n1.0 0.125 7 \n")
    assert marks.read(file) == [Mark(1.0, 0.125, 7, ""), Mark(2.5, 0.25, 7, "stores all of it")]
