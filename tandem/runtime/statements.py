"""Statements whose parameters are ready to be sent: they go past psycopg's cursors.

A cursor finds out, each time, how its statement is written, how each parameter is, and whether it is prepared: of the
1.0 ms that the eight statements of a single order took of the processor, this was 0.8. Here a statement is prepared
when it is first sent, and a parameter is bytes. psycopg's connection and its pipeline have all the rest: beginning a
transaction, sending, receiving, failing.
"""

import itertools
import re
from collections import deque, namedtuple
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import psycopg
from psycopg.abc import PQGen
from psycopg.adapt import Transformer
from psycopg.generators import execute
from psycopg.pq import ExecStatus, Format, TransactionStatus
from psycopg.pq.abc import PGconn, PGresult

from tandem.runtime.arrays import Parameter

Parameters = Sequence[Any] | Mapping[str, Any]
_Kinds = tuple[Any, ...]
# As many as psycopg keeps by itself.
_MOST = 100
_PLACE = re.compile(r"%(?:\((\w+)\))?s")


class Parsed(NamedTuple):
    """A statement as PostgreSQL takes it. names: of the values of $1 and so on; none where they come in that order."""

    text: bytes
    names: tuple[str, ...]

    def values(self, parameters: Parameters) -> Sequence[Any]:
        return [parameters[name] for name in self.names] if isinstance(parameters, Mapping) else parameters


@lru_cache(maxsize=512)
def parsed(query: str) -> Parsed:
    """query: as psycopg has it, with `%s` or `%(name)s`, or with PostgreSQL's own numbers."""
    names: dict[str, int] = {}
    numbers = itertools.count(1)

    def place(found: re.Match[str]) -> str:
        number = next(numbers) if found[1] is None else names.setdefault(found[1], len(names) + 1)
        return f"${number}"

    return Parsed(_PLACE.sub(place, query).encode(), tuple(names))


