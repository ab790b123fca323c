"""Rules, without a store: given what has happened, when a command comes, then these events, or this refusal.

    rules = Rules(DOMAIN)
    rules.given(registered, added).when(PlaceOrderRequest(...)).then(OrderPlaced(...))
    rules.given(registered).when(PlaceOrderRequest(...)).then(refused("PRODUCT_UNKNOWN"))

The engine checks, decides and applies as a command server does: each is a real request, and its fields are checked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from google.protobuf.message import Message

from tandem.commands.batch import Decisions, decide_batch
from tandem.commands.domain import Command, Domain
from tandem.commands.receipts import Receipt
from tandem.commands.write_model import Loaded, Part, States
from tandem.runtime.errors import AlreadyExists, InvalidArgument, NotFound, PreconditionFailed, TandemError
from tandem.testing.differences import differences, in_words

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
"""When commands come, unless a test says `at`."""


@dataclass(frozen=True)
class Refused:
    """A refusal that is expected: see `refused`."""

    reason: str
    subjects: Mapping[str, str] | None

    def __str__(self) -> str:
        return _refusal_in_words(self.reason, self.subjects or {})


def refused(reason: str = "", *, of: str = "", subjects: Mapping[str, str] | None = None) -> Refused:
    """reason: of the error, as callers see it. of: the only thing that is wrong: a field, or a resource's name.

    subjects: where several are wrong, each with its reason. They are all that is wrong. One that says neither `of` nor
    `subjects` leaves open what is wrong. Raises ValueError for one that says nothing, or both.
    """
    if (not reason and not subjects) or (of and subjects) or (of and not reason):
        raise ValueError("say the reason, the reason and `of`, or `subjects`")
    return Refused(reason, {of: reason} if of else subjects)


class Rules:
    """The rules of a domain: where all tests of them begin."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain

    def given(self, *history: Message, at: datetime = NOW) -> "Given":
        """A store in which this happened, in order, and nothing else: events of the domain, or commands.

        Raises AssertionError for a command that is refused.
        """
        return Given(self.domain, States()).given(*history, at=at)

    def when(self, request: Message, *, at: datetime = NOW) -> "Outcome":
        """A command on a store in which nothing is yet."""
        return self.given().when(request, at=at)


class Given:
    """What has happened. Not changed by what follows: many commands may be tried on it.

    events: of the commands in it, in order, and those that were given as they are.
    """

    def __init__(self, domain: Domain, states: States, events: Sequence[Message] = ()) -> None:
        self._domain = domain
        self._states = states
        self.events: list[Any] = list(events)

    def __getitem__(self, of: Loaded[Any]) -> dict[str, Any]:
        """The states of an aggregate or a part, by id."""
        return dict(self._states[of])

    def given(self, *history: Message, at: datetime = NOW) -> "Given":
        """This too, later. Raises as Rules.given."""
        so_far = self
        for it in history:
            if type(it) in self._domain.kinds:
                outcome = so_far.when(it, at=at)
                if outcome.refusal is not None:
                    raise AssertionError(f"given {in_words(it)}, which was refused: {_shown(outcome.refusal)}")
                so_far = outcome.after
            else:
                so_far = so_far._with_event(it)
        return so_far

    def when(self, request: Message, *, at: datetime = NOW) -> "Outcome":
        """A command that comes at a moment. One that is done in steps is done to its end."""
        domain = self._domain
        # A rule that changed the request would change it for the other tests.
        request_ = type(request)()
        request_.CopyFrom(request)
        try:
            command = domain.command_of(request_, at)
        except InvalidArgument as refusal:
            return Outcome(request, self, [], refusal)
        decisions = self._decide(command, self._states, None)
        [outcome] = decisions.outcomes
        if isinstance(outcome, TandemError):
            return Outcome(request, self, [], outcome)
        events = [getattr(event, kind) for kind, event in decisions.events]
        while outcome.unfinished is not None:
            decisions = self._decide(command, decisions.states, outcome)
            [outcome] = decisions.outcomes
            assert isinstance(outcome, Receipt), "a step that was begun is not refused"
            events += [getattr(event, kind) for kind, event in decisions.events]
        after = Given(domain, _with_parts(domain, decisions.states), [*self.events, *events])
        return Outcome(request, after, events, None)

    def _decide(self, command: Command, states: States, earlier: Receipt | None) -> Decisions:
        loaded = states.copy()
        for of, ids in self._domain.keys_of([command]).items():
            if isinstance(of, Part):
                # A part is there for whoever asks, also where its owner is not.
                loaded[of] = of.states_of((), ids, {}) | loaded[of]
        return decide_batch(self._domain, [command], loaded, {} if earlier is None else {command.request_id: earlier})

    def _with_event(self, given: Message) -> "Given":
        domain = self._domain
        message: Any = given
        if isinstance(given, domain.events.message):
            message = getattr(given, domain.events.kind_in(given) or "")
        change = domain.changes.get(type(message))
        if change is None:
            raise AssertionError(f"given {in_words(message)}, which is neither an event nor a command of the domain")
        states = self._states.copy()
        change(states, message)
        return Given(domain, _with_parts(domain, states), [*self.events, message])


