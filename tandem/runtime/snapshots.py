"""How long somebody has held a snapshot of a database: a dump, a report, a transaction that was forgotten. And locks,
and how full the queue of notifications is.

Meanwhile PostgreSQL takes no version of any row away. What Tandem looks up all the time does not pass through them
(ADR 35); the tables grow nevertheless, and so do the indexes of all that is changed often.
"""

import time
from typing import Any

import psycopg
from prometheus_client import Gauge

from tandem.runtime.notifications import MAKE_ROOM, QUEUE_USAGE
from tandem.runtime.telemetry import log

OLDEST_SNAPSHOT = Gauge(
    "tandem_oldest_snapshot_seconds",
    "For how long the oldest snapshot or transaction of others has been seen; it keeps old versions of rows",
    ["database"],
)
LOCK_WAITS = Gauge("tandem_lock_waits", "Sessions that wait for a lock of a database, when last looked", ["database"])
LONGEST_LOCK_WAIT = Gauge(
    "tandem_longest_lock_wait_seconds", "How long the one has waited that waits longest, when last looked", ["database"]
)
LOOK_EVERY_SECONDS = 30.0
_WARN_AFTER_SECONDS = 600.0

# Any role may see these columns, and not when a transaction of another role began. A vacuum has no user; it holds
# nothing up.
_OLDEST = """
SELECT pid, greatest(age(backend_xmin), age(backend_xid)) AS age,
  CASE WHEN greatest(age(backend_xmin), age(backend_xid)) = age(backend_xmin) THEN backend_xmin ELSE backend_xid END
FROM pg_stat_activity
WHERE pid <> pg_backend_pid() AND usesysid IS NOT NULL AND datname = current_database()
  AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
ORDER BY age DESC LIMIT 1
"""

# Any role may see these, too. Locks of no database are of rows that somebody changes: transactions.
_WAITS = """
SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(l.waitstart)), 0)
FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE NOT l.granted AND a.datname = current_database()
"""

_USAGE = f"SELECT {MAKE_ROOM}".encode()


class SnapshotWatch:
    """Looks now and then, for one thread, and knows since when it has seen the one that is the oldest."""

    def __init__(self, database: str) -> None:
        """database: its name in the gauge: write or read."""
        self._database = database
        self._oldest: tuple[Any, Any] | None = None
        self._since = 0.0
        self._warned = False

    def look(self, driver: "psycopg.Connection[Any]") -> float:
        """Sets the gauges, and returns the snapshot's seconds; a warning once for each that is held for minutes."""
        waits = driver.execute(_WAITS).fetchone()
        assert waits is not None, "an aggregate"
        LOCK_WAITS.labels(self._database).set(waits[0])
        LONGEST_LOCK_WAIT.labels(self._database).set(float(waits[1]))
        found = driver.execute(_OLDEST).fetchone()
        usage = driver.execute(_USAGE).fetchone()
        assert usage is not None, "a function"
        QUEUE_USAGE.labels(self._database).set(usage[0])
        now = time.monotonic()
        oldest = (found[0], found[2]) if found is not None else None
        if oldest != self._oldest:
            self._oldest, self._since, self._warned = oldest, now, False
        seconds = now - self._since if oldest is not None else 0.0
        OLDEST_SNAPSHOT.labels(self._database).set(seconds)
        if oldest is not None and seconds >= _WARN_AFTER_SECONDS and not self._warned:
            log.warning(
                "somebody holds a snapshot, so tables grow", database=self._database, pid=oldest[0], seconds=seconds
            )
            self._warned = True
        return seconds
