"""ReactionService: how reactions are, and what is parked of them, for operators."""

import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from tandem.feed.archive import Archive
from tandem.feed.envelope import envelope_of
from tandem.feed.head import read_head
from tandem.feed.reader import BrokenOff
from tandem.reactions.reaction import Reaction
from tandem.reactions.running import Reactions
from tandem.reactions.standing import BEGINNING, Parked, Place, drop, list_parked, redrive, replay
from tandem.reactions.tasks import Kind
from tandem.runtime.call import Call
from tandem.runtime.checker import Checker
from tandem.runtime.database import first_line
from tandem.runtime.errors import NotFound, Unavailable
from tandem.runtime.inquiries import answer_by, of_database
from tandem.runtime.server import Service
from tandem.runtime.sqlstate import QueryAction, failure_of
from tandem.runtime.worker import Worker, one_by_one

_DEFAULT_PAGE, _LARGEST_PAGE = 100, 1000
_LONGEST_NAME, _LONGEST_REASON, _LONGEST_TOKEN = 100, 500, 200
_KINDS = {Kind.DO: "COMMAND", Kind.TIMER: "COMMAND", Kind.POST: "WEBHOOK", Kind.EVENT: "EVENT"}

# Name, position and number of the last.
_TOKEN = re.compile(r"([^/]*)/([0-9]{1,18})/(-?[0-9]{1,10})")

T = TypeVar("T")


