"""Blocks of settings of a program that projects."""

from pydantic import Field

from tandem.read_store.cache import SharedCacheSettings
from tandem.runtime.settings import Block


class FollowSettings(Block):
    """How the feed is followed."""

    batch_size: int = Field(1000, ge=1, le=10_000, description="Events in one transaction at most")
    batch_rows: int = Field(
        5000, ge=1, le=100_000, description="Rows of one view that a batch changes at most; one event may change more"
    )
    statement_seconds: float = Field(
        1.5, gt=0, le=60, description="How long a batch may take to be loaded or stored, before it is halved"
    )
    lock_seconds: float = Field(
        0.25, gt=0, le=60, description="How long a batch waits for a lock, before its view waits alone"
    )
    poll_seconds: float = Field(0.1, gt=0, le=10, description="How soon a lost notification is made up for")
    heartbeat_seconds: float = Field(
        1.0, gt=0, le=2, description="Time between announcements when nothing happens; readers wait 3 s for one"
    )
    hung_seconds: float = Field(
        15.0, ge=3, le=600, description="How long a projector that hangs keeps its views from a standby"
    )
    release_seconds: float = Field(
        3.0,
        gt=0,
        le=600,
        description="How long one that cannot read the feed keeps its views from one that can",
    )
    standby_seconds: float = Field(0.5, gt=0, le=60, description="How often a standby asks for views that are free")
    rebuild_share: float = Field(
        0.5,
        ge=0.01,
        le=1,
        description="How much of its time may go into filling other generations of views",
    )
    rebuild_batch: int = Field(
        250, ge=1, le=10_000, description="Events in one transaction of those at most; what is served waits meanwhile"
    )
    retry_seconds: float = Field(5.0, gt=0, le=600, description="How often a view that cannot go on is tried again")
    parked_keys: int = Field(
        1000, ge=0, le=100_000, description="Rows of one view that may be parked, before the view stops as a whole"
    )
    parked_events: int = Field(
        1_000_000,
        ge=0,
        le=100_000_000,
        description="Events that may wait for a view's parked rows, before it stops",
    )


class CacheSettings(SharedCacheSettings):
    """The cache's nodes, as the projector reaches them."""

    timeout: float = Field(0.25, gt=0, le=10, description="Seconds to wait for a node before it is fenced off")
    probe_seconds: float = Field(1.0, gt=0, le=60, description="How often a fenced node is asked whether it is back")
    entry_seconds: int = Field(
        86_400, ge=60, le=2_592_000, description="How long an entry lives; a reader that misses it brings it back"
    )


class ChangeLogSettings(Block):
    """The log of which keys changed when."""

    keep_hours: float = Field(24.0, gt=0, description="How long it is kept")
    purge_batch: int = Field(5000, ge=1, le=100_000, description="Old rows deleted in one statement")
    purge_every_seconds: float = Field(60.0, gt=0, description="Time between purges")


class AuditSettings(Block):
    """The auditor: compares the views and the cache with the feed, all the time."""

    share: float = Field(
        0.02, ge=0, le=1, description="Of the time of one processor that it may take at most; 0 turns it off"
    )
    round_seconds: float = Field(
        60.0, ge=0, description="Time between the beginnings of two comparisons of the same view at least"
    )
    repair: bool = Field(True, description="Whether rows and entries that differ are made right")
