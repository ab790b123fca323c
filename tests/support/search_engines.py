"""Emulators of search engines. Neither is OpenSearch or Elasticsearch; both keep what they have in memory."""

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import noida_db
import osmem_server

from shop.product_index import PRODUCT_INDEX
from tandem.cli.child import HOST, Child
from tandem.projection.indexing import Indexer
from tandem.projection.settings import FollowSettings
from tandem.queries.freshness import Freshness
from tandem.read_store.search_index import SearchEngineSettings
from tandem.runtime.settings import DatabaseSettings
from tandem.testing.ports import free_port
from tandem.testing.stack import kill

EMULATORS = ("osmem-server", "noida-db")


class SearchServer(Child):
    """One of EMULATORS: osmem-server is one of OpenSearch, noida-db one of Elasticsearch."""

    def __init__(self, emulator: str, folder: Path) -> None:
        super().__init__(emulator, free_port(), folder / f"{emulator}.log")
        self._folder = folder / emulator

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def launch(self) -> None:
        if self.name == "osmem-server":
            program = Path(osmem_server.resolve_binary())
            self._spawn([str(program), "--addr", self.address, "--no-ja", "--no-stdin-watch"])
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        program = Path(noida_db.__file__).with_name("noida-db")
        options = ["--only", "elasticsearch", "--elasticsearch-port", str(self.port), "--data-dir", str(self._folder)]
        self._spawn([str(program), "start", "--host", HOST, *options], folder=self._folder)

    def serves(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=1)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status == http.HTTPStatus.OK
        except OSError:
            return False
        finally:
            connection.close()

    def end(self) -> None:
        """At once: nobody needs what it has."""
        if self.exit_code() is None:
            kill(self)


@contextmanager
def search_server(emulator: str, folder: Path) -> Iterator[SearchServer]:
    server = SearchServer(emulator, folder)
    try:
        server.start()
        yield server
    finally:
        server.end()


def indexer(database: DatabaseSettings, engine: SearchEngineSettings, **follow: Any) -> Indexer:
    """Of the products. It keeps the change log's entries for ever."""
    settings = FollowSettings(**follow)
    return Indexer(PRODUCT_INDEX, engine, read_database=database, follow=settings, log_keeps_seconds=3600)


class Announcing(Freshness):
    """Says of every view that it is announced: for searches without a server around."""

    def __init__(self) -> None:
        """Follows nothing."""

    def announced(self, view: str) -> Any:
        return view

    def problem(self, view: str) -> None:
        return None
