"""Commands that may be given again.

A session sends each message as a command of its own, with a new request_id: a message that is sent twice is two
commands, and what the session repeats within a call is one. Who may have to give a command again after the call has
failed, or in another process, makes it one for good:

    withdrawal = command(WithdrawRequest(...))
    try:
        session.commands.Withdraw(withdrawal)
    except OutcomeUnknown:
        session.commands.Withdraw(withdrawal)  # done once, whatever became of the first call
"""

import uuid
from typing import Any, TypeVar

from google.protobuf.message import Message

Request = TypeVar("Request", bound=Message)


def command(request: Request) -> Request:
    """A copy of the request that is one command, however often it is sent: with a request_id, unless it has one."""
    identified: Any = type(request)()
    identified.CopyFrom(request)
    identified.request_id = identified.request_id or str(uuid.uuid4())
    sent: Request = identified
    return sent
