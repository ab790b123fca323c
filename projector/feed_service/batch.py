"""Which events a follower gets, and the messages that they are put into."""

import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from commerce.feed.v1.feed_service_pb2 import SubscribeResponse
from projector.feed_service.entry import Entry
from tandem.feed.token import encode_token
from tandem.runtime.errors import Unavailable

# Clients take messages of 4 MiB unless they are told otherwise, and an event is far below the rest of that.
MAX_BATCH_BYTES = 1024 * 1024
# A command server that is newer than this projector will be for the time of a deployment.
_UNREADABLE_RETRY_SECONDS = 5.0


@dataclass(frozen=True)
class Selection:
    """What a follower asked for. kinds, ids: empty for all. max_events: in a message."""

    kinds: frozenset[str] = frozenset()
    ids: frozenset[str] = frozenset()
    max_events: int = 100

    @property
    def takes_all(self) -> bool:
        return not self.kinds and not self.ids


@dataclass(frozen=True)
class Batch:
    """The serialised events, and the position up to which all that were asked for are among them, or were before.

    head: the feed's last position as it was known then.
    """

    items: list[bytes]
    position: int
    head: int


class _Placed(Protocol):
    @property
    def position(self) -> int: ...
    @property
    def kind(self) -> str: ...


R = TypeVar("R", bound=_Placed)


def cut(rows: Iterable[R], selection: Selection, *, after: int, head: int, read: Callable[[R], Entry]) -> Batch:
    """The next batch out of rows that follow position `after` without a gap; `read` is asked of as few as possible.

    Raises Unavailable when the first event that is wanted cannot be read.
    """
    items: list[bytes] = []
    size = 0
    position = after
    for row in rows:
        if len(items) == selection.max_events or size >= MAX_BATCH_BYTES:
            break
        if not selection.kinds or row.kind in selection.kinds:
            entry = read(row)
            if entry.unreadable:
                # Whether it is about what is wanted cannot be known.
                if items:
                    break
                raise _unreadable(entry)
            if not selection.ids or not selection.ids.isdisjoint(entry.ids):
                items.append(entry.item)
                size += len(entry.item)
        position = row.position
    return Batch(items, position, max(head, position))


def message(epoch: uuid.UUID, batch: Batch, *, caught_up: bool) -> bytes:
    """A SubscribeResponse, serialised."""
    rest = SubscribeResponse(
        cursor=encode_token(epoch, batch.position),
        position=batch.position,
        head_position=batch.head,
        caught_up=caught_up,
    )
    return b"".join((*batch.items, rest.SerializeToString()))


def _unreadable(entry: Entry) -> Unavailable:
    return Unavailable(
        f"event {entry.position} cannot be read: {entry.unreadable}",
        reason="EVENT_UNREADABLE",
        retry_after=_UNREADABLE_RETRY_SECONDS,
        metadata={"position": str(entry.position)},
    )
