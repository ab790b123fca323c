"""What a projector announces to the query servers after each batch, by NOTIFY in the read database."""

import json
import uuid
from dataclasses import dataclass, field

from tandem.read_store.cache import CacheEpochs

# PostgreSQL refuses a payload of 8,000 bytes or more.
MAX_BYTES = 7_999

# Why a view cannot go on, as a reason of errors: an event or its rows cannot be taken in; the feed has lost what the
# view took in; events that should follow are not in the feed.
VIEW_FAILED, HISTORY_CHANGED, EVENTS_MISSING = "VIEW_FAILED", "HISTORY_CHANGED", "EVENTS_MISSING"


class MalformedAnnouncement(ValueError):
    """The payload is not an announcement: somebody else uses the channel."""


@dataclass(frozen=True)
class Announcement:
    """How far each view is, and which cache entries may be read.

    It is sent after the rows are committed and after the cache is written (or a node that could not be written is
    fenced off), so whoever has heard position p of a view and reads with these epochs sees nothing older than p.
    A projector announces the views that it holds, after each batch and once a second.
    """

    feed_epoch: uuid.UUID
    positions: dict[str, int]
    cache_epochs: dict[str, CacheEpochs]
    """By view."""
    marks: dict[str, int] = field(default_factory=dict)
    """By view: of the event at its position."""
    generations: dict[str, int] = field(default_factory=dict)
    """By view."""
    parked: dict[str, int] = field(default_factory=dict)
    """By view, of those that have any: how many keys are parked. Their entries are not in the cache."""
    problems: dict[str, str] = field(default_factory=dict)
    """By view, of those that cannot go on: why, as a reason of errors. They need not have a position."""

    def encode(self) -> str:
        payload = {
            "feed": self.feed_epoch.hex,
            "positions": self.positions,
            "cache": self.cache_epochs,
            "marks": self.marks,
            "generations": self.generations,
            "parked": self.parked,
            "problems": self.problems,
        }
        text = json.dumps(payload, separators=(",", ":"))
        if len(text) > MAX_BYTES:
            raise ValueError(f"an announcement of {len(text)} bytes does not fit: too many cache nodes")
        return text

    @classmethod
    def decode(cls, text: str) -> "Announcement":
        """Raises MalformedAnnouncement."""
        try:
            payload = json.loads(text)
            # What a projector of the version before does not say yet is not known.
            more = {name: payload.get(name, {}) for name in ("marks", "generations", "parked", "problems")}
            return cls(uuid.UUID(payload["feed"]), payload["positions"], payload["cache"], **more)
        except (ValueError, KeyError, TypeError) as error:
            raise MalformedAnnouncement(text[:100]) from error
