"""The feed's tables, in the write database, as `migrations` makes them; this is their one description.

A position is a counter's next value, taken under the counter's row lock in the transaction that inserts the event, and
the lock is held until that transaction ends. So positions commit in order and without a gap: whoever sees position p
can never meet a new event at or below p. A sequence would not do: its values are taken outside the transaction, so they
commit out of order and leave gaps, and a reader that tails them skips events for good. Transaction ids would not do
either: one long transaction anywhere would hold every reader back, and a dump and restore gives all rows new
ones. (A long snapshot leaves versions of the counter's row behind: see NEWEST_HEAD.)
"""

from pathlib import Path

from sqlalchemy import (
    BigInteger,
    Column,
    Computed,
    DateTime,
    Index,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    Uuid,
    func,
    text,
)

from tandem.runtime.migrations import Schema

SCHEMA = "tandem_write"
WRITE = Schema(SCHEMA, Path(__file__).parent / "migrations")
"""The write database's schema. The engine's migrations make the feed, receipts and keys; the domain's, its tables."""
CHANNEL = "tandem_feed"
"""The NOTIFY channel of the write database; one notification a commit, with no payload."""

metadata = MetaData(schema=SCHEMA)

feed_head = Table(
    "feed_head",
    metadata,
    Column("id", SmallInteger, nullable=False),
    Column("epoch", Uuid, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("span", BigInteger, Computed("position >> 6", persisted=True), primary_key=True, autoincrement=False),
    Column("lost_position", BigInteger, nullable=True),
)
"""One row: the feed's epoch and its last position. span: of 64 positions, by which NEWEST_HEAD finds the row.

lost_position: of an event that a caller was told of and that is not in the feed any more; NULL while there is none
that is known of. See tandem.commands.acknowledged.
"""

NEWEST_HEAD = f"(SELECT * FROM {feed_head.fullname} ORDER BY span DESC LIMIT 1)"  # noqa: S608
"""SQL of the head's row, to stand in FROM, for whoever asks all the time.

Each commit leaves a version of the row behind, and while somebody holds a snapshot, a dump for hours, none of them is
taken away. The newest is in the last span, and passes over the versions of that span alone. Within a span an update
changes no index, so that it stays on its page (HOT) and what nobody sees is taken away at once. ADR 35.
"""

event = Table(
    "event",
    metadata,
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", Text, nullable=False),
    Column("recorded_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("payload", LargeBinary, nullable=False),
    Column("subject_id", Uuid, nullable=True),
    Column("envelope", LargeBinary, nullable=True, comment="tandem.internal.v1.Envelope"),
    Column("mark", BigInteger, nullable=True),
    Column("version", SmallInteger, nullable=False, server_default="1"),
)
"""The events, append-only, partitioned by ranges of positions. `payload`: the message of the domain's
EventContract.

subject_id: the data subject whose key the event's personal data is sealed with; NULL where there is none. envelope:
NULL for events from before there were envelopes. version: of the kind, see EventContract; 1 for events from before
there were versions.

mark: random, the same for all events of a commit: another history of the feed has another one at the same position.
NULL for events from before there were marks.
"""

event_supplement = Table(
    "event_supplement",
    metadata,
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("payload", LargeBinary, nullable=False),
)
"""What the event at a position does not say and its kind's newest version does, in the domain's own form. A migration
finds it out once, and writes it here since events are never changed; the kind's upcaster puts both together. It is not
sealed, so it holds nothing of a person.
"""

archive_file = Table(
    "archive_file",
    metadata,
    Column("first", BigInteger, primary_key=True, autoincrement=False),
    Column("last", BigInteger, nullable=False),
    Column("name", Text, nullable=False),
    Column("sha256", LargeBinary, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("archived_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)
"""The archive's files, each with events `first` to `last`. A row comes when the file was read back and compared with
the table; the events are dropped from the table later, a partition at a time. See tandem.feed.archive.
"""

ended_epoch = Table(
    "ended_epoch",
    metadata,
    Column("epoch", Uuid, primary_key=True),
    Column("ended_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)
"""The epochs that this feed had before: views and tokens of one of them are of its past, not of a feed elsewhere."""

subject_key = Table(
    "subject_key",
    metadata,
    Column("subject_id", Uuid, primary_key=True),
    Column("key", LargeBinary, nullable=True),
    Index("subject_key_erased", "subject_id", postgresql_where=text("key IS NULL")),
)
"""Each data subject's key; NULL once the subject is erased. See tandem.feed.sealing."""

MAX_EVENT_BYTES = 512 * 1024
"""Of an event's payload: what every reader can take, and several times what the shop's largest command makes. A message
of FeedService ends with the event that makes it a megabyte, and clients take four; memcached takes rows of one.
"""

PARTITION_EVENTS = 10_000_000
"""Positions in a partition, where no setting says otherwise: some gigabytes, and an index that stays shallow."""
