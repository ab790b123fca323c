"""Arrays in binary form arrive as what they were."""

import uuid
from datetime import UTC, date, datetime
from typing import Any

import psycopg
import pytest
from sqlalchemy import BigInteger, Boolean, Column, Date, DateTime, LargeBinary, SmallInteger, Text, Uuid

from tandem.read_store.tables import VIEWS, change, written_columns
from tandem.runtime.arrays import accept_arrays, array_type, binary_array
from tests.support.stack import Databases

VALUES: list[tuple[Any, list[Any]]] = [
    (Boolean(), [True, False, None]),
    (LargeBinary(), [b"", b"\x00\xff" * 1000, None]),
    (BigInteger(), [0, -1, 2**63 - 1, -(2**63), None]),
    (SmallInteger(), [0, -(2**15), 2**15 - 1]),
    (Text(), ["", "Crème brûlée, 2 \N{TEACUP WITHOUT HANDLE}", None]),
    (Date(), [date(2026, 1, 31), date(1, 1, 1), date(9999, 12, 31), None]),
    (
        DateTime(timezone=True),
        [datetime(2026, 1, 31, 12, 0, 0, 1, UTC), datetime(1, 1, 1, tzinfo=UTC), datetime(1969, 12, 31, tzinfo=UTC)],
    ),
    (Uuid(), [uuid.UUID(int=0), uuid.UUID(int=2**128 - 1), None]),
    (Uuid(), []),
]


@pytest.mark.parametrize(("kind", "values"), VALUES)
def test_an_array_arrives_as_what_it_was(databases: Databases, kind: Any, values: list[Any]) -> None:
    column: Column[Any] = Column("it", kind)
    with psycopg.connect(databases.postgres.url("postgres"), options="-c timezone=UTC") as connection:
        accept_arrays(connection)
        query = f"SELECT %s::{array_type(column)}"
        # As psycopg's own dumpers send it, so that nothing here depends on how the answer is read.
        same = connection.execute(
            f"{query} IS NOT DISTINCT FROM %s::{array_type(column)}", (binary_array(column, values), values)
        ).fetchone()
    assert same == (True,)


def test_an_id_may_be_given_as_its_text(databases: Databases) -> None:
    name = "b24d3252-2094-5abd-9da2-f9c22d1f3b15"
    with psycopg.connect(databases.postgres.url("postgres")) as connection:
        accept_arrays(connection)
        found = connection.execute("SELECT %s::uuid[]", (binary_array(Column("it", Uuid()), [name]),)).fetchone()
    assert found == ([uuid.UUID(name)],)


def test_every_column_that_a_projector_writes_has_a_type_that_is_known() -> None:
    for column in [*change.columns, *(it for table in VIEWS.values() for it in written_columns(table))]:
        assert binary_array(column, [])
