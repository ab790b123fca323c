from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import errors
from pydantic import SecretStr, ValidationError
from sqlalchemy.exc import DBAPIError

from tandem.runtime.database import connection_arguments, database_url, listen_url, may_pass
from tandem.runtime.settings import DatabaseSettings, SettingsError


def settings(url: str, **more: Any) -> DatabaseSettings:
    return DatabaseSettings(url=SecretStr(url), **more)


def wrapped(cause: BaseException, *, invalidated: bool = False) -> DBAPIError:
    return DBAPIError("SELECT 1", None, cause, connection_invalidated=invalidated)


@pytest.mark.parametrize(
    "kind",
    [
        errors.ConnectionFailure,
        errors.DeadlockDetected,
        errors.SerializationFailure,
        errors.TooManyConnections,
        errors.AdminShutdown,
        errors.CrashShutdown,
        errors.CannotConnectNow,
        errors.QueryCanceled,
        errors.ReadOnlySqlTransaction,
        errors.LockNotAvailable,
        psycopg.OperationalError,
        psycopg.InterfaceError,
    ],
    ids=lambda kind: kind.__name__,
)
def test_what_the_store_does_for_a_while_may_pass(kind: type[psycopg.Error]) -> None:
    assert may_pass(kind("…"))
    assert may_pass(wrapped(kind("…")))


@pytest.mark.parametrize(
    "kind",
    [
        errors.UniqueViolation,
        errors.CheckViolation,
        errors.UndefinedTable,
        errors.InsufficientPrivilege,
        errors.NumericValueOutOfRange,
        psycopg.ProgrammingError,
        ValueError,
    ],
    ids=lambda kind: kind.__name__,
)
def test_what_is_wrong_in_itself_does_not_pass(kind: type[Exception]) -> None:
    assert not may_pass(kind("…"))
    assert not may_pass(wrapped(kind("…")))


def test_a_connection_that_was_lost_may_pass_whatever_the_driver_said() -> None:
    assert may_pass(wrapped(psycopg.ProgrammingError("…"), invalidated=True))


def test_the_password_comes_from_its_file_without_the_line_end(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("fr@m file/\n")
    url = database_url(settings("postgresql://tandem@db.internal:5433/write", password_file=file))
    assert (url.password, url.host, url.port, url.drivername) == (
        "fr@m file/",
        "db.internal",
        5433,
        "postgresql+psycopg",
    )
    given = settings("postgresql://tandem@db.internal:5433/write", password_file=file)
    assert listen_url(given) == "postgresql://tandem:fr%40m file%2F@db.internal:5433/write"


def test_a_socket_folder_may_stand_for_a_host() -> None:
    assert database_url(settings("postgresql://tandem@/write?host=/run/postgresql")).query["host"] == "/run/postgresql"


@pytest.mark.parametrize(
    "url", ["db.internal", "mysql://tandem:s3cret@db/write", "postgresql://tandem:s3cret@db:port/write", ""]
)
def test_a_url_of_another_form_is_a_wrong_setting_and_shows_no_secret(url: str) -> None:
    with pytest.raises(ValidationError, match="postgresql://") as raised:
        settings(url)
    assert "s3cret" not in str(raised.value)


def test_a_password_file_that_is_missing_is_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="password_file"):
        database_url(settings("postgresql://tandem@db/write", password_file=tmp_path / "none"))


def test_every_session_has_limits_and_a_name() -> None:
    arguments = connection_arguments(settings("postgresql://db/write", statement_timeout=1.5), "tandem-test")
    assert arguments["application_name"] == "tandem-test"
    assert "-c statement_timeout=1500ms" in str(arguments["options"])
    assert "-c idle_in_transaction_session_timeout=1500ms" in str(arguments["options"])