class ReactionService:
    """A Component. Answers on one thread."""

    def __init__(self, descriptor: ServiceDescriptor, engine: Engine, reacting: Reactions, archive: Archive) -> None:
        """descriptor: as tandem.services.v1.ReactionService is. engine: of the write database; whoever made it disposes
        of it.
        """
        self._engine = engine
        self._reacting = reacting
        self._reactions = {it.name: it for it in reacting.reactions}
        self._archive = archive
        self._database = of_database(engine, "write database", at_once=1)
        answers: dict[str, Callable[[Any, Any, Checker, Call], Any]] = {
            "ListReactions": self._list,
            "ListParkedTasks": self._list_parked,
            "RedriveParkedTasks": self._redrive,
            "DropParkedTasks": self._drop,
            "ReplayReaction": self._replay,
        }
        self._answers = answers
        self._responses = {it.name: GetMessageClass(it.output_type) for it in descriptor.methods}
        self._worker = Worker("reaction-calls", [one_by_one(self._answer)], max_batch=100, max_waiting=1000)
        self.service = Service(descriptor, dict.fromkeys(answers, self._worker), audited=True)

    async def start(self) -> None:
        await self._worker.start()

    async def stop(self) -> None:
        await self._worker.stop()
        await self._database.stop()

    def _answer(self, call: Call) -> Message:
        name = call.method.name
        answer: Message = self._answers[name](self._responses[name](), call.request, Checker(), call)
        return answer

    def _list(self, answer: Any, _request: Any, _check: Checker, call: Call) -> Any:
        head = self._database.ask(read_head, answer_by(call))
        answer.feed_head = head.position
        for it in self._database.ask(self._reacting.standings_in, answer_by(call)):
            added = answer.reactions.add(
                name=it.name,
                position=it.position,
                waiting_tasks=it.waiting,
                parked_tasks=it.parked,
                problem=it.problem,
            )
            added.behind.FromMilliseconds(int(it.behind_seconds * 1000))
            added.overdue.FromMilliseconds(int(it.overdue_seconds * 1000))
        return answer

    def _list_parked(self, answer: Any, request: Any, check: Checker, call: Call) -> Any:
        check.number("page_size", request.page_size, 0, _LARGEST_PAGE)
        reaction, after = self._after(request.page_token, check)
        self._check_name(request.reaction, check, required=False)
        check.finish()
        names = [self._reaction(request.reaction).name] if request.reaction else list(self._reactions)
        size = request.page_size or _DEFAULT_PAGE
        found = self._database.ask(lambda it: list_parked(it, names, size + 1, reaction, after), answer_by(call))
        for it in found[:size]:
            _add(answer, it)
        if len(found) > size:
            last = found[size - 1]
            answer.next_page_token = f"{last.reaction}/{last.position}/{last.number}"
        return answer

    @staticmethod
    def _after(token: str, check: Checker) -> tuple[str, Place]:
        """A reaction's name, and where the page before ended."""
        if token and check.text("page_token", token, _LONGEST_TOKEN):
            if found := _TOKEN.fullmatch(token):
                return found[1], Place(int(found[2]), int(found[3]))
            check.wrong("page_token", "MALFORMED", "must be what a page before ended with")
        return "", BEGINNING

    def _redrive(self, answer: Any, request: Any, check: Checker, call: Call) -> Any:
        """In parts, each of which is committed, until all had their turn or the call's time is up."""
        self._check_name(request.reaction, check)
        if request.key:
            check.uuid("key", request.key)
        _, last = self._after(request.page_token, check)
        check.finish()
        reaction = self._reaction(request.reaction)
        key = request.key.lower() or None
        until = answer_by(call)
        while True:
            part = self._change(partial(redrive, reaction=reaction, archive=self._archive, key=key, after=last))
            answer.redriven_tasks += part.redriven
            answer.parked_tasks += part.parked
            if part.last is None:
                return answer
            last = part.last
            if time.monotonic() >= until:
                answer.next_page_token = f"{reaction.name}/{last.position}/{last.number}"
                return answer

    def _drop(self, answer: Any, request: Any, check: Checker, call: Call) -> Any:
        self._check_name(request.reaction, check)
        check.uuid("key", request.key)
        check.text("reason", request.reason, _LONGEST_REASON, required=True)
        check.finish()
        reaction = self._reaction(request.reaction)
        actor = envelope_of(call.metadata(), "", call.actor).actor
        key, reason = request.key.lower(), request.reason
        answer.dropped_tasks = self._change(partial(drop, reaction=reaction, key=key, actor=actor, reason=reason))
        return answer

    def _replay(self, answer: Any, request: Any, check: Checker, _call: Call) -> Any:
        self._check_name(request.reaction, check)
        check.number("after_position", request.after_position, 0, 2**63 - 1)
        check.finish()
        reaction = self._reaction(request.reaction)
        after, keep = request.after_position, self._reacting.keep
        answer.position = self._change(
            partial(replay, reaction=reaction, archive=self._archive, after=after, keep=keep)
        )
        return answer

    def _check_name(self, name: str, check: Checker, *, required: bool = True) -> None:
        check.text("reaction", name, _LONGEST_NAME, required=required)

    def _reaction(self, name: str) -> Reaction:
        """Raises NotFound."""
        if name not in self._reactions:
            raise NotFound("reaction", f"reactions/{name}")
        return self._reactions[name]

    def _change(self, change: Callable[[Connection], T]) -> T:
        """Commits it. Raises Unavailable."""
        try:
            with self._engine.begin() as connection:
                return change(connection)
        except BrokenOff as error:
            raise Unavailable(f"the feed cannot be read: {error}", reason="STORE_UNAVAILABLE") from error
        except SQLAlchemyError as error:
            if failure_of(error).query is QueryAction.BUG:
                raise
            raise Unavailable(f"the write database is away: {first_line(error)}", reason="STORE_UNAVAILABLE") from error


def _add(answer: Any, it: Parked) -> None:
    kinds = answer.DESCRIPTOR.fields_by_name["parked_tasks"].message_type.fields_by_name["kind"].enum_type
    added = answer.parked_tasks.add(
        reaction=it.reaction,
        position=it.position,
        key=it.key,
        kind=kinds.values_by_name[f"PARKED_TASK_KIND_{_KINDS[Kind(it.kind)]}"].number,
        attempts=it.attempts,
        error=it.error,
    )
    added.type = it.type
    added.parked_at.FromDatetime(it.parked_at)
