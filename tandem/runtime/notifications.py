"""Notifications that PostgreSQL does not take, and what is done then.

It keeps what was notified in one queue for all databases of a server until each session that listens has read it, and
one that is in a transaction reads nothing. When the queue is full, 8 GB by default, no transaction that notifies can
commit. Whom a notification is for looks by himself too, later: so nothing else may depend on it.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from prometheus_client import Counter, Gauge

from tandem.runtime.database import first_line
from tandem.runtime.sqlstate import NOT_NOTIFIED, failure_of
from tandem.runtime.telemetry import log

REFUSED = Counter(
    "tandem_notifications_refused_total",
    "Times that a database could not notify those who wait for it: they find by themselves what there is, later",
    ["to"],
)
QUEUE_USAGE = Gauge(
    "tandem_notification_queue_usage",
    "Which part of the queue of notifications of the database's server is full, when last looked; at 1 nobody is"
    " notified",
    ["database"],
)

MAKE_ROOM = "pg_notification_queue_usage()"
"""What a statement selects to have PostgreSQL forget what everybody has read.

Otherwise it does so when notifications are added, and a queue that is full stays so after who filled it has gone.
"""


class Notified:
    """Whether some can be notified, as it was the last time. For any thread."""

    def __init__(self, to: str) -> None:
        """to: who they are, in the metric and the log."""
        self._to = to
        self._lock = threading.Lock()
        self.fails = False

    def note(self, error: Exception | None) -> None:
        """error: why it could not be done; None where it was. Logged once for each change, not once for each batch.

        A connection that broke, or a lock that was not to be had, says nothing about the next time.
        """
        if error is not None:
            REFUSED.labels(self._to).inc()
            if failure_of(error) is not NOT_NOTIFIED:
                return
        if self.fails == (error is not None):
            return
        with self._lock:
            if self.fails == (error is not None):
                return
            self.fails = error is not None
            if error is not None:
                log.warning(f"{self._to} cannot be notified, and look by themselves", error=first_line(error))
            else:
                log.info(f"{self._to} are notified again")

    @contextmanager
    def trying(self, driver: "psycopg.Connection[Any]") -> Iterator[None]:
        """For a transaction that does nothing but notify: it is no failure that the queue is full.

        driver: in autocommit mode, after the transaction. Raises psycopg.Error.
        """
        try:
            yield
        except psycopg.Error as error:
            if failure_of(error) is not NOT_NOTIFIED:
                raise
            self.note(error)
            driver.execute(f"SELECT {MAKE_ROOM}".encode())
        else:
            self.note(None)
