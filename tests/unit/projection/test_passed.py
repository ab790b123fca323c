import pytest

from tandem.projection.passed import Passed


@pytest.mark.parametrize("latest", [6, 2], ids=["of the latest, exactly", "before them, to the second"])
def test_a_position_was_announced_when_the_view_was_first_known_to_have_it(
    monkeypatch: pytest.MonkeyPatch, latest: int
) -> None:
    monkeypatch.setattr("tandem.projection.passed._LATEST", latest)
    passed = Passed()
    for at, position in ((10.0, 4), (11.2, 6), (11.4, 7), (11.9, 8), (12.5, 9), (13.0, 9)):
        monkeypatch.setattr("time.time", lambda at=at: at)
        passed.note({"view": position})
    found = {it: passed.announced_by("view", it) for it in range(4, 11)}
    assert {it: at and at.timestamp() for it, at in found.items()} == {
        4: None,  # it was there before
        5: 11.2,
        6: 11.2,
        7: 11.4 if latest == 6 else 11.9,
        8: 11.9,
        9: 12.5,
        10: None,
    }
    assert passed.announced_by("another", 1) is None


def test_a_view_that_was_made_anew_was_announced_again(monkeypatch: pytest.MonkeyPatch) -> None:
    passed = Passed()
    for at, position in ((1.0, 2), (2.0, 5), (3.0, 0), (4.0, 5)):
        monkeypatch.setattr("time.time", lambda at=at: at)
        passed.note({"view": position})
    again = passed.announced_by("view", 5)
    assert again is not None
    assert again.timestamp() == 4.0
