"""Who holds others up in a database: by locks that sessions wait for, by a snapshot that keeps old versions of rows, or
by taking no notifications, whose queue all databases of a server have together.

The database itself is asked, as its owner, and no service: on the days on which it is asked, that may be what is held
up.
"""

from collections.abc import Mapping
from typing import Any

from psycopg import Connection as Driver
from psycopg.rows import dict_row

from tandem.runtime.actions import ActionRefused, Done
from tandem.runtime.database import driver_under, transaction
from tandem.runtime.settings import DatabaseSettings

_NAME = "tandem-blockers"
_OURS = "tandem-"

# A vacuum has no user; it holds nothing up. Who waits is looked for first: pg_blocking_pids stops all lock requests
# for a moment, each time. What a session of another role does is null without the role pg_read_all_stats. Who listens
# is not to be seen: where much waits to be notified, it may be any that is in a transaction and does nothing.
_SESSIONS = """
WITH waiting AS MATERIALIZED (SELECT DISTINCT pid FROM pg_locks WHERE NOT granted),
blocked AS MATERIALIZED (SELECT pid, pg_blocking_pids(pid) AS blockers FROM waiting),
queue AS MATERIALIZED (SELECT pg_notification_queue_usage() > 0.1 AS is_long),
sessions AS (
  SELECT a.*, datname = current_database() AS is_here,
    is_long AND state LIKE 'idle in transaction%'
      AND state_change < clock_timestamp() - interval '1 s' AS may_keep_notifications
  FROM pg_stat_activity AS a, queue WHERE pid <> pg_backend_pid() AND usesysid IS NOT NULL
)
SELECT a.pid, a.datname AS database, a.usename AS role, coalesce(a.application_name, '') AS program,
  a.client_addr::text AS address, a.state,
  extract(epoch FROM clock_timestamp() - a.xact_start)::float AS seconds, left(a.query, 200) AS query,
  (SELECT count(*) FROM blocked WHERE a.pid = ANY (blockers)) AS holds_up,
  (SELECT blockers FROM blocked WHERE blocked.pid = a.pid) AS waits_for,
  a.is_here AND (a.backend_xmin IS NOT NULL OR a.backend_xid IS NOT NULL) AS holds_snapshot, a.may_keep_notifications
FROM sessions a
WHERE a.is_here OR a.may_keep_notifications
ORDER BY holds_up DESC, a.xact_start NULLS LAST, a.pid
"""
_PREPARED = """
SELECT gid AS name, owner AS role, extract(epoch FROM clock_timestamp() - prepared)::float AS seconds
FROM pg_prepared_xacts WHERE database = current_database() ORDER BY prepared
"""
_SLOTS = """
SELECT slot_name AS name, active, pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)) AS keeps
FROM pg_replication_slots WHERE NOT pg_is_in_recovery() ORDER BY slot_name
"""


def blockers(settings: DatabaseSettings) -> Done:
    """The sessions that hold others up, the worst first, prepared transactions, and replication slots.

    Sessions of Tandem's own are shown only where somebody waits for them: each has a snapshot for a moment.
    """
    with transaction(settings, _NAME) as connection:
        driver = driver_under(connection)
        found = [it for it in _rows(driver, _SESSIONS) if _is_blocker(it)]
        fields = {"sessions": found, "prepared": _rows(driver, _PREPARED), "slots": _rows(driver, _SLOTS)}
    lines = [f"{it['pid']} {it['program']} holds {it['holds_up']} up" for it in found]
    return Done("\n".join(lines) or "nobody holds anybody up", fields)


def _is_blocker(session: Mapping[str, Any]) -> bool:
    keeps = session["holds_snapshot"] or session["may_keep_notifications"]
    return bool(session["holds_up"] or (keeps and not session["program"].startswith(_OURS)))


def end_session(settings: DatabaseSettings, pid: int) -> Done:
    """Ends one that `blockers` shows. Raises ActionRefused for others, and for Tandem's own: they end by themselves."""
    with transaction(settings, _NAME) as connection:
        driver = driver_under(connection)
        session = next((it for it in _rows(driver, _SESSIONS) if it["pid"] == pid), None)
        if session is None or not _is_blocker(session):
            raise ActionRefused(f"{pid} holds nobody up in this database: `tandem blockers` shows who does")
        if session["program"].startswith(_OURS):
            raise ActionRefused(
                f"{pid} is a session of Tandem's own ({session['program']}), which ends within its time-outs; when it"
                " does not, restart the service"
            )
        driver.execute("SELECT pg_terminate_backend(%s)", (pid,))
    return Done(f"{pid} ({session['program']}, {session['role']}) is ended", {"ended": pid})


def _rows(driver: "Driver[Any]", query: str) -> list[dict[str, Any]]:
    with driver.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query.encode()).fetchall()
