"""Follows the feed for reactions: what an event leads to is written down in the transaction that moves the position.

Any number of command servers may do it: who has the lock of a reaction's row follows, and the others pass it by. The
lock ends with the transaction, and with whoever had it.
"""

import itertools
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError
from prometheus_client import Counter
from sqlalchemy import Connection, Engine, literal_column, select, update
from sqlalchemy.dialects.postgresql import insert

from tandem.feed.archive import Archive
from tandem.feed.events import FeedEvent
from tandem.feed.head import read_marked_head
from tandem.feed.reader import BrokenOff, scan_events
from tandem.reactions.reaction import Causes, Reaction
from tandem.reactions.tasks import (
    Kind,
    Task,
    delete_timers,
    find_parked_keys,
    insert_tasks,
    parked_event,
)
from tandem.reactions.tasks import reaction as reaction_table
from tandem.runtime.clock import ClocksDiffer, database_time
from tandem.runtime.database import WITHOUT_THE_DISK, first_line
from tandem.runtime.telemetry import log

PARKED = Counter(
    "tandem_reaction_events_parked_total", "Events that a reaction has not taken in, or that wait for one", ["reaction"]
)

_EVENTS_AT_ONCE = 500
_BEGUN_AT_ONCE = 1000


class Followed(NamedTuple):
    """What a look has found. caught_up: by reaction, the moment whose events all have been taken; without those that
    another server follows. is_behind: whether there is more to take in at once. problems: by reaction.
    """

    caught_up: dict[str, datetime]
    is_behind: bool
    problems: dict[str, str]


class _Event(NamedTuple):
    """message: the contract's, with personal data sealed. key: the aggregate that it is about."""

    stored: FeedEvent
    message: Any
    key: str


class _Batch:
    """What some events lead to. keys: (reaction, aggregate) whose timers are replaced."""

    def __init__(self, parked: set[tuple[str, str]], now: datetime) -> None:
        """parked: (reaction, aggregate) of which an event is parked. now: the database's time."""
        self.keys: set[tuple[str, str]] = set()
        self.tasks: list[Task] = []
        self._parked = parked
        self._now = now

    def add(self, reaction: Reaction, event: _Event, secret: uuid.UUID) -> None:
        stored, key = event.stored, event.key
        name = (reaction.name, key)
        error = ""
        if name not in self._parked:
            try:
                tasks = reaction.tasks(stored, event.message, secret)
            except Exception as failure:  # whatever it is, it concerns this aggregate alone
                error = repr(failure)[:1000]
                log.error("an event is parked", reaction=reaction.name, key=key, position=stored.position, error=error)
                self._parked.add(name)
            else:
                self._replace(name)
                # What is done at once is due by the clock that looks for it.
                self.tasks += [it if it.kind == Kind.TIMER else it._replace(at=self._now) for it in tasks]
                return
        self.tasks.append(parked_event(reaction.name, stored, key, self._now, error))

    def _replace(self, name: tuple[str, str]) -> None:
        """An event of an aggregate has come: the timer that waits for it goes, one of this batch too."""
        if name in self.keys:
            self.tasks = [it for it in self.tasks if it.kind != Kind.TIMER or (it.reaction, it.key) != name]
        self.keys.add(name)


