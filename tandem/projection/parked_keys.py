"""The RPCs of ProjectionService about parked rows: what is parked is read, what is asked is written down for the
projector that owns the view (`redriving.py`), and stays as the operators' log. Any projector answers.
"""

import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass
from sqlalchemy import Connection, TextClause, text

from tandem.feed.envelope import envelope_of
from tandem.projection.parking import PARKED_ROWS, fill_parked_key
from tandem.projection.redriving import DROP, REDRIVE, Outcome
from tandem.read_store.tables import operation, parked, projection, served_of
from tandem.runtime.call import Call
from tandem.runtime.checker import Checker
from tandem.runtime.errors import NotFound
from tandem.runtime.inquiries import Inquiries, answer_by
from tandem.runtime.worker import one_by_one

_DEFAULT_PAGE = 100
_MOST_ON_PAGE = 1000
_MOST_EVENTS = 1000
_LONGEST_REASON = 500
# A view's name, which PostgreSQL bounds, and a key.
_LONGEST_TOKEN = 120

_LIST = text(f"""{PARKED_ROWS}
AND (:view = '' OR view = :view) AND (view, key) > (:after_view, CAST(:after_key AS uuid))
ORDER BY view, key LIMIT :most
""")
_ONE = text(f"{PARKED_ROWS} AND view = :view AND key = CAST(:key AS uuid)")
_EVENTS = text(f"""
SELECT position, kind FROM {parked.fullname} WHERE view = :view AND key = CAST(:key AS uuid)
ORDER BY position LIMIT {_MOST_EVENTS}
""")  # noqa: S608
_ASK = text(f"""
INSERT INTO {operation.fullname} (id, view, action, key, actor, reason)
SELECT CAST(:id AS uuid), CAST(:view AS text), :action, CAST(:key AS uuid), :actor, :reason
WHERE EXISTS (SELECT FROM {projection.fullname} WHERE view = :view) RETURNING id
""")  # noqa: S608
_ASKED = text(f"SELECT view, done_at, outcome FROM {operation.fullname} WHERE id = CAST(:id AS uuid)")  # noqa: S608
_LOG = text(f"""
SELECT id, view, action, key, actor, reason, asked_at, done_at, outcome FROM {operation.fullname}
WHERE (:view = '' OR view = :view) AND (CAST(:key AS uuid) IS NULL OR key = CAST(:key AS uuid)) AND (
    CAST(:after AS uuid) IS NULL
    OR (asked_at, id) < (SELECT asked_at, id FROM {operation.fullname} WHERE id = CAST(:after AS uuid))
)
ORDER BY asked_at DESC, id DESC LIMIT :most
""")  # noqa: S608
_FIRST_KEY = str(uuid.UUID(int=0))


class ParkedKeys:
    """rpcs: their names. handle: a worker's handler."""

    def __init__(
        self, descriptor: ServiceDescriptor, read: Inquiries[Connection], served: Callable[[], Collection[str]]
    ) -> None:
        """read: its engine is in autocommit mode.

        served: the views of this program; their other generations are known too.
        """
        self._read = read
        # Of the call that is being answered, on the worker's one thread.
        self._until = 0.0
        self._served = served
        answers: dict[str, Callable[[Any, Checker, str], Any]] = {
            "ListParkedKeys": self._list,
            "GetParkedKey": self._get,
            "RedriveParkedKeys": self._redrive,
            "DropParkedKey": self._drop,
            "GetOperation": self._operation,
            "ListOperations": self._list_operations,
        }
        methods = descriptor.methods_by_name
        self._answers = {name: answer for name, answer in answers.items() if name in methods}
        self._responses: dict[str, Any] = {it: GetMessageClass(methods[it].output_type) for it in self._answers}
        self.rpcs = tuple(self._answers)
        self.handle = one_by_one(self._answer)

    def _answer(self, call: Call) -> Any:
        name = call.method.name
        self._until = answer_by(call)
        actor = envelope_of(call.metadata(), "", call.actor).actor
        return self._answers[name](call.request, Checker(), actor)

    def _list(self, request: Any, check: Checker, _actor: str) -> Any:
        self._check_view(check, request.view, required=False)
        size = self._page_size(check, request)
        after_view, _, after_key = request.page_token.partition("/")
        if request.page_token and check.text("page_token", request.page_token, _LONGEST_TOKEN):
            check.uuid("page_token", after_key)
        check.finish()
        arguments = {"view": request.view, "after_view": after_view, "after_key": after_key or _FIRST_KEY}
        rows = self._execute(_LIST, {**arguments, "most": size + 1})
        answer = self._responses["ListParkedKeys"]()
        for row in rows[:size]:
            fill_parked_key(answer.parked_keys.add(), row)
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
        fill_parked_key(answer.parked_key, rows[0])
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

    def _list_operations(self, request: Any, check: Checker, _actor: str) -> Any:
        self._check_view(check, request.view, required=False)
        if request.key:
            check.uuid("key", request.key)
        size = self._page_size(check, request)
        if request.page_token:
            check.uuid("page_token", request.page_token)
        check.finish()
        wanted = {"view": request.view, "key": request.key or None, "after": request.page_token or None}
        rows = self._execute(_LOG, {**wanted, "most": size + 1})
        answer = self._responses["ListOperations"]()
        for row in rows[:size]:
            it = Outcome.decode(row.outcome)
            entry = answer.operations.add(
                operation_id=str(row.id),
                view=row.view,
                action=row.action,
                key="" if row.key is None else str(row.key),
                actor=row.actor,
                reason=row.reason,
                keys=it.keys,
                events=it.events,
                failed_keys=it.failed,
            )
            entry.asked_at.FromDatetime(row.asked_at)
            if row.done_at is not None:
                entry.done_at.FromDatetime(row.done_at)
        if len(rows) > size:
            answer.next_page_token = str(rows[size - 1].id)
        return answer

    @staticmethod
    def _page_size(check: Checker, request: Any) -> int:
        return check.number("page_size", request.page_size, 0, _MOST_ON_PAGE) or _DEFAULT_PAGE

    def _check_view(self, check: Checker, view: str, *, required: bool = True) -> None:
        served = self._served()
        if view and served_of(view) not in served:
            check.wrong("view", "INVALID", f"must be one of {', '.join(sorted(served))}")
        elif required and not view:
            check.wrong("view", "REQUIRED", "is required")

    def _check_key(self, check: Checker, request: Any) -> None:
        self._check_view(check, request.view)
        check.uuid("key", request.key)
        check.finish()

    def _ask(self, action: str, request: Any, actor: str, reason: str) -> str:
        number = str(uuid.uuid4())
        arguments = {"id": number, "view": request.view, "action": action, "key": request.key or None}
        if not self._execute(_ASK, {**arguments, "actor": actor, "reason": reason}):
            raise NotFound("view", f"views/{request.view}")
        return number

    def _execute(self, statement: TextClause, arguments: Mapping[str, object]) -> Sequence[Any]:
        """Raises Unavailable."""

        def run(connection: Connection) -> Sequence[Any]:
            result = connection.execute(statement, arguments)
            return result.all() if result.returns_rows else ()

        return self._read.ask(run, self._until)
