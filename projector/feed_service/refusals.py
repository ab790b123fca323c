"""What followers are told when it cannot go on."""

import uuid

from tandem.feed.token import encode_token
from tandem.runtime.errors import OutOfRange, PreconditionFailed, Unavailable, Violation


def store_away(problem: str) -> Unavailable:
    return Unavailable(problem, reason="STORE_UNAVAILABLE")


def another_feed() -> PreconditionFailed:
    description = "the cursor is from before the write database was restored: begin anew, with what is there now"
    return PreconditionFailed([Violation("after_cursor", description, "TOKEN_EPOCH_MISMATCH")])


def expired(epoch: uuid.UUID, oldest: int) -> OutOfRange:
    """oldest: the position after which all events are there."""
    return OutOfRange(
        f"events up to position {oldest} are not kept any more",
        reason="CURSOR_EXPIRED",
        metadata={"oldest_cursor": encode_token(epoch, oldest)},
    )


def ahead(head: int) -> OutOfRange:
    return OutOfRange(
        f"the feed is at position {head}, and the cursor beyond it",
        reason="CURSOR_AHEAD",
        metadata={"head_position": str(head)},
    )
