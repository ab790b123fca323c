"""Where rows come from: the batches before, memory, the database; and how many memory holds."""

import random
from collections.abc import Collection, Mapping

from hypothesis import given
from hypothesis import strategies as st

from tandem.projection.changes import NOTHING_PARKED, FoundRows, StoredRow, ViewChanges, ViewRow
from tandem.projection.rows import RecentRows, RowSource

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


class Database:
    """Rows of one view, and which of them were asked for."""

    def __init__(self) -> None:
        self.rows: dict[bytes, StoredRow] = {}
        self.asked: list[bytes] = []

    def select(self, wanted: Mapping[str, Collection[bytes]]) -> FoundRows:
        self.asked += [key for keys in wanted.values() for key in keys]
        return {view: {key: self.rows[key] for key in keys if key in self.rows} for view, keys in wanted.items()}

    def write(self, changes: ViewChanges) -> None:
        for key, it in changes.rows.items():
            if it is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = it.stored

    def source(self, max_bytes: int = 1_000_000) -> RowSource:
        return RowSource(self.select, lambda _view: NOTHING_PARKED, ["view", "other"], max_bytes)


def changed(**rows: ViewRow | None) -> dict[str, ViewChanges]:
    return {"view": ViewChanges(rows={bytes([ord(name)]): it for name, it in rows.items()})}


def found(source: RowSource, *keys: bytes) -> dict[bytes, StoredRow]:
    return source.find({"view": set(keys)})["view"]


A, B = b"a", b"b"


def test_the_newest_state_of_a_row_is_found_wherever_it_is() -> None:
    database = Database()
    database.rows = {A: (1, b"stored"), B: (2, b"stored")}
    source = database.source()
    assert found(source, A, B) == {A: (1, b"stored"), B: (2, b"stored")}
    source.add_folded(changed(a=row(b"first"), b=None))
    assert found(source, A, B) == {A: (1, b"first")}
    source.add_folded(changed(a=row(b"second")))
    assert found(source, A, B) == {A: (1, b"second")}
    source.written()
    source.written()
    database.asked.clear()
    assert found(source, A) == {A: (1, b"second")}
    assert database.asked == [], "it is in memory"


def test_rows_that_were_found_before_a_batch_was_folded_are_brought_up_to_date() -> None:
    database = Database()
    database.rows = {A: (1, b"stored"), B: (2, b"stored")}
    source = database.source()
    needed = {"view": {A, B}}
    rows = source.find(needed)
    source.add_folded(changed(a=row(b"folded"), b=None, c=row(b"not needed")))
    source.refresh(needed, rows)
    assert rows == {"view": {A: (1, b"folded")}}


def test_what_was_folded_and_never_written_is_not_found() -> None:
    source = Database().source()
    source.add_folded(changed(a=row(b"never")))
    source.drop_folded()
    assert found(source, A) == {}


def test_after_a_failure_the_database_is_asked() -> None:
    database = Database()
    source = database.source()
    source.add_folded(changed(a=row(b"written")))
    source.written()
    source.add_folded(changed(a=row(b"folded")))
    source.forget()
    database.rows = {A: (1, b"another's")}
    assert found(source, A) == {A: (1, b"another's")}


def test_views_do_not_see_each_others_rows() -> None:
    source = Database().source()
    source.add_folded(changed(a=row(b"one")))
    assert source.find({"other": {A}}) == {"other": {}}


@given(
    rng=st.randoms(use_true_random=False), steps=st.integers(1, 30), max_bytes=st.sampled_from([0, 1_300, 1_000_000])
)
def test_three_batches_on_their_way_find_what_one_after_the_other_finds(
    rng: random.Random, steps: int, max_bytes: int
) -> None:
    """As in a pipeline: while a batch is written and the next one folded, the rows of the one behind are found."""
    database, expected = Database(), Database()
    source = database.source(max_bytes)
    keys = [bytes([number]) for number in range(8)]
    needed = [{"view": set(rng.sample(keys, 3))} for _ in range(steps + 1)]
    batches = [
        ViewChanges(rows={key: row(bytes([number]), number) if rng.random() < 0.8 else None for key in it["view"]})
        for number, it in enumerate(needed)
    ]
    waiting = source.find(needed[0])
    for number in range(steps):
        source.refresh(needed[number], waiting)
        assert waiting["view"] == {key: it for key, it in expected.rows.items() if key in needed[number]["view"]}
        if rng.random() < 0.5:
            # The batch before is written before the rows of the one behind are found, or meanwhile.
            waiting = source.find(needed[number + 1])
            source.add_folded({"view": batches[number]})
        else:
            source.add_folded({"view": batches[number]})
            waiting = source.find(needed[number + 1])
        expected.write(batches[number])
        if number:
            database.write(batches[number - 1])
            source.written()
