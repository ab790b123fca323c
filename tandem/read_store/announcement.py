"""What a projector announces to the query servers after each batch, by NOTIFY in the read database."""

import json
import uuid
from dataclasses import dataclass

from tandem.read_store.cache import CacheEpochs

# PostgreSQL refuses a payload of 8,000 bytes or more.
MAX_BYTES = 7_999


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

    def encode(self) -> str:
        payload = {"feed": self.feed_epoch.hex, "positions": self.positions, "cache": self.cache_epochs}
        text = json.dumps(payload, separators=(",", ":"))
        if len(text) > MAX_BYTES:
            raise ValueError(f"an announcement of {len(text)} bytes does not fit: too many cache nodes")
        return text

    @classmethod
    def decode(cls, text: str) -> "Announcement":
        """Raises MalformedAnnouncement."""
        try:
            payload = json.loads(text)
            return cls(uuid.UUID(payload["feed"]), payload["positions"], payload["cache"])
        except (ValueError, KeyError, TypeError) as error:
            raise MalformedAnnouncement(text[:100]) from error