class Rows:
    """The answer to a statement, in binary form: in a pipeline it is there when that is over."""

    __slots__ = ("_named", "_rows", "_statement")

    def __init__(self, statement: "_Statement", *, named: bool) -> None:
        self._statement = statement
        self._named = named
        self._rows: list[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        assert self._rows is not None, "the pipeline is over"
        return iter(self._rows)

    @property
    def is_there(self) -> bool:
        return self._rows is not None

    def _check_results(self, results: Sequence[PGresult]) -> None:
        _check(results)

    def _set_results(self, results: Sequence[PGresult]) -> None:
        self._rows = self._statement.rows(results[0], named=self._named)


def is_answered(rows: "Rows | psycopg.Cursor[Any]") -> bool:
    """Whether the server has done a statement of a pipeline, also where what came behind it has failed."""
    return rows.is_there if isinstance(rows, Rows) else rows.pgresult is not None


class Pipeline(psycopg.Pipeline):
    """psycopg's, which can go on after a transaction that ends with the pipeline, and fails in that."""

    def _enqueue_sync(self) -> None:
        self.command_queue.append(self.pgconn.pipeline_sync)
        waiting: Any = _Sync(self.result_queue)
        self.result_queue.append((waiting, None))


class _Sync:
    """For the answer to a Sync. One that fails has two; psycopg takes one, and could not use the connection again."""

    def __init__(self, queue: "deque[Any]") -> None:
        self._queue = queue

    def _check_results(self, results: Sequence[PGresult]) -> None:
        [result] = results
        if result.status == ExecStatus.FATAL_ERROR:
            self._queue.appendleft((self, None))
        if result.status != ExecStatus.PIPELINE_SYNC:
            raise psycopg.errors.error_from_result(result)

    def _set_results(self, _results: Sequence[PGresult]) -> None:
        pass


class Statements:
    """Of one connection: what it has prepared."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._numbers = itertools.count()
        self._prepared: dict[tuple[str, _Kinds], _Statement] = {}

    def forget(self) -> None:
        """Each is prepared anew when it is sent again: the server has none any more, or none that it can use."""
        self._prepared.clear()

    def send(self, query: str, parameters: Parameters, *, named: bool) -> Rows | None:
        """Sends a statement: in a pipeline with whatever is sent next, elsewhere to be answered at once.

        None for one that is psycopg's to send. named: whether its rows are to be named tuples.
        """
        connection = self._connection
        pipeline: Any = connection._pipeline
        if connection.prepare_threshold is None or (pipeline is not None and self._is_psycopgs(pipeline)):
            return None
        it = parsed(query)
        values = it.values(parameters)
        kinds: _Kinds = tuple(map(type, values))
        statement = self._prepared.get((query, kinds))
        preparing = None
        if statement is None:
            if len(self._prepared) >= _MOST or not all(issubclass(kind, Parameter) for kind in kinds):
                return None
            # The first word tells who reads the wire what it is.
            name = b"tandem_%d_%b" % (next(self._numbers), it.text.split(maxsplit=1)[0])
            statement = _Statement(name, it.text, kinds, connection)
            # It is known when the server has said so: where something before it fails, it is not prepared.
            preparing = _Preparing(self._prepared, (query, kinds), statement)
        ready = [value.value for value in values]
        rows = Rows(statement, named=named)
        if pipeline is None:
            with connection.lock:
                connection.wait(self._answered(preparing, statement, ready, rows))
            return rows
        # What waits for an answer is a cursor to psycopg's pipeline, of which it calls two methods.
        if preparing is not None:
            statement.prepare(connection.pgconn)
            pipeline.result_queue.append((preparing, None))
        statement.execute(connection.pgconn, ready)
        pipeline.result_queue.append((rows, None))
        return rows

    def _is_psycopgs(self, pipeline: Any) -> bool:
        """Whether something of psycopg's is to be sent first: what it has collected, or a BEGIN."""
        connection = self._connection
        begins = not connection.autocommit and connection.pgconn.transaction_status == TransactionStatus.IDLE
        return begins or bool(pipeline.command_queue)

    def _answered(
        self, preparing: "_Preparing | None", statement: "_Statement", ready: Sequence[bytes], rows: Rows
    ) -> PQGen[None]:
        """A step of psycopg's, outside of a pipeline."""
        connection = self._connection
        yield from connection._start_query()
        if preparing is not None:
            statement.prepare(connection.pgconn)
            results = yield from execute(connection.pgconn)
            preparing._check_results(results)
            preparing._set_results(results)
        statement.execute(connection.pgconn, ready)
        results = yield from execute(connection.pgconn)
        rows._check_results(results)
        rows._set_results(results)


class _Statement:
    def __init__(self, name: bytes, text: bytes, kinds: _Kinds, connection: psycopg.Connection[Any]) -> None:
        self._name = name
        self._text = text
        self._oids = [kind.oid for kind in kinds]
        self._formats = [Format.BINARY] * len(kinds)
        # It reads rows of this statement, once it knows how.
        self._transformer = Transformer(connection)
        self._is_known = False
        self._make: Any = None

    def prepare(self, pgconn: PGconn) -> None:
        pgconn.send_prepare(self._name, self._text, self._oids)

    def execute(self, pgconn: PGconn, ready: Sequence[bytes]) -> None:
        pgconn.send_query_prepared(self._name, ready, self._formats, result_format=Format.BINARY)

    def rows(self, result: PGresult, *, named: bool) -> list[Any]:
        self._transformer.set_pgresult(result, set_loaders=not self._is_known)
        self._is_known = True
        if named and self._make is None:
            names = [(result.fname(number) or b"").decode() for number in range(result.nfields)]
            self._make = _row_of(tuple(names))._make
        rows = self._transformer.load_rows(0, result.ntuples, self._make if named else tuple)
        # It would keep the answer until the next one.
        self._transformer.set_pgresult(None, set_loaders=False)
        return rows


@lru_cache(maxsize=512)
def _row_of(names: tuple[str, ...]) -> Any:
    return namedtuple("Row", names, rename=True)


class _Preparing:
    """For the answer to a Parse."""

    def __init__(
        self,
        prepared: dict[tuple[str, _Kinds], _Statement],
        key: tuple[str, _Kinds],
        statement: _Statement,
    ) -> None:
        self._prepared = prepared
        self._key = key
        self._statement = statement

    def _check_results(self, results: Sequence[PGresult]) -> None:
        _check(results)

    def _set_results(self, _results: Sequence[PGresult]) -> None:
        self._prepared[self._key] = self._statement


def _check(results: Sequence[PGresult]) -> None:
    for it in results:
        if it.status == ExecStatus.PIPELINE_ABORTED:
            # Of the errors of a pipeline the first is raised, and never this one.
            raise psycopg.OperationalError("a statement before it failed")
        if it.status not in {ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK}:
            raise psycopg.errors.error_from_result(it)
