"""Rows that are remembered: the last that were written, and no more than there is room for."""

from tandem.projection.fold import ViewRow
from tandem.projection.rows import RecentRows

ONE, TWO, THREE = (bytes([number]) for number in (1, 2, 3))


def row(value: bytes = b"", began: int = 1) -> ViewRow:
    return ViewRow(began + 10, began, (), value)


def test_the_last_state_of_a_row_is_remembered_and_a_row_that_is_gone_is_not() -> None:
    recent = RecentRows(10_000)
    recent.keep({ONE: row(b"a"), TWO: row(b"b")})
    recent.keep({ONE: row(b"a, changed", 2), TWO: None, THREE: None})
    assert recent.get([ONE, TWO, THREE]) == {ONE: (2, b"a, changed")}


def test_rows_that_were_not_written_for_long_make_room() -> None:
    recent = RecentRows(1_300)
    recent.keep({ONE: row(), TWO: row()})
    recent.keep({ONE: row(began=2), THREE: row()})
    assert recent.get([ONE, TWO, THREE]) == {ONE: (2, b""), TWO: (1, b""), THREE: (1, b"")}
    recent.keep({ONE: row(began=3)})
    assert recent.get([ONE, TWO, THREE]) == {ONE: (3, b""), THREE: (1, b"")}


def test_a_row_that_is_gone_is_forgotten_however_long_ago_it_was_written() -> None:
    recent = RecentRows(1_300)
    recent.keep({ONE: row(), TWO: row()})
    recent.keep({THREE: row(), ONE: None})
    assert recent.get([ONE, TWO, THREE]).keys() == {TWO, THREE}


def test_a_row_that_is_too_large_is_not_kept_and_what_it_was_is_forgotten() -> None:
    recent = RecentRows(1_300)
    recent.keep({ONE: row(b"small")})
    recent.keep({ONE: row(b"x" * 600)})
    assert recent.get([ONE]) == {}
    recent.keep({ONE: row(b"small again")})
    assert recent.get([ONE]).keys() == {ONE}
