"""`python -m nemesis.soak`: lets everything run for twenty minutes, and fails where something grows that must not.

Memory and descriptors of each server are compared between a quarter of the time, when all is warm, and the end; tables
and indexes are measured for each order that is placed between.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import psycopg

from nemesis.cluster import Cluster
from nemesis.episode import Say, at_rest, prove

_MINUTES = 20.0
_EVERY_SECONDS = 2.0
_CLIENTS = 16

GROWTH_OF_MEMORY = 0.20
"""Of a server, as a part of what it had at a quarter of the time, and 16 MiB: Python takes memory in blocks."""
_FREE_MIB = 16.0
MORE_DESCRIPTORS = 16
"""That a server may have at the end: connections come and go."""
BYTES_OF_AN_ORDER = {"write": 6_000, "read": 4_000}
"""Of tables and indexes of each database, for each order that is placed, with all that happens to it."""
SMALL_TABLES = {"write": ("feed_head", "reaction"), "read": ("projection",)}
"""A few rows that are changed all the time."""
SMALL_BYTES = 2**20


class Sample(NamedTuple):
    """Of a server."""

    mebibytes: float
    descriptors: int


class Row(NamedTuple):
    """A line of the table. limit: that `late` must not pass."""

    what: str
    early: float
    late: float
    limit: float

    @property
    def is_over(self) -> bool:
        return self.late > self.limit

    def __str__(self) -> str:
        mark = "  too much" if self.is_over else ""
        return f"{self.what:<50} {self.early:>12,.1f} {self.late:>12,.1f} {self.limit:>12,.1f}{mark}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 1 where a bound was passed."""
    parser = argparse.ArgumentParser(prog="make soak", description="Lets everything run, and fails when it grows.")
    parser.add_argument("--minutes", type=float, default=_MINUTES, help=f"for how long ({_MINUTES:g})")
    minutes = parser.parse_args(arguments).minutes
    began = time.monotonic()

    def say(text: str) -> None:
        sys.stdout.write(f"{time.monotonic() - began:7.1f} s  {text}\n")
        sys.stdout.flush()

    folder = Path(tempfile.mkdtemp(prefix="tandem-soak-"))
    with at_rest(folder, clients=_CLIENTS) as (cluster, crowd, loop):
        rows = _soak(cluster, minutes * 60, say)
        violations = prove(cluster, crowd, loop)
    sys.stdout.write(f"\n{'':<50} {'after 1/4':>12} {'at the end':>12} {'limit':>12}\n")
    sys.stdout.write("".join(f"{it}\n" for it in rows))
    for violation in violations:
        say(str(violation))
    over = [it for it in rows if it.is_over]
    say(f"{len(over)} bounds passed, {len(violations)} violations")
    if over or violations:
        say(f"the servers' logs are in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def _soak(cluster: Cluster, seconds: float, say: Say) -> list[Row]:
    start = time.monotonic()
    samples: list[dict[str, Sample]] = []
    early_at = start + seconds / 4
    early_sizes: dict[str, float] = {}
    early_orders = minutes = 0
    while time.monotonic() < start + seconds:
        time.sleep(_EVERY_SECONDS)
        samples.append({name: _sample(psutil.Process(it.pid)) for name, it in cluster.services.items()})
        if not early_sizes and time.monotonic() >= early_at:
            early_orders, early_sizes, early_samples = _orders(cluster), _sizes(cluster), len(samples)
        if len(samples) // 30 > minutes:
            minutes = len(samples) // 30
            memory = sum(it.mebibytes for it in samples[-1].values())
            say(f"{_orders(cluster):,} orders, {memory:,.0f} MiB in {len(samples[-1])} servers")
    orders, sizes = _orders(cluster) - early_orders, _sizes(cluster)
    rows = [row for name in cluster.services for row in _server_rows(name, samples, early_samples)]
    for side, limit in BYTES_OF_AN_ORDER.items():
        grown = (sizes[side] - early_sizes[side]) / max(orders, 1)
        what = f"{side} database, bytes for each of {orders:,} orders"
        rows.append(Row(what, early_sizes[side] / early_orders, grown, limit))
        for table in SMALL_TABLES[side]:
            rows.append(Row(f"{table}, KiB", early_sizes[table] / 1024, sizes[table] / 1024, SMALL_BYTES / 1024))
    return rows


def _server_rows(name: str, samples: Sequence[dict[str, Sample]], early: int) -> list[Row]:
    """Medians of some samples in a row: a batch takes memory for a moment."""
    width = max(3, len(samples) // 20)
    before = [it[name] for it in samples[max(0, early - width) : early]]
    after = [it[name] for it in samples[-width:]]
    memory, later = (statistics.median(it.mebibytes for it in part) for part in (before, after))
    descriptors, more = (statistics.median(it.descriptors for it in part) for part in (before, after))
    return [
        Row(f"{name}, memory in MiB", memory, later, memory * (1 + GROWTH_OF_MEMORY) + _FREE_MIB),
        Row(f"{name}, descriptors", descriptors, more, descriptors + MORE_DESCRIPTORS),
    ]


def _sample(process: psutil.Process) -> Sample:
    return Sample(process.memory_info().rss / 2**20, process.num_fds())


def _orders(cluster: Cluster) -> int:
    return int(_ask(cluster.write_url, "SELECT count(*) FROM tandem_write.customer_order"))


def _sizes(cluster: Cluster) -> dict[str, float]:
    """Of each side's tables with their indexes, and of the small tables, in bytes."""
    sizes: dict[str, float] = {}
    for side, url in (("write", cluster.write_url), ("read", cluster.read_url)):
        sizes[side] = float(_ask(url, _TOTAL.format(schema=f"tandem_{side}")))
        for table in SMALL_TABLES[side]:
            sizes[table] = float(_ask(url, f"SELECT pg_total_relation_size('tandem_{side}.{table}')"))
    return sizes


_TOTAL = """
SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = '{schema}' AND c.relkind IN ('r', 'p')
"""


def _ask(url: str, query: str) -> Any:
    with psycopg.connect(url) as connection:
        [value] = connection.execute(query.encode()).fetchone() or (0,)
        return value or 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped before its end: nothing is proved")
