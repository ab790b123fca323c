"""A command on its way: the request, what the server added to it, and what it may touch."""

import hashlib
import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from google.protobuf.message import Message

from command_server.aggregates import Id


@dataclass(frozen=True)
class Command:
    """A validated request with all that its rule needs besides the aggregates.

    request: the Protobuf request; it is the command, there is no twin of it.
    request_id: the caller's, or the server's own: an unknown COMMIT is looked up by it either way.
    subject_id: what the command creates or changes.
    now: the server's clock when the command arrived, UTC.
    """

    request: Message
    request_id: Id
    subject_id: Id
    now: datetime

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the command as the caller sent it, without its request_id: equal for a repeated command."""
        request: Any = self.request
        request_id = request.request_id
        # Set aside for a moment: a copy takes as long as all the rest.
        request.ClearField("request_id")
        body = request.SerializeToString(deterministic=True)
        if request_id:
            request.request_id = request_id
        return hashlib.sha256(request.DESCRIPTOR.full_name.encode() + b"\0" + body).digest()


class Receipt(NamedTuple):
    """What a command that is stored has done: `version` is the subject's after it, `position` its last event's."""

    subject_id: Id
    position: int
    version: int
    epoch: uuid.UUID
    replayed: bool = False
