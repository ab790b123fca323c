from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr, ValidationError
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from tandem.runtime.database import connection_arguments, database_url, listen_url
from tandem.runtime.settings import DatabaseSettings, SettingsError


def settings(url: str, **more: Any) -> DatabaseSettings:
    return DatabaseSettings(url=SecretStr(url), **more)


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
    "url",
    [
        "postgresql://tandem:s3cret@one:5433,[::1]:5434,two/write?target_session_attrs=primary",
        "postgresql://tandem:s3cret@/write?host=one:5433&host=[::1]:5434&host=two&target_session_attrs=primary",
        "postgresql://tandem:s3cret@/write?host=one,::1,two&port=5433,5434,&target_session_attrs=primary",
    ],
)
def test_a_url_may_name_several_servers_of_which_the_primary_is_taken(url: str) -> None:
    given = settings(url)
    dialect: Any = PGDialect_psycopg
    _, arguments = dialect().create_connect_args(database_url(given))
    for taken in (arguments, conninfo_to_dict(listen_url(given))):
        assert {key: taken[key] for key in ("host", "port", "user", "password", "dbname", "target_session_attrs")} == {
            "host": "one,::1,two",
            "port": "5433,5434,",
            "user": "tandem",
            "password": "s3cret",
            "dbname": "write",
            "target_session_attrs": "primary",
        }


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://tandem:s3cret@one:5432,two:port/write",
        "db.internal",
        "mysql://tandem:s3cret@db/write",
        "postgresql://tandem:s3cret@db:port/write",
        "",
    ],
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
    # Of both ends: what a statement may take, and a second for the way.
    assert arguments["tcp_user_timeout"] == 2500
    assert "-c tcp_user_timeout=2500" in str(arguments["options"])
