"""The client of a search engine: six requests that Elasticsearch and OpenSearch both take, and describe alike.

A document is stored with its row's position as its version (`external_gte`). So one that comes late, from a projector
that paused or was replaced, is refused by the engine itself, and to store one again changes nothing. Nothing is
deleted by key: an engine forgets after a minute, or at once, which version a document had that it deleted.

An index is written by an alias that comes into being with it. Without `require_alias` an engine makes an index by
itself, of whatever comes first, in place of one that somebody deleted.
"""

import json
import ssl
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tandem.read_store.search_index import (
    MOST_FOUND,
    Document,
    EngineAway,
    IndexGone,
    SearchEngineSettings,
    SearchIndex,
    SearchRefused,
    Written,
)
from tandem.runtime.settings import SettingsError

if TYPE_CHECKING:
    import urllib3

# Of one request. An engine takes 100 MB, unless it is told otherwise.
_MOST_BYTES = 4_000_000
# Of what an engine says of an error, in ours.
_LONGEST = 500
_FOUND, _CONFLICT, _REFUSED = 200, 409, 400


class SearchEngine:
    """For any thread."""

    def __init__(self, settings: SearchEngineSettings) -> None:
        """Connects at the first use. Raises SettingsError where its package is missing, or a file cannot be read."""
        try:
            # It is in an extra, and tries to bind a socket when it is imported.
            import urllib3  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise SettingsError(f"search engine: {error.name} is missing: pip install 'tandem-cqrs[search]'") from error
        self._search_timeout = urllib3.Timeout(total=settings.timeout)
        self._write_timeout = urllib3.Timeout(total=settings.write_timeout)
        # All that it raises, and what it raises where the other end has closed the connection.
        self._failures = (urllib3.exceptions.HTTPError, OSError, ValueError)
        self._was_closed = urllib3.exceptions.ProtocolError
        secure: dict[str, Any] = {}
        try:
            password = settings.password_file.read_text(encoding="utf-8").strip() if settings.password_file else ""
            if settings.url.startswith("https://"):
                secure["ssl_context"] = ssl.create_default_context(cafile=settings.ca_file)
        except OSError as error:
            raise SettingsError(f"search engine: {error}") from error
        self._headers = urllib3.make_headers(
            keep_alive=True, basic_auth=f"{settings.user}:{password}" if settings.user else None
        )
        self._pool = urllib3.connection_from_url(settings.url, maxsize=8, **secure)

    def close(self) -> None:
        self._pool.close()

    def create(self, name: str, index: SearchIndex) -> None:
        """Makes an index, unless it is there. Raises EngineAway."""
        status, answer = self._ask("PUT", f"/{name}-0", {**index.body, "aliases": {name: {}}})
        if status != _FOUND and "resource_already_exists_exception" not in str(answer):
            raise _failed(status, answer)

    def is_there(self, name: str) -> bool:
        """Raises EngineAway."""
        status, answer = self._ask("HEAD", f"/{name}")
        if status not in {_FOUND, 404}:
            raise _failed(status, answer)
        return status == _FOUND

    def drop(self, name: str) -> None:
        """Raises EngineAway."""
        status, answer = self._ask("DELETE", f"/{name}-0")
        if status not in {_FOUND, 404}:
            raise _failed(status, answer)

    def write(self, names: Sequence[str], documents: Iterable[Document]) -> Written:
        """Stores documents in each of the indexes, where searches find them after `refresh`.

        Raises EngineAway, and IndexGone for an index that is not there: those behind it may have been stored or not.
        """
        taken = refused = size = 0
        lines: list[bytes] = []
        for it in documents:
            version = {"_id": it.id, "version": it.version, "version_type": "external_gte"}
            fields = _json(it.fields)
            for name in names:
                lines += [_json({"index": {"_index": name, **version}}), fields]
                size += len(lines[-1]) + len(lines[-2])
            if size > _MOST_BYTES:
                done = self._write(lines)
                taken, refused, size, lines = taken + done.taken, refused + done.refused, 0, []
        done = self._write(lines) if lines else Written(0, 0)
        return Written(taken + done.taken, refused + done.refused)

    def _write(self, lines: Sequence[bytes]) -> Written:
        status, answer = self._ask("POST", "/_bulk?require_alias=true", b"\n".join([*lines, b""]))
        if status != _FOUND:
            raise _failed(status, answer)
        refused = 0
        for item in answer["items"]:
            its_status, error = item["index"]["status"], item["index"].get("error")
            if its_status == _CONFLICT:
                refused += 1
            elif error is not None:
                raise _failed(its_status, error)
        return Written(len(lines) // 2 - refused, refused)

    def refresh(self, names: Sequence[str]) -> None:
        """All that was stored is found by searches that begin later. Raises EngineAway, IndexGone."""
        status, answer = self._ask("POST", f"/{','.join(names)}/_refresh")
        if status != _FOUND or answer["_shards"]["failed"]:
            raise _failed(status, answer)

    def search(self, name: str, body: dict[str, Any]) -> list[tuple[str, float]]:
        """The ids of what is found, in the order that `body` asks for, each with its score; MOST_FOUND at most.

        Raises EngineAway, IndexGone, and SearchRefused for a search that is too large for it.
        """
        wanted = {"size": MOST_FOUND, "_source": False, "track_total_hits": False, "track_scores": True, **body}
        path = (
            f"/{name}/_search?allow_partial_search_results=false"
            "&filter_path=timed_out,_shards.failed,hits.hits._id,hits.hits._score,error"
        )
        status, answer = self._ask("POST", path, wanted, self._search_timeout)
        if status == _REFUSED:
            raise SearchRefused(str(answer)[:_LONGEST])
        if status != _FOUND or answer["timed_out"] or answer["_shards"]["failed"]:
            raise _failed(status, answer)
        return [(it["_id"], it["_score"]) for it in answer.get("hits", {}).get("hits", ())]

    def _ask(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | bytes | None = None,
        timeout: "urllib3.Timeout | None" = None,
    ) -> tuple[int, Any]:
        """Its status, and what it answers. Raises EngineAway."""
        kind = "application/x-ndjson" if isinstance(body, bytes) else "application/json"
        sent = _json(body) if isinstance(body, dict) else body
        headers = {**self._headers, **({"content-type": kind} if sent is not None else {})}

        def ask() -> "urllib3.BaseHTTPResponse":
            return self._pool.request(
                method,
                path,
                body=sent,
                headers=headers,
                timeout=timeout or self._write_timeout,
                retries=False,
                redirect=False,
            )

        try:
            try:
                answer = ask()
            except self._was_closed:
                # It may have ended a connection that was idle. Whatever is asked may be asked twice.
                answer = ask()
            return answer.status, json.loads(answer.data) if answer.data else {}
        except self._failures as error:
            raise EngineAway(f"{type(error).__name__}: {error}"[:_LONGEST]) from error


def _json(it: Any) -> bytes:
    return json.dumps(it, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _failed(status: int, answer: Any) -> EngineAway:
    said = f"it answers {status}: {answer}"[:_LONGEST]
    return IndexGone(said) if status == 404 else EngineAway(said)
