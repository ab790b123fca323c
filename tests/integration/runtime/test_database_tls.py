"""TLS to PostgreSQL, with Debian's server: the embedded one does not speak it."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast
from urllib.parse import quote

import psycopg
import pytest
import trustme
from pydantic import SecretStr
from sqlalchemy.exc import OperationalError

from commerce.query.v1 import query_service_pb2 as queries
from tandem.cli import embedded
from tandem.cli.embedded import Postgres, postgres_user
from tandem.commands import archiving
from tandem.runtime.database import create_database_engine
from tandem.runtime.listener import Listener
from tandem.runtime.settings import DatabaseSettings
from tests.support.builders import add_product, identity
from tests.support.ports import free_port
from tests.support.replicas import FAST
from tests.support.stack import Databases, Stack

DEBIANS = Path("/usr/lib/postgresql/15/bin")

pytestmark = pytest.mark.skipif(
    not DEBIANS.is_dir(), reason="PostgreSQL 15 is not installed (apt-get install postgresql-15): it speaks TLS"
)

Connect = Callable[[str], None]


class TlsPostgres(Postgres):
    """It refuses who speaks no TLS. Its certificate is for 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.ca_file = folder / "ca.pem"
        self.authority.cert_pem.write_to_path(self.ca_file)
        certificate = self.authority.issue_cert("127.0.0.1")
        files = folder / "server.pem", folder / "server.key"
        certificate.cert_chain_pems[0].write_to_path(files[0])
        certificate.private_key_pem.write_to_path(files[1])
        for file in files:
            file.chmod(0o600)
            if (user := postgres_user()) is not None:
                shutil.chown(file, user)
        settings = {"ssl": "on", "ssl_cert_file": str(files[0]), "ssl_key_file": str(files[1])}
        super().__init__(folder / "data", free_port(), settings=FAST | settings)

    def url(self, database: str) -> str:
        return self.url_of(database, self.ca_file)

    def url_of(self, database: str, authority: Path, host: str = "127.0.0.1") -> str:
        plain = super().url(database).replace("127.0.0.1", host)
        return f"{plain}?sslmode=verify-full&sslrootcert={quote(str(authority), safe='')}"

    def refuse_plain_text(self) -> None:
        (self._data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 trust\n", encoding="ascii")
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute("SELECT pg_reload_conf()")


@pytest.fixture(scope="module")
def server() -> Iterator[TlsPostgres]:
    with tempfile.TemporaryDirectory(prefix="tandem-test-") as folder, pytest.MonkeyPatch.context() as patch:
        Path(folder).chmod(0o711)
        patch.setattr(embedded, "postgres_folder", lambda: DEBIANS)
        server = TlsPostgres(Path(folder))
        server.start()
        try:
            server.refuse_plain_text()
            yield server
        finally:
            server.stop()


def by_engine(url: str) -> None:
    engine = create_database_engine(settings_of(url), name="test", pool_size=1)
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def by_listener(url: str) -> None:
    listener = Listener(settings_of(url), "news", "test")
    listener.wait(0)
    listener.close()


def settings_of(url: str) -> DatabaseSettings:
    return DatabaseSettings(url=SecretStr(url))


# All connections are made by one of the two.
@pytest.fixture(params=[by_engine, by_listener])
def connect(request: pytest.FixtureRequest) -> Connect:
    return cast(Connect, request.param)


def test_all_that_the_services_send_to_a_database_is_encrypted(
    server: TlsPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGSSLMODE", "disable")
    stack = Stack(Databases(server), tmp_path)
    try:
        stack.start()
        receipt = stack.commands.AddProduct(add_product(1), timeout=20).receipt
        request = queries.GetProductRequest(product_id=identity("product", 1))
        request.consistency.at_least_as_fresh = receipt.consistency_token
        request.consistency.max_wait.seconds = 20
        assert stack.queries.GetProduct(request, timeout=30).product.product_id == request.product_id
        with psycopg.connect(server.url("postgres")) as connection:
            found = connection.execute(
                "SELECT application_name, ssl FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) WHERE client_port > 0"
            ).fetchall()
        assert len(found) > 10
        assert all(encrypted for _, encrypted in found)
        archiving.run(settings_of(stack.write_url), archiving.ArchivingSettings(folder=tmp_path, keep_days=0))
    finally:
        stack.stop()


def test_a_server_that_speaks_no_tls_is_refused(server: TlsPostgres, postgres: Postgres, connect: Connect) -> None:
    url = server.url("postgres").replace(f":{server.port}", f":{postgres.port}")
    with pytest.raises((OperationalError, psycopg.OperationalError), match="does not support SSL"):
        connect(url)


@pytest.mark.parametrize("weaker", ["disable", "require"])
def test_another_host_and_another_authority_are_refused_whatever_the_environment_says(
    server: TlsPostgres, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weaker: str
) -> None:
    monkeypatch.setenv("PGSSLMODE", weaker)
    connect(server.url("postgres"))
    trustme.CA().cert_pem.write_to_path(tmp_path / "another.pem")
    refused = (OperationalError, psycopg.OperationalError)
    with pytest.raises(refused, match="certificate verify failed"):
        connect(server.url_of("postgres", tmp_path / "another.pem"))
    with pytest.raises(refused, match=r'"127\.0\.0\.1" does not match host name "localhost"'):
        connect(server.url_of("postgres", server.ca_file, host="localhost"))


def test_without_tls_the_server_refuses_us(server: TlsPostgres, connect: Connect) -> None:
    """So the tests above cannot pass by plain text."""
    plain = server.url("postgres").partition("?")[0]
    with pytest.raises((OperationalError, psycopg.OperationalError), match="no encryption"):
        connect(f"{plain}?sslmode=disable")
