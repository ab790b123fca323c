"""What a broker is for the relay. The relay's place is kept there too, so that the relay has no state."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tandem.relay.cloud_events import CloudEvent


class SinkAway(Exception):
    """The broker does not answer, or takes nothing now; it is tried again. What was sent may be stored or not."""


class SinkRefused(Exception):
    """It will not do without a person; the message says what to do. It is tried again, more rarely."""


class PlaceTaken(Exception):
    """The broker has an event at the position already, or lacks the one before: it is asked anew where to go on."""


@dataclass(frozen=True)
class Origin:
    """The feed: its epoch, its last position as it is known, and the epochs that it had before."""

    epoch: uuid.UUID
    head: int
    ended: frozenset[uuid.UUID] = frozenset()


@dataclass(frozen=True)
class Place:
    """How far a broker has the events of a feed.

    position: of the last event there, the one before the first where it has none. mark: of that event, 0 where it is
    not known. relay: which one published it. missing: events at lower positions that somebody has deleted.
    """

    position: int
    mark: int
    relay: str
    missing: int = 0


class Sink(Protocol):
    """A broker. For one event loop; its methods are not called while another one runs."""

    async def place(self, feed: Origin) -> Place:
        """Where the feed's events go on, after it made what they go to where it is not there.

        Raises SinkAway and SinkRefused.
        """
        ...

    async def publish(self, epoch: uuid.UUID, events: Sequence[CloudEvent]) -> None:
        """Stores events that follow the place without a gap; all are safe when it returns.

        After it raised, some of the first ones may be. Raises SinkAway, SinkRefused and PlaceTaken.
        """
        ...

    async def close(self) -> None: ...
