"""Who caused an event, in answer to what, and as part of what: taken from the metadata of the command's call.

    tandem-actor            a pseudonymous id of a user or a service: no name, e-mail or address, so no `@` and no blank
    tandem-causation-id     what the command answers: an event's id, another command's request_id
    tandem-correlation-id   what the command is a part of; without it the command begins something new
    traceparent             W3C Trace Context, version 00

Values are printable ASCII of at most 128 characters. One that is not, and a name that comes twice, is ignored and
counted: what a caller says beside its command never fails the command.
"""

import re
from collections.abc import Sequence

from prometheus_client import Counter

from tandem.internal.v1.stored_pb2 import Envelope

IGNORED = Counter(
    "tandem_envelope_values_ignored_total",
    "Values in calls' metadata that say who caused a command and that were ignored: invalid, or given twice",
    ["name"],
)

ID = re.compile(r"[ -~]{1,128}")
_PSEUDONYM = re.compile(r"[!-?A-~]{1,128}")
# Neither the trace nor the span within it is all zeros.
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

_ALLOWED = {
    "tandem-actor": ("actor", _PSEUDONYM),
    "tandem-causation-id": ("causation_id", ID),
    "tandem-correlation-id": ("correlation_id", ID),
    "traceparent": ("traceparent", _TRACEPARENT),
}
"""The envelope's field and what a value may be, by the name in the metadata."""


def envelope_of(metadata: Sequence[tuple[str, str | bytes]], request_id: str, actor: str = "") -> Envelope:
    """The envelope of all events of a command.

    actor: who caused it, where that was proved; then what the metadata says of it is not looked at.
    """
    fields: dict[str, str] = {}
    seen: set[str] = set()
    for name, value in metadata:
        allowed = _ALLOWED.get(name)
        if allowed is None or (actor and allowed[0] == "actor"):
            continue
        field, pattern = allowed
        if name in seen:
            IGNORED.labels(name).inc()
            # Nobody can say which of the two is meant.
            if fields.pop(field, None) is not None:
                IGNORED.labels(name).inc()
        elif isinstance(value, str) and pattern.fullmatch(value):
            fields[field] = value
        else:
            IGNORED.labels(name).inc()
        seen.add(name)
    if actor:
        fields["actor"] = actor
    # A command that is part of nothing begins something new: all that follows from it is found by its request_id.
    fields.setdefault("correlation_id", request_id)
    return Envelope(request_id=request_id, **fields)
