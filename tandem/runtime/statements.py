"""Statements of a pipeline whose parameters are ready to be sent: they go past psycopg's cursors.

A cursor finds out, each time, how its statement is written, how each parameter is, and whether it is prepared: of the
1.0 ms that the eight statements of a single order took of the processor, this was 0.8. Here a statement is prepared
when it is first sent, and a parameter is bytes. psycopg's pipeline has all the rest: sending, receiving, failing.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import psycopg
from psycopg.adapt import Transformer
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGresult

from tandem.runtime.arrays import Parameter
from tandem.runtime.sqlstate import NOT_PREPARED, failure_of

Parameters = Sequence[Any] | Mapping[str, Any]
_Kinds = tuple[Any, ...]
# As many as psycopg keeps by itself.
_MOST = 100
_PLACE = re.compile(r"%(?:\((\w+)\))?s")


class Rows:
    """The answer to a statement, in binary form: there when the pipeline is over."""

    __slots__ = ("_result", "_statement", "_statements")

    def __init__(self, statement: "_Statement", statements: "Statements") -> None:
        self._statement = statement
        self._statements = statements
        self._result: PGresult | None = None

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        result, statement = self._result, self._statement
        assert result is not None, "the pipeline is over"
        statement.transformer.set_pgresult(result, set_loaders=not statement.is_known)
        statement.is_known = True
        return iter(statement.transformer.load_rows(0, result.ntuples, tuple))

    def _check_results(self, results: Sequence[PGresult]) -> None:
        try:
            _check(results)
        except psycopg.Error as error:
            if failure_of(error) is NOT_PREPARED:
                self._statements.forget()
            raise

    def _set_results(self, results: Sequence[PGresult]) -> None:
        self._result = results[0]


class Statements:
    """Of one connection: what it has prepared. For whoever has the connection."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._numbers = itertools.count()
        self._prepared: dict[tuple[str, _Kinds], _Statement] = {}

    def forget(self) -> None:
        """Each is prepared anew when it is sent again: the server has none any more, or none that it can use."""
        self._prepared.clear()

    def send(self, query: str, parameters: Parameters) -> Rows | None:
        """Sends a statement of the connection's pipeline, with whatever is sent next.

        None for one that is psycopg's to send: outside of a pipeline, or with parameters that are not ready. query: as
        psycopg has it, with `%s` or `%(name)s`.
        """
        connection = self._connection
        # What waits for an answer is a cursor to psycopg's pipeline, of which it calls two methods.
        pipeline: Any = connection._pipeline
        if pipeline is None or pipeline.command_queue or connection.prepare_threshold is None:
            return None
        text, names = _parsed(query)
        values = [parameters[name] for name in names] if isinstance(parameters, Mapping) else parameters
        kinds: _Kinds = tuple(map(type, values))
        statement = self._prepared.get((query, kinds))
        if statement is None:
            if len(self._prepared) >= _MOST or not all(issubclass(kind, Parameter) for kind in kinds):
                return None
            # The first word tells who reads the wire what it is.
            name = b"tandem_%d_%b" % (next(self._numbers), text.split(maxsplit=1)[0])
            statement = _Statement(name, len(kinds), connection)
            connection.pgconn.send_prepare(statement.name, text, [kind.oid for kind in kinds])
            # It is known when the server has said so: where something before it fails, it is not prepared.
            pipeline.result_queue.append((_Preparing(self._prepared, (query, kinds), statement), None))
        connection.pgconn.send_query_prepared(
            statement.name, [it.value for it in values], statement.formats, result_format=Format.BINARY
        )
        rows = Rows(statement, self)
        pipeline.result_queue.append((rows, None))
        return rows


class _Statement:
    """transformer: reads rows of this statement. is_known: whether it knows how."""

    def __init__(self, name: bytes, parameters: int, connection: psycopg.Connection[Any]) -> None:
        self.name = name
        self.formats = [Format.BINARY] * parameters
        self.transformer = Transformer(connection)
        self.is_known = False


class _Preparing:
    """Stands where psycopg's pipeline expects a cursor, for the answer to a Parse."""

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


@lru_cache(maxsize=512)
def _parsed(query: str) -> tuple[bytes, tuple[str, ...]]:
    """The query with PostgreSQL's own $1, and the names of its parameters, in that order; no names for `%s`."""
    names: dict[str, int] = {}
    numbers = itertools.count(1)

    def place(found: re.Match[str]) -> str:
        number = next(numbers) if found[1] is None else names.setdefault(found[1], len(names) + 1)
        return f"${number}"

    return _PLACE.sub(place, query).encode(), tuple(names)
