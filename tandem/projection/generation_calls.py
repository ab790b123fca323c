"""The RPCs of ProjectionService about views' other generations: what there is is read, what is asked is written down
for the projector that owns the view (`rebuilding.py`). Any projector answers.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass
from sqlalchemy import Connection, text

from tandem.projection.generations import Asked, State, ask, drop_version, request_rebuild
from tandem.read_store.tables import ALL_NEWEST, generation, is_other, other_of
from tandem.runtime.call import Call
from tandem.runtime.checker import Checker
from tandem.runtime.database import Driver, driver_of
from tandem.runtime.errors import NotFound, PreconditionFailed, Violation
from tandem.runtime.inquiries import Inquiries, answer_by
from tandem.runtime.worker import one_by_one

T = TypeVar("T")

_SWITCHABLE = (State.READY, State.KEPT)
_GENERATIONS = text(f"SELECT * FROM {generation.fullname} ORDER BY view")  # noqa: S608 - a table of ours
# Indexes are no generations.
_ROWS = text(f"SELECT view, position, error, parked FROM {ALL_NEWEST} AS p WHERE index_name IS NULL")  # noqa: S608
# PostgreSQL's names are no longer.
_LONGEST_NAME = 63
_MOST_EVENTS_PER_SECOND = 1_000_000


class GenerationCalls:
    """rpcs: their names. handle: a worker's handler."""

    def __init__(
        self,
        descriptor: ServiceDescriptor,
        read: Inquiries[Connection],
        served: Callable[[], Collection[str]],
        head: Callable[[float], int],
    ) -> None:
        """read: its engine is in autocommit mode. served: the views of this program.

        head: asks until a time on the clock of time.monotonic() for the feed's last position, as far as it is known.
        """
        self._read = read
        # Of the call that is being answered, on the worker's one thread.
        self._until = 0.0
        self._served = served
        self._head = head
        answers: dict[str, Callable[[Any], Any]] = {
            "ListGenerations": self._list,
            "StartRebuild": self._start_rebuild,
            "SwitchGeneration": self._switch,
            "DropGeneration": self._drop,
        }
        methods = descriptor.methods_by_name
        self._answers = {name: answer for name, answer in answers.items() if name in methods}
        self._responses: dict[str, Any] = {it: GetMessageClass(methods[it].output_type) for it in self._answers}
        listed: Any = self._responses["ListGenerations"].DESCRIPTOR.fields_by_name["generations"].message_type
        states = listed.fields_by_name["state"].enum_type.values
        self._states = {it.name.removeprefix("GENERATION_STATE_"): it.number for it in states}
        self.rpcs = tuple(self._answers)
        self.handle = one_by_one(self._answer)

    def _answer(self, call: Call) -> Any:
        name = call.method.name
        self._until = answer_by(call)
        return self._answers[name](call.request) or self._responses[name]()

    def _list(self, _request: Any) -> Any:
        """Other generations, and views of other versions of the program."""
        found, rows = self._ask(lambda it: (it.execute(_GENERATIONS).all(), it.execute(_ROWS).all()))
        by_view = {row.view: row for row in rows}
        answer = self._responses["ListGenerations"](feed_head=self._head(self._until))
        for it in found:
            served, other = by_view.get(it.view), by_view.get(other_of(it.view))
            entry = answer.generations.add(
                view=it.view,
                state=self._states[it.state.upper()],
                served_position=served.position if served is not None else 0,
                max_events_per_second=it.rate or 0,
                switch_asked=it.asked == Asked.SWITCH,
                drop_asked=it.asked == Asked.DROP,
                error=it.error or "",
            )
            if other is not None:
                entry.position, entry.parked_keys = other.position, other.parked
                entry.error = other.error or entry.error
            if it.began_at is not None:
                entry.began_at.FromDatetime(it.began_at)
            if it.comparison is not None:
                _fill_comparison(entry.comparison, it.comparison)
        known = self._served()
        for view, row in sorted(by_view.items()):
            if not is_other(view) and view not in known:
                answer.generations.add(
                    view=view,
                    state=self._states["OTHER_VERSION"],
                    position=row.position,
                    parked_keys=row.parked,
                    error=row.error or "",
                )
        return answer

    def _start_rebuild(self, request: Any) -> None:
        check = _check_view(request.view)
        most = request.max_events_per_second
        check.number("max_events_per_second", most, 0, _MOST_EVENTS_PER_SECOND)
        check.finish()
        if request.view not in self._served():
            raise NotFound("view", f"views/{request.view}")
        switch = request.switch_when_ready
        if not self._do(lambda it: request_rebuild(it, request.view, most or None, switch=switch)):
            description = "has another generation already: switch to it, or drop it first"
            raise PreconditionFailed([Violation(f"views/{request.view}", description, "GENERATION_EXISTS")])

    def _switch(self, request: Any) -> None:
        _check_view(request.view).finish()
        resource = f"views/{request.view}/generation"
        state = self._do(lambda it: ask(it, request.view, Asked.SWITCH, _SWITCHABLE))
        if state is None:
            raise NotFound("generation", resource)
        if state not in _SWITCHABLE:
            description = f"is {state}: ask again when it is ready"
            raise PreconditionFailed([Violation(resource, description, "GENERATION_NOT_READY")])

    def _drop(self, request: Any) -> None:
        _check_view(request.view).finish()
        view, is_ours = request.view, request.view in self._served()
        if not self._do(lambda it: ask(it, view, Asked.DROP) is not None if is_ours else drop_version(it, view)):
            raise NotFound("generation", f"views/{view}/generation")

    def _do(self, what: Callable[[Driver], T]) -> T:
        def with_driver(connection: Connection) -> T:
            with driver_of(connection) as driver:
                return what(driver)

        return self._ask(with_driver)

    def _ask(self, query: Callable[[Connection], T]) -> T:
        return self._read.ask(query, self._until)


def _check_view(view: str) -> Checker:
    check = Checker()
    check.text("view", view, _LONGEST_NAME, required=True)
    return check


def _fill_comparison(entry: Any, found: Mapping[str, Any]) -> None:
    """found: a Comparison, as JSON."""
    entry.position, entry.row_count = found["position"], found["rows"]
    entry.changed_count, entry.missing_count, entry.added_count = found["changed"], found["missing"], found["added"]
    for it in found["examples"]:
        entry.examples.add(key=it["key"], served_position=it["served_at"] or 0, other_position=it["other_at"] or 0)
