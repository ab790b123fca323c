"""The RPCs of ProjectionService about parked rows: what is parked is read, what is asked is written down for the
projector that owns the view (`redriving.py`). Any projector answers.
"""

import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass
from sqlalchemy import Connection, Engine, TextClause, text
from sqlalchemy.exc import SQLAlchemyError

from tandem.feed.envelope import envelope_of
from tandem.projection.redriving import DROP, REDRIVE, Outcome
from tandem.read_store.tables import operation, parked
from tandem.runtime.call import Call
from tandem.runtime.checker import Checker
from tandem.runtime.database import read_pooled
from tandem.runtime.errors import NotFound, Unavailable
from tandem.runtime.sqlstate import QueryAction, failure_of
from tandem.runtime.worker import one_by_one

_DEFAULT_PAGE = 100
_MOST_ON_PAGE = 1000
_MOST_EVENTS = 1000
_LONGEST_REASON = 500

_LIST = text(f"""
SELECT p.view, p.key, p.position, p.error, p.parked_at,
    (SELECT count(*) FROM {parked.fullname} AS w WHERE w.view = p.view AND w.key = p.key) AS waiting
FROM {parked.fullname} AS p
WHERE error IS NOT NULL AND (:view = '' OR view = :view) AND (view, key) > (:after_view, CAST(:after_key AS uuid))
ORDER BY view, key LIMIT :most
""")  # noqa: S608 - only names of tables are put in, here and below
_ONE = text(f"""
SELECT p.view, p.key, p.position, p.error, p.parked_at,
    (SELECT count(*) FROM {parked.fullname} AS w WHERE w.view = p.view AND w.key = p.key) AS waiting
FROM {parked.fullname} AS p WHERE error IS NOT NULL AND view = :view AND key = CAST(:key AS uuid)
""")  # noqa: S608
_EVENTS = text(f"""
SELECT position, kind FROM {parked.fullname} WHERE view = :view AND key = CAST(:key AS uuid)
ORDER BY position LIMIT {_MOST_EVENTS}
""")  # noqa: S608
_ASK = text(f"""
INSERT INTO {operation.fullname} (id, view, action, key, actor, reason)
VALUES (:id, :view, :action, CAST(:key AS uuid), :actor, :reason)
""")  # noqa: S608
_ASKED = text(f"SELECT view, done_at, outcome FROM {operation.fullname} WHERE id = CAST(:id AS uuid)")  # noqa: S608
_FIRST_KEY = str(uuid.UUID(int=0))


class ParkedKeys:
    """rpcs: their names. handle: a worker's handler."""

    def __init__(self, descriptor: ServiceDescriptor, read: Engine, views: Collection[str]) -> None:
        """read: in autocommit mode. views: those that there are."""
        self._read = read
        self._views = views
        answers: dict[str, Callable[[Any, Checker, str], Any]] = {
            "ListParkedKeys": self._list,
            "GetParkedKey": self._get,
            "RedriveParkedKeys": self._redrive,
            "DropParkedKey": self._drop,
            "GetOperation": self._operation,
        }
        methods = descriptor.methods_by_name
        self._answers = {name: answer for name, answer in answers.items() if name in methods}
        self._responses: dict[str, Any] = {it: GetMessageClass(methods[it].output_type) for it in self._answers}
        self.rpcs = tuple(self._answers)
        self.handle = one_by_one(self._answer)

    def _answer(self, call: Call) -> Any:
        name = call.method.name
        actor = envelope_of(call.metadata(), "", call.actor).actor
        return self._answers[name](call.request, Checker(), actor)

    def _list(self, request: Any, check: Checker, _actor: str) -> Any:
        self._check_view(check, request.view, required=False)
        size = check.number("page_size", request.page_size, 0, _MOST_ON_PAGE) or _DEFAULT_PAGE
        after_view, _, after_key = request.page_token.partition("/")
        if request.page_token and not check.uuid("page_token", after_key):
            after_key = ""
        check.finish()
        arguments = {"view": request.view, "after_view": after_view, "after_key": after_key or _FIRST_KEY}
        rows = self._execute(_LIST, {**arguments, "most": size + 1})
        answer = self._responses["ListParkedKeys"]()
        for row in rows[:size]:
            _fill(answer.parked_keys.add(), row)
        if len(rows) > size:
            answer.next_page_token = f"{rows[size - 1].view}/{rows[size - 1].key}"
        return answer

    def _get(self, request: Any, check: Checker, _actor: str) -> Any:
        self._check_key(check, request)
        key = {"view": request.view, "key": request.key}
        rows = self._execute(_ONE, key)
        if not rows:
            raise NotFound("parked_key", f"{request.view}/{request.key}")
        answer = self._responses["GetParkedKey"]()
        _fill(answer.parked_key, rows[0])
        for row in self._execute(_EVENTS, key):
            answer.events.add(position=row.position, kind=row.kind)
        return answer

    def _redrive(self, request: Any, check: Checker, actor: str) -> Any:
        if request.key:
            self._check_key(check, request)
        self._check_view(check, request.view)
        check.finish()
        return self._responses["RedriveParkedKeys"](operation_id=self._ask(REDRIVE, request, actor, ""))

    def _drop(self, request: Any, check: Checker, actor: str) -> Any:
        check.text("reason", request.reason, _LONGEST_REASON, required=True)
        self._check_key(check, request)
        return self._responses["DropParkedKey"](operation_id=self._ask(DROP, request, actor, request.reason))

    def _operation(self, request: Any, check: Checker, _actor: str) -> Any:
        check.uuid("operation_id", request.operation_id)
        check.finish()
        rows = self._execute(_ASKED, {"id": request.operation_id})
        if not rows:
            raise NotFound("operation", f"operations/{request.operation_id}")
        [row] = rows
        it = Outcome.decode(row.outcome)
        answer = self._responses["GetOperation"](
            done=row.done_at is not None, keys=it.keys, events=it.events, failed_keys=it.failed
        )
        for key, position, error in it.failing:
            answer.failing.add(view=row.view, key=str(uuid.UUID(key)), since=position, error=error)
        return answer

    def _check_view(self, check: Checker, view: str, *, required: bool = True) -> None:
        if view and view not in self._views:
            check.wrong("view", "INVALID", f"must be one of {', '.join(sorted(self._views))}")
        elif required and not view:
            check.wrong("view", "REQUIRED", "is required")

    def _check_key(self, check: Checker, request: Any) -> None:
        self._check_view(check, request.view)
        check.uuid("key", request.key)
        check.finish()

    def _ask(self, action: str, request: Any, actor: str, reason: str) -> str:
        number = str(uuid.uuid4())
        arguments = {"id": number, "view": request.view, "action": action, "key": request.key or None}
        self._execute(_ASK, {**arguments, "actor": actor, "reason": reason})
        return number

    def _execute(self, statement: TextClause, arguments: Mapping[str, object]) -> Sequence[Any]:
        """Raises Unavailable."""

        def run(connection: Connection) -> Sequence[Any]:
            result = connection.execute(statement, arguments)
            return result.all() if result.returns_rows else ()

        try:
            return read_pooled(self._read, run)
        except SQLAlchemyError as error:
            if failure_of(error).query is not QueryAction.BUG:
                raise Unavailable("the read database is away", reason="STORE_UNAVAILABLE") from error
            raise


def _fill(entry: Any, row: Any) -> None:
    """entry: a ParkedKey of the contract."""
    entry.view, entry.key, entry.since = row.view, str(row.key), row.position
    entry.error, entry.waiting_events = row.error, row.waiting
    entry.parked_at.FromDatetime(row.parked_at)
