"""Compares a view's other generation with the one that is served, row by row, in the database.

It goes by ranges of keys, each one statement that sees both at one moment: their positions, which must be equal, and
their rows. So it holds no snapshot for long, and both views go on meanwhile. It has a connection and a thread of its
own, and works half of the time.
"""

import math
import threading
import time
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import Table

from tandem.read_store.tables import newest, other_of, other_table
from tandem.runtime.database import Driver, create_database_engine, driver_under
from tandem.runtime.settings import DatabaseSettings

# Of a range. A million orders take 100 statements of some 40 ms.
_RANGE_ROWS = 10_000
# Of the keys that differ, so many are named.
_MOST_EXAMPLES = 20
# How long the two may be at different positions, as after a batch that a lock held up.
_APART_SECONDS = 10.0
_LOOK_SECONDS = 0.05


class Apart(Exception):
    """The two generations are not at the same position."""


@dataclass
class Comparison:
    """rows: keys that either has. changed: rows of both that differ. missing: rows that the other generation lacks.

    added: rows that it alone has. examples: of those that differ, each with the positions of its last event, None where
    there is no such row. position: where both were at the end.
    """

    position: int = 0
    rows: int = 0
    changed: int = 0
    missing: int = 0
    added: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        return {it: getattr(self, it) for it in ("position", "rows", "changed", "missing", "added")}

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Comparisons:
    """One at a time, the others wait. For one thread."""

    def __init__(self, read_database: DatabaseSettings) -> None:
        self._engine = create_database_engine(
            read_database, name="tandem-projector-compare", pool_size=1, read_only=True, autocommit=True, idles=True
        )
        self._thread = ThreadPoolExecutor(1, "comparison")
        self._stopping = threading.Event()
        self._under_way: dict[str, Future[Comparison]] = {}

    def result(self, table: Table) -> Comparison | None:
        """Of a view's table with its other one; None while it is under way, which this begins.

        Raises what the comparison raised: Apart, SQLAlchemyError, psycopg.Error. Then it is begun anew next time.
        """
        view = str(table.name)
        if view not in self._under_way:
            self._under_way[view] = self._thread.submit(self._compare, table)
        if not self._under_way[view].done():
            return None
        return self._under_way.pop(view).result()

    def cancel(self, view: str) -> None:
        """Nobody wants the result any more; one that has begun ends by itself."""
        if it := self._under_way.pop(view, None):
            it.cancel()

    def forget(self) -> None:
        for view in list(self._under_way):
            self.cancel(view)

    def stop(self) -> None:
        self._stopping.set()
        self._thread.shutdown(cancel_futures=True)
        self._engine.dispose()

    def _compare(self, table: Table) -> Comparison:
        with self._engine.connect() as connection:
            return compare(driver_under(connection), table, self._stopping)


def compare(driver: Driver, table: Table, stopping: threading.Event) -> Comparison:
    """Raises Apart, also when it is stopped, and psycopg.Error. driver: in autocommit mode."""
    names = {
        "served": table.fullname,
        "other": other_table(table).fullname,
        "at_served": newest(f"'{table.name}'"),
        "at_other": newest(f"'{other_of(table.name)}'"),
        "last": str(_LAST),
    }
    statement = _COMPARE_RANGE.format(**names).encode()
    found = Comparison()
    first, apart_since = uuid.UUID(int=0), math.inf
    while True:
        began = time.monotonic()
        arguments = {"first": first, "rows": _RANGE_ROWS, "most": _MOST_EXAMPLES - len(found.examples)}
        row = driver.execute(statement, arguments).fetchone()
        if row is None:
            apart_since = min(apart_since, began)
            if stopping.wait(_LOOK_SECONDS) or began - apart_since > _APART_SECONDS:
                raise Apart(f"the generations of {table.name} are not at the same position")
            continue
        apart_since = math.inf
        found.position, last, rows, changed, missing, added, examples = row
        found.rows += rows
        found.changed += changed
        found.missing += missing
        found.added += added
        found.examples += examples or []
        if last is None or last == _LAST:
            return found
        first = uuid.UUID(int=last.int + 1)
        if stopping.wait(time.monotonic() - began):
            raise Apart(f"the comparison of {table.name} was stopped")


_LAST = uuid.UUID(int=2**128 - 1)
# `bound`: of whichever has its rows nearer together, so that no range has many more rows than are wanted. Without a
# position that both have there is no row.
_COMPARE_RANGE = """
WITH bound AS (
  SELECT LEAST(
    (SELECT key FROM {served} WHERE key >= %(first)s::uuid ORDER BY key OFFSET %(rows)s::int - 1 LIMIT 1),
    (SELECT key FROM {other} WHERE key >= %(first)s::uuid ORDER BY key OFFSET %(rows)s::int - 1 LIMIT 1)
  ) AS last
), compared AS (
  SELECT COALESCE(s.key, o.key) AS key, s.position AS served_at, o.position AS other_at, s IS DISTINCT FROM o AS differs
  FROM (SELECT * FROM {served} WHERE key BETWEEN %(first)s::uuid AND COALESCE((SELECT last FROM bound), '{last}')) AS s
  FULL JOIN (SELECT * FROM {other} WHERE key BETWEEN %(first)s::uuid AND COALESCE((SELECT last FROM bound), '{last}'))
    AS o ON s.key = o.key
), example AS (
  SELECT key, served_at, other_at FROM compared WHERE differs ORDER BY key LIMIT %(most)s::int
)
SELECT a.position, (SELECT last FROM bound), c.*, (SELECT jsonb_agg(to_jsonb(example) ORDER BY key) FROM example)
FROM {at_served} AS a JOIN {at_other} AS b ON (b.feed_epoch, b.position, b.mark) = (a.feed_epoch, a.position, a.mark)
CROSS JOIN (
  SELECT count(*), count(*) FILTER (WHERE differs AND served_at IS NOT NULL AND other_at IS NOT NULL),
    count(*) FILTER (WHERE other_at IS NULL), count(*) FILTER (WHERE served_at IS NULL)
  FROM compared
) AS c
"""
