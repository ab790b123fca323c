"""One table says what is done when PostgreSQL fails: each row is met by an error of the driver's."""

from typing import Any

import psycopg
import pytest
from psycopg import errors
from psycopg.pq import DiagnosticField
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from tandem.runtime.database import ServerSilent
from tandem.runtime.sqlstate import (
    FAULT,
    NO_ANSWER,
    NOT_NOTIFIED,
    NOT_PREPARED,
    REFUSED,
    TABLE,
    BatchAction,
    Failure,
    QueryAction,
    ViewAction,
    failure_of,
)

BY_STATE: list[type[psycopg.Error]] = [
    errors.ConnectionFailure,
    errors.AdminShutdown,
    errors.IdleInTransactionSessionTimeout,
    errors.ReadOnlySqlTransaction,
    errors.QueryCanceled,
    errors.LockNotAvailable,
    errors.DeadlockDetected,
    errors.TooManyConnections,
    errors.UndefinedTable,
    errors.UniqueViolation,
    errors.CheckViolation,
    errors.InvalidSqlStatementName,
    errors.NumericValueOutOfRange,
]


def wrapped(cause: BaseException, *, invalidated: bool = False) -> DBAPIError:
    return DBAPIError("SELECT 1", None, cause, connection_invalidated=invalidated)


@pytest.mark.parametrize(
    ("kind", "row"), list(zip(BY_STATE, TABLE, strict=True)), ids=lambda it: getattr(it, "__name__", "")
)
def test_each_row_is_met_by_its_error_bare_and_wrapped(kind: type[psycopg.Error], row: Failure) -> None:
    assert failure_of(kind("…")) is row
    assert failure_of(wrapped(kind("…"))) is row


@pytest.mark.parametrize(
    "error",
    [psycopg.OperationalError("…"), psycopg.InterfaceError("…"), ServerSilent("…"), PoolTimeout("…")],
    ids=lambda it: type(it).__name__,
)
def test_where_no_server_spoke_none_is_there(error: Exception) -> None:
    assert failure_of(error) is NO_ANSWER


@pytest.mark.parametrize(
    "error",
    [errors.UndefinedColumn("…"), psycopg.ProgrammingError("…"), ValueError("…")],
    ids=lambda it: type(it).__name__,
)
def test_whatever_else_it_is_is_a_fault_of_what_was_asked(error: Exception) -> None:
    assert failure_of(error) is FAULT
    assert failure_of(wrapped(error)) is FAULT


@pytest.mark.parametrize("kind", [psycopg.ProgrammingError, errors.UniqueViolation, errors.TooManyConnections])
def test_a_connection_that_broke_gave_no_answer_whatever_the_driver_said(kind: type[psycopg.Error]) -> None:
    assert failure_of(wrapped(kind("…"), invalidated=True)) is NO_ANSWER


@pytest.mark.parametrize(
    ("kind", "function", "row", "otherwise"),
    [
        (errors.ProgramLimitExceeded, "PreCommit_Notify", NOT_NOTIFIED, REFUSED),
        (errors.FeatureNotSupported, "RevalidateCachedQuery", NOT_PREPARED, FAULT),
    ],
)
def test_what_has_the_sqlstate_of_much_else_is_told_apart_by_what_said_it(
    kind: type[psycopg.Error], function: str, row: Failure, otherwise: Failure
) -> None:
    said: Any = dict.fromkeys(DiagnosticField) | {DiagnosticField.SOURCE_FUNCTION: function.encode()}
    told = kind("…", info=said)
    assert failure_of(told) is failure_of(wrapped(told)) is row
    assert failure_of(kind("…")) is otherwise


def test_what_the_driver_itself_cannot_write_is_refused_as_by_the_server() -> None:
    assert failure_of(psycopg.DataError("a text with a NUL")) is REFUSED


def test_a_server_that_takes_no_writes_has_stored_nothing() -> None:
    failure = failure_of(wrapped(errors.ReadOnlySqlTransaction("…"), invalidated=True))
    assert (failure.drop, failure.unknown) == (True, False)


def test_what_is_dropped_is_tried_again_everywhere() -> None:
    for it in (NO_ANSWER, *TABLE):
        if it.drop:
            assert (it.batch, it.view, it.query) == (BatchAction.AGAIN, ViewAction.END_SESSION, QueryAction.AWAY)
