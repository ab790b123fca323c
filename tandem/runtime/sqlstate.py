"""What is done when PostgreSQL fails: one table, from what it says (SQLSTATE) to what each side does about it.

Whoever meets a failure asks `failure_of` and does what its column says. Nobody else looks at a SQLSTATE.
"""

from enum import Enum, auto
from functools import cache
from typing import NamedTuple

import psycopg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout


class BatchAction(Enum):
    """What becomes of a batch of commands, of which nothing is stored."""

    AGAIN = auto()  # The same is tried again until there is no time left; then STORE_UNAVAILABLE or OUTCOME_UNKNOWN.
    LOCKED = auto()  # It waited for locked rows: what needs them is set aside, the rest is run again. Then ROWS_BUSY.
    LATE = auto()  # So too; without locked rows it is halved, and what is late alone gets STORE_UNAVAILABLE.
    COLLIDED = auto()  # So too, a few times: what another transaction has stored is seen then.
    SPLIT = auto()  # Some command's fault: it is halved until that one is alone, which gets the error.


WAITED_TOO_LONG = (BatchAction.LOCKED, BatchAction.LATE)


class ViewAction(Enum):
    """What becomes of a projector's batch of events."""

    END_SESSION = auto()  # The session ends, and its locks with it. A new one is begun, here or by a standby.
    HALVE = auto()  # The view's next batch has half as many events; one event alone waits.
    PARK = auto()  # As HALVE, down to one event; the rows of that one that are refused are parked.
    WAIT = auto()  # Each view is tried alone. One that fails so too waits a little, and the others go on.
    FAIL = auto()  # Each view is tried alone. One that fails so too is FAILED until it can go on.


class QueryAction(Enum):
    """What a caller gets of a read."""

    AWAY = auto()  # STORE_UNAVAILABLE: the database is away.
    SLOW = auto()  # STORE_UNAVAILABLE: the database took too long.
    BUG = auto()  # INTERNAL: the statement, or what it was given, is wrong.


class Failure(NamedTuple):
    """A row of the table.

    states: SQLSTATEs, or what they begin with. drop: the connection is closed and not given back to its pool: the next
    one may lead to a server that can do it. unknown: a COMMIT that was on its way may have been done.
    """

    what: str
    states: tuple[str, ...]
    drop: bool
    unknown: bool
    batch: BatchAction
    view: ViewAction
    query: QueryAction


_AGAIN, _LOCKED, _LATE, _COLLIDED, _SPLIT = BatchAction
_END, _HALVE, _PARK, _WAIT, _FAIL = ViewAction
_AWAY, _SLOW, _BUG = QueryAction

# fmt: off
NO_ANSWER = Failure(
    "the server did not answer: the connection was not made, or broke, or none was free",
    (), True, True, _AGAIN, _END, _AWAY,
)
FAULT = Failure("anything else", (), False, False, _SPLIT, _FAIL, _BUG)
REFUSED = Failure(
    "a value is no such value, does not fit, or is too large for an index",
    ("22", "54000"), False, False, _SPLIT, _PARK, _BUG,
)
NOT_PREPARED = Failure(
    "a prepared statement is not there, or its plan does not fit its table any more",
    ("26000",), False, False, _AGAIN, _WAIT, _AWAY,
)
NOT_NOTIFIED = Failure(
    "the queue of notifications is full: somebody listens in a transaction that does not end",
    (), False, False, _AGAIN, _WAIT, _AWAY,
)
TABLE = (
    # what, states, drop, unknown, batch, view, query
    Failure("the connection",                               ("08",),            True,  True,  _AGAIN,    _END,  _AWAY),
    Failure("the server stops, or takes no sessions yet",   ("57P", "57000"), True,  True,  _AGAIN,    _END,  _AWAY),
    Failure("it ended a session that was idle too long",    ("25P03", "25P04"), True,  True,  _AGAIN,    _END,  _AWAY),
    Failure("it takes no writes: a standby",                ("25006",),         True,  False, _AGAIN,    _END,  _AWAY),
    Failure("a statement took too long, or was cancelled",  ("57014",),         False, False, _LATE,     _HALVE, _SLOW),
    Failure("a lock was not to be had in time",             ("55P03",),         False, False, _LOCKED,   _WAIT,  _AWAY),
    Failure("a deadlock, or a failed serialisation",        ("40",),            False, False, _AGAIN,    _WAIT,  _AWAY),
    Failure("out of memory, disk or connections",           ("53",),            False, False, _AGAIN,    _WAIT,  _AWAY),
    Failure("no such table: it is not migrated yet",        ("42P01", "3F000"), False, False, _AGAIN,    _FAIL, _AWAY),
    Failure("another transaction stored the same",          ("23505",),         False, False, _COLLIDED, _FAIL, _BUG),
    Failure("a row breaks a rule of its table",             ("23",),            False, False, _SPLIT,    _PARK, _BUG),
    NOT_PREPARED,
    REFUSED,
)
# fmt: on

# "Not supported" and "a limit" say nothing of what failed; which function of PostgreSQL's said so tells it apart.
BY_FUNCTION = {
    ("0A000", "RevalidateCachedQuery"): NOT_PREPARED,
    ("54000", "PreCommit_Notify"): NOT_NOTIFIED,
}


def failure_of(error: BaseException) -> Failure:
    """What an error is, of the driver's or SQLAlchemy's; FAULT for one that is neither's."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    row = None
    if isinstance(cause, psycopg.Error) and cause.sqlstate:
        row = BY_FUNCTION.get((cause.sqlstate, cause.diag.source_function or "")) or _row_of(cause.sqlstate)
        if row.drop:
            return row
    if isinstance(error, PoolTimeout) or (isinstance(error, DBAPIError) and error.connection_invalidated):
        return NO_ANSWER
    if row is not None:
        return row
    if isinstance(cause, psycopg.DataError):
        # The driver refuses it, as the server would: a NUL in a text.
        return REFUSED
    # Without a SQLSTATE no server has said anything.
    unsaid = isinstance(cause, psycopg.OperationalError | psycopg.InterfaceError) and cause.sqlstate is None
    return NO_ANSWER if unsaid else FAULT


@cache
def _row_of(state: str) -> Failure:
    return next((row for row in TABLE if state.startswith(row.states)), FAULT)
