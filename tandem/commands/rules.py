"""What the rules of every domain share: ids, versions, refusals, and times as events hold them."""

from datetime import UTC, datetime, timedelta

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from tandem.runtime.errors import AlreadyExists, Conflict, NotFound, PreconditionFailed, Violation

Id = str
"""A UUID as text, in lower case: as requests and events hold it.

It is compared and hashed in a tenth of the time that a UUID object takes.
"""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def id_of(text: str) -> Id:
    """The id that a checked request writes as text, maybe in capitals."""
    return text.lower()


def must_be_new(existing: object | None, kind: str, identity: Id) -> None:
    """Refuses to create what exists. `kind` in the singular: "order"."""
    if existing is not None:
        raise AlreadyExists(kind, f"{kind}s/{identity}")


def not_found(kind: str, identity: Id) -> NotFound:
    return NotFound(kind, f"{kind}s/{identity}")


def check_version(request: Message, current: int) -> None:
    """Refuses a command whose caller has seen another version than the current one."""
    if request.HasField("expected_version"):
        expected = request.expected_version  # type: ignore[attr-defined]
        if expected != current:
            raise Conflict(
                f"version {expected} was expected, the current one is {current}",
                reason="VERSION_MISMATCH",
                metadata={"expected_version": str(expected), "current_version": str(current)},
            )


def refusal(kind: str, subject: str, description: str) -> PreconditionFailed:
    """A refusal for one broken rule. `kind` is the rule in UPPER_SNAKE, `subject` the resource's name."""
    return PreconditionFailed([Violation(subject, description, kind)])


def moment(request: Message, field: str, now: datetime) -> Timestamp:
    """The caller's time where it gave one, else now."""
    given: Timestamp = getattr(request, field)
    return given if request.HasField(field) else timestamp(now)


def timestamp(at: datetime) -> Timestamp:
    """What Timestamp.FromDatetime makes of an aware datetime, in a fifth of its time: each event holds some."""
    since = at - _EPOCH
    return Timestamp(seconds=since.days * 86_400 + since.seconds, nanos=since.microseconds * 1000)


def datetime_of(given: Timestamp) -> datetime:
    """What Timestamp.ToDatetime makes of it in UTC, likewise: to the microsecond, whatever is below is cut off."""
    return _EPOCH + timedelta(seconds=given.seconds, microseconds=given.nanos // 1000)
