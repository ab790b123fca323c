"""Queries that are statements of their own: pages of lists, searches, sums. What several calls of a batch want is read
once, and each is answered before the next answer is made.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from tandem.feed.token import Token
from tandem.queries.checker import QueryChecker
from tandem.queries.freshness import Asked, Freshness
from tandem.queries.parked import NONE_PARKED, Parked, parked_refusal
from tandem.queries.store import BATCH_SIZE
from tandem.runtime.call import Call
from tandem.runtime.errors import InvalidArgument, TandemError
from tandem.runtime.field_checks import field_checks
from tandem.runtime.worker import Worker

K = TypeVar("K", bound=Hashable)


class Answer(NamedTuple):
    """The response, serialised; the position where its view was read; and the rows that lack something which is before
    that.
    """

    response: bytes
    as_of: Token
    parked: Parked = NONE_PARKED


class StatementQuery(ABC, Generic[K]):
    """A query. K says what a request wants: requests that want the same get one answer.

    name: of its RPC. kind: of `tandem_read_batch_size`. views: those that answer, all together; the first one's
    position is what each statement begins with.
    """

    name: str
    kind: str
    views: tuple[str, ...]

    def wanted_of(self, request: Any, check: QueryChecker) -> K:
        """What a request wants; `check` collects what is wrong: first by what the contract says of each field."""
        field_checks(request.DESCRIPTOR).check(request, check)
        return self.wanted(request, check)

    @abstractmethod
    def wanted(self, request: Any, check: QueryChecker) -> K:
        """What a request wants; `check` collects what is wrong beside that; fields may be wrong already."""

    @abstractmethod
    def read(self, wanted: Sequence[K]) -> Iterator[Answer | TandemError]:
        """The answer to each, in order, made when it is asked for; on several threads at once. Raises Unavailable."""


def answer_each(answer: Callable[[K], Answer], wanted: Iterable[K]) -> Iterator[Answer | TandemError]:
    """For `read`, where each has a statement of its own: one that fails is no reason for the others to fail."""
    for it in wanted:
        try:
            answered: Answer | TandemError = answer(it)
        except TandemError as error:
            answered = error
        yield answered


class StatementWorker(Worker, Generic[K]):
    """Answers the calls of a query."""

    def __init__(
        self, query: StatementQuery[K], freshness: Freshness, *, threads: int, max_batch: int, max_waiting: int
    ) -> None:
        super().__init__(query.name, [self._answer] * threads, max_batch=max_batch, max_waiting=max_waiting)
        self._query = query
        self._freshness = freshness
        self._batch_size = BATCH_SIZE.labels(query.kind)

    def _answer(self, calls: Sequence[Call]) -> None:
        by_wanted: dict[K, list[Call]] = {}
        for call in calls:
            if self._may_be_read(call):
                by_wanted.setdefault(call.asked.wanted, []).append(call)
        if not by_wanted:
            return
        self._batch_size.observe(len(by_wanted))
        answers = self._query.read(list(by_wanted))
        for alike, answer in zip(by_wanted.values(), answers, strict=True):
            for call in alike:
                if isinstance(answer, TandemError):
                    call.fail(answer)
                elif self._freshness.admit(call, self._query.views[0], answer.as_of, final=True):
                    refusal = parked_refusal(self._query.views[0], call.asked.need, answer.as_of, answer.parked)
                    if refusal is None:
                        call.reply(answer.response)
                    else:
                        call.fail(refusal)

    def _may_be_read(self, call: Call) -> bool:
        """False for a call that is refused, or goes to where it is parked."""
        query, freshness = self._query, self._freshness
        if call.asked is None:
            check = QueryChecker(freshness.default_max_wait)
            try:
                wanted = query.wanted_of(call.request, check)
                need = check.consistency(call.request.consistency)
                check.finish()
            except InvalidArgument as error:
                call.fail(error)
                return False
            call.asked = Asked(self, query.views[0], need, wanted)
        return all(freshness.admit(call, view, freshness.announced_token(view)) for view in query.views)
