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

import time
import uuid
from typing import Any, TypeVar

from google.protobuf.message import Message

Request = TypeVar("Request", bound=Message)


def command(request: Request) -> Request:
    """A copy of the request that is one command, however often it is sent: with a request_id, unless it has one."""
    identified: Any = type(request)()
    identified.CopyFrom(request)
    identified.request_id = identified.request_id or new_id()
    sent: Request = identified
    return sent


def new_id() -> str:
    """A UUIDv7 (RFC 9562), for a command or for what it creates: milliseconds since the epoch, then 74 random bits.

    The servers' databases have an index of such ids. Those in the order of time come at its end; random ones would come
    anywhere in it, and each to another page.
    """
    milliseconds = f"{time.time_ns() // 1_000_000:012x}"
    # All that is random, in the places of a UUIDv4; Python before 3.14 has no UUIDv7.
    return f"{milliseconds[:8]}-{milliseconds[8:]}-7{str(uuid.uuid4())[15:]}"
