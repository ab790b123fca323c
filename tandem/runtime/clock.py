"""The time for what cannot be undone: the database's, where this server's own agrees with it."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from prometheus_client import Gauge
from sqlalchemy import Connection, text

CLOCK_DIFFERENCE = Gauge(
    "tandem_clock_difference_seconds",
    "How far this server's clock is ahead of the write database's, when last compared",
)
# More than NTP leaves, and than an answer takes; less than anybody's days of grace.
_AGREE = timedelta(minutes=1)

Clock = Callable[[], datetime]
"""Gives the time, in UTC."""


class ClocksDiffer(Exception):
    """One of the two clocks is wrong, and nobody can say which: what cannot be undone must wait."""


def utc_now() -> datetime:
    return datetime.now(UTC)


def database_time(connection: Connection) -> datetime:
    """The database's, in UTC: that of now, not of the transaction's beginning."""
    now: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    return now.astimezone(UTC)


def agreed_time(connection: Connection, clock: Clock) -> datetime:
    """The database's time. clock: this server's. Raises ClocksDiffer where they are more than a minute apart."""
    theirs = database_time(connection)
    ahead = clock() - theirs
    CLOCK_DIFFERENCE.set(ahead.total_seconds())
    if abs(ahead) > _AGREE:
        seconds = ahead.total_seconds()
        raise ClocksDiffer(f"this server's clock and the write database's are {seconds:+.0f} s apart; set them right")
    return theirs
