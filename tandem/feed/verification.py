"""What is stored compared with the feed: what a comparison finds, and the RPC by which an operator asks for one.

Who keeps something compares it: tandem.projection.audit the views and the cache, tandem.commands.verification the write
tables. Each comparison is a generator of steps, so that whoever runs it can wait between two, or stop.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from tandem.runtime.call import StreamCall, stopping_error
from tandem.runtime.checker import Checker
from tandem.runtime.errors import Overloaded
from tandem.runtime.server import Service

ROW, MISSING, EXTRA, ENTRY, EVENT = "ROW", "MISSING", "EXTRA", "ENTRY", "EVENT"
"""Kinds of differences: the row is another one; it is not there, and the feed makes it; it is there, and the feed does
not make it; the cache's entry is not the row; an event cannot be taken in, so it is not known how the row should be."""

MAX_SUBJECTS, MAX_SAMPLE, MAX_KEYS = 100, 10_000, 100
# Of a subject's name, in characters.
_LONGEST_NAME = 50

# Verifications at once in a process: each reads the feed.
_MOST = 2
# Between two messages, while nothing is found.
_MESSAGE_SECONDS = 0.5


@dataclass(frozen=True)
class Difference:
    """subject: a view, or an aggregate. position: of the last event in the row as it should be, or of the event that
    cannot be taken in; 0 where there is none. columns: whose values differ. error: why the event cannot be taken in.
    """

    subject: str
    key: bytes
    kind: str
    position: int
    columns: tuple[str, ...] = ()
    error: str = ""
    repaired: bool = False


@dataclass(frozen=True)
class Step:
    """A part of a comparison. keys: that were compared in it. events: that were read in it. position, until: how far
    the feed is read for the keys that are compared together. not_compared: keys that tell of a person whose erasure is
    under way.
    """

    keys: int = 0
    events: int = 0
    position: int = 0
    until: int = 0
    differences: list[Difference] = field(default_factory=list)
    not_compared: int = 0


@dataclass(frozen=True)
class Chosen:
    """What is compared of a subject: some keys, a sample of so many, or all."""

    keys: frozenset[bytes] = frozenset()
    sample: int = 0


class CannotVerify(Exception):
    """A subject cannot be compared now; the message says why."""


Steps = Generator[Step, None, None]

Verify = Callable[[str, Chosen, bool, Callable[[], bool]], Steps]
"""(subject, what of it, whether to repair, whether to stop) -> its steps. On a thread, where it is closed too when its
caller leaves early. Raises CannotVerify.
"""


class AuditService:
    """Answers AuditService.Verify, as commerce.audit.v1 has it."""

    def __init__(self, descriptor: ServiceDescriptor, subjects: Mapping[str, Verify]) -> None:
        """subjects: by name, in the order in which they are compared."""
        self._response: Any = GetMessageClass(descriptor.methods_by_name["Verify"].output_type)
        self._subjects = subjects
        self._running = 0
        self.service = Service(descriptor, {}, {"Verify": self.verify}, audited=True)

    async def verify(self, request: Any, call: StreamCall) -> AsyncGenerator[Any, None]:
        """The RPC."""
        chosen = check(request)
        if self._running >= _MOST:
            raise Overloaded(f"{_MOST} verifications are under way", retry_after=5.0)
        stopping = asyncio.Event()
        call.when_stopping(stopping.set)
        self._running += 1
        try:
            for subject, verify in self._subjects.items():
                if request.subjects and subject not in request.subjects:
                    continue
                steps = verify(subject, chosen, request.repair, stopping.is_set)
                async with aclosing(self._messages(subject, steps)) as messages:
                    async for message in messages:
                        yield message
                        if call.stopping:
                            raise stopping_error()
        finally:
            stopping.set()
            self._running -= 1

    async def _messages(self, subject: str, steps: Steps) -> AsyncGenerator[Any, None]:
        message = self._response(subject=subject)
        said_at = time.monotonic()
        # One, so that what the steps hold, connections and all, is given back behind the step that is under way.
        thread = ThreadPoolExecutor(1, "verification")
        step_of = partial(asyncio.get_running_loop().run_in_executor, thread, next, steps, None)
        try:
            while (step := await step_of()) is not None:
                message.keys += step.keys
                message.events += step.events
                message.position, message.until = step.position, step.until
                message.not_compared += step.not_compared
                for it in step.differences:
                    _add(message, it)
                if step.differences or time.monotonic() - said_at >= _MESSAGE_SECONDS:
                    yield message
                    said_at = time.monotonic()
                    del message.differences[:]
        except CannotVerify as error:
            message.problem = str(error)
        finally:
            # Nobody waits for it here: a database may be silent for as long as it may.
            thread.submit(steps.close)
            thread.shutdown(wait=False)
        message.done = True
        yield message


def _add(message: Any, it: Difference) -> None:
    kinds = message.DESCRIPTOR.fields_by_name["differences"].message_type.fields_by_name["kind"].enum_type
    message.differences.add(
        key=str(uuid.UUID(bytes=it.key)),
        kind=kinds.values_by_name[f"DIFFERENCE_KIND_{it.kind}"].number,
        position=it.position,
        columns=it.columns,
        error=it.error,
        repaired=it.repaired,
    )


def check(request: Any) -> Chosen:
    """What a VerifyRequest chooses. Raises InvalidArgument."""
    checker = Checker()
    for number, name in enumerate(checker.count("subjects", request.subjects, MAX_SUBJECTS)):
        checker.text(f"subjects[{number}]", name, _LONGEST_NAME)
    checker.number("sample", request.sample, 0, MAX_SAMPLE)
    keys = set()
    for number, key in enumerate(checker.count("keys", request.keys, MAX_KEYS)):
        if checker.uuid(f"keys[{number}]", key):
            keys.add(uuid.UUID(key).bytes)
    if request.sample and request.keys:
        checker.wrong("sample", "INVALID", "must not be set together with keys")
    checker.finish()
    return Chosen(frozenset(keys), request.sample)