class Follower:
    """For one thread."""

    def __init__(
        self,
        engine: Engine,
        reactions: Sequence[Reaction],
        archive: Archive,
        now: Callable[[Connection], datetime],
    ) -> None:
        """now: the time by which timers are due; it may raise ClocksDiffer, and events are taken in nevertheless."""
        self._engine = engine
        self._reactions = {it.name: it for it in reactions}
        self._archive = archive
        self._now = now
        self.full: set[str] = set()
        """The names of those that have so much parked that they take in no more."""

    def begin(self) -> None:
        """Makes the rows of reactions that are new to this store, with what each begins with."""
        with self._engine.connect() as connection:
            rows = dict(connection.execute(select(reaction_table.c.name, reaction_table.c.version)).all())
        for it in self._reactions.values():
            if it.name not in rows:
                self._begin(it)
            elif rows[it.name] < it.version:
                table = reaction_table.c
                newer = update(reaction_table).where(table.name == it.name, table.version < it.version)
                with self._engine.begin() as connection:
                    connection.execute(newer.values(version=it.version))

    def _begin(self, reaction: Reaction) -> None:
        with self._engine.begin() as connection:
            # Before what the tables say: what comes in between is in both, and the event has the last word.
            head = read_marked_head(connection)
            begun = {"position": head.position, "begun_after": head.position}
            made = insert(reaction_table).values(name=reaction.name, version=reaction.version, **begun)
            secret = connection.execute(made.on_conflict_do_nothing().returning(reaction_table.c.secret)).scalar()
            if secret is None:
                return
            count = 0
            if reaction.begins_with is not None:
                causes, at = Causes(head.position, head.mark, ""), database_time(connection)
                found = enumerate(reaction.begins_with(connection), start=1)
                tasks = (reaction.task_of(effect, key, at, causes, -number, secret) for number, (key, effect) in found)
                while some := list(itertools.islice(tasks, _BEGUN_AT_ONCE)):
                    insert_tasks(connection, some)
                    count += len(some)
        log.info("began a reaction", reaction=reaction.name, position=head.position, waiting=count)

    def look(self) -> Followed:
        """Takes in what follows, for the reactions that nobody else follows at this moment. Raises SQLAlchemyError.

        It does not wait for the disk, and commands, whose commits do, not for it: a crash that loses a look loses
        nothing that was done because of it, and the next one finds the same events.
        """
        followed = Followed({}, False, {})
        with self._engine.begin() as connection:
            try:
                now = self._now(connection)
            except ClocksDiffer as error:
                now = None
                followed.problems.update(dict.fromkeys(self._reactions, f"nothing is timed: {error}"))
            rows = connection.execute(
                select(reaction_table, literal_column(WITHOUT_THE_DISK))
                .where(reaction_table.c.name.in_(list(self._reactions)))
                .order_by(reaction_table.c.name)
                .with_for_update(skip_locked=True)
            ).all()
            head = read_marked_head(connection).position
            together: defaultdict[int, list[Any]] = defaultdict(list)
            for row in rows:
                if row.name in self.full:
                    followed.problems[row.name] = "so much is parked already that no more events are taken in"
                elif row.version > self._reactions[row.name].version:
                    followed.problems[row.name] = f"a newer program follows it, with version {row.version}"
                else:
                    together[row.position].append(row)
            is_behind = False
            for position, some in together.items():
                try:
                    reached = self._follow(connection, some, position, head, followed.problems)
                except BrokenOff as error:
                    followed.problems.update({it.name: str(error) for it in some})
                    continue
                for name, at in reached.items():
                    if at >= head:
                        if now is not None:
                            followed.caught_up[name] = now
                    elif name not in followed.problems:
                        is_behind = True
        return followed._replace(is_behind=is_behind)

    def _follow(
        self, connection: Connection, rows: Sequence[Any], position: int, head: int, problems: dict[str, str]
    ) -> dict[str, int]:
        """Takes a part of the feed in for the reactions at one position; how far each is then. Raises BrokenOff."""
        if position >= head:
            return {it.name: position for it in rows}
        reactions = [self._reactions[it.name] for it in rows]
        secrets = {it.name: it.secret for it in rows}
        kinds = {kind for it in reactions for kind in it.kinds}
        part = scan_events(
            connection,
            reactions[0].contract,
            position,
            head,
            _EVENTS_AT_ONCE,
            kinds=kinds,
            archive=self._archive,
        )
        reached = {it.name: part.until for it in reactions}
        taken: list[tuple[Reaction, _Event]] = []
        for stored in part.events:
            takers = [it for it in reactions if stored.kind in it.kinds and reached[it.name] >= stored.position]
            try:
                event = stored.sealed()
                taken += [(it, _Event(stored, event, it.key_of(stored.kind, event))) for it in takers]
            except (DecodeError, ValueError) as error:
                # Nobody can say what it is about, so all that follows must wait.
                problem = f"event {stored.position} cannot be read: {first_line(error)}"
                reached.update(dict.fromkeys((it.name for it in takers), stored.position - 1))
                problems.update(dict.fromkeys((it.name for it in takers), problem))
        if taken:
            keys = sorted({(it.name, event.key) for it, event in taken})
            batch = _Batch(find_parked_keys(connection, keys), database_time(connection))
            for it, event in taken:
                batch.add(it, event, secrets[it.name])
            delete_timers(connection, sorted(batch.keys))
            insert_tasks(connection, batch.tasks)
            for task in batch.tasks:
                if task.kind == Kind.EVENT:
                    PARKED.labels(task.reaction).inc()
        names: defaultdict[int, list[str]] = defaultdict(list)
        for name, at in reached.items():
            names[at].append(name)
        for at, together in names.items():
            connection.execute(update(reaction_table).where(reaction_table.c.name.in_(together)).values(position=at))
        return reached