class Outcome:
    """What came of a command.

    after: the store with it; as it was where it was refused. refusal: None where it was not.
    """

    def __init__(self, request: Message, after: Given, events: list[Any], refusal: TandemError | None) -> None:
        self._request = request
        self._events = events
        self.after = after
        self.refusal = refusal

    @property
    def events(self) -> list[Any]:
        """What happened. Raises AssertionError where the command was refused."""
        if self.refusal is not None:
            raise AssertionError(f"{self._name} was refused: {_shown(self.refusal)}")
        return self._events

    @property
    def event(self) -> Any:
        """The only event. Raises AssertionError where the command was refused, and where there are more or fewer."""
        if len(self.events) != 1:
            raise AssertionError(f"{self._name} made {_kinds(self._events)}, not one event")
        return self._events[0]

    def then(self, *expected: Message | Refused) -> None:
        """Raises AssertionError, with what differs in words, unless exactly this came: events, or a refusal."""
        match expected:
            case [Refused() as wanted]:
                self._then_refused(wanted)
            case _:
                self._then_happened(expected)

    def _then_refused(self, expected: Refused) -> None:
        if self.refusal is None:
            raise AssertionError(f"{self._name} was to be refused ({expected}), and made {_kinds(self._events)}")
        found = _subjects(self.refusal)
        # The reason of a field that is wrong stands at the field alone.
        at_fields = isinstance(self.refusal, InvalidArgument) and expected.reason in found.values()
        if expected.reason not in ("", self.refusal.reason) and not at_fields:
            raise AssertionError(f"{self._name} was to be refused ({expected}), and was: {_shown(self.refusal)}")
        if expected.subjects is not None and dict(expected.subjects) != found:
            lines = [
                *(f"{it}: {expected.subjects[it]} was expected, {found.get(it, 'nothing')} came"
                  for it in sorted(expected.subjects) if expected.subjects[it] != found.get(it)),
                *(f"{it}: {found[it]} came, and was not expected" for it in sorted(found.keys() - expected.subjects)),
            ]  # fmt: skip
            raise AssertionError("\n  ".join([f"{self._name} was refused for other things:", *lines]))

    def _then_happened(self, expected: Sequence[Any]) -> None:
        happened = self.events
        if [type(it) for it in expected] != [type(it) for it in happened]:
            raise AssertionError(f"{self._name} was to make {_kinds(expected)}, and made {_kinds(happened)}")
        for number, (wanted, came) in enumerate(zip(expected, happened, strict=True), 1):
            if lines := differences(wanted, came):
                what = f"event {number} of {self._name}, {came.DESCRIPTOR.name}, differs:"
                raise AssertionError("\n  ".join([what, *lines]))

    @property
    def _name(self) -> str:
        return str(self._request.DESCRIPTOR.name).removesuffix("Request")


def _with_parts(domain: Domain, states: States) -> States:
    """With an empty part where an aggregate has none yet: as a store answers for one without rows."""
    for aggregate in domain.model.aggregates:
        for part in aggregate.parts:
            states[part] = part.states_of((), states[aggregate], {}) | states[part]
    return states


def _subjects(refusal: TandemError) -> dict[str, str]:
    match refusal:
        case InvalidArgument() | PreconditionFailed():
            return {it.subject: it.kind for it in refusal.violations}
        case NotFound() | AlreadyExists():
            return {refusal.resource_name: refusal.reason}
        case _:
            return {}


def _shown(refusal: TandemError) -> str:
    return f"{_refusal_in_words(refusal.reason, _subjects(refusal))}: {refusal.message}"


def _refusal_in_words(reason: str, subjects: Mapping[str, str]) -> str:
    of = ", ".join(f"{subject} is {kind}" for subject, kind in subjects.items())
    return " of ".join(filter(None, (reason, of)))


def _kinds(events: Sequence[Any]) -> str:
    return ", ".join(it.DESCRIPTOR.name for it in events if isinstance(it, Message)) or "no event"
