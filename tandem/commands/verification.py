"""The write tables compared with the feed, while commands go on: each aggregate's row is what its events made of it.

The domain says already how each event changes the states (`Domain.changes`). Here those changes are done again, from
the first event on, to the aggregates that are chosen. Rows are read in a short snapshot, with the feed's head of that
moment and the last events up to it; so both are at one position.
"""

import random
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from tandem.commands.domain import Domain
from tandem.commands.rules import Id
from tandem.commands.write_model import Aggregate, Part, States
from tandem.feed.archive import Archive
from tandem.feed.events import FeedEvent
from tandem.feed.head import read_head
from tandem.feed.reader import SCAN_POSITIONS, EventsMissing, scan_events
from tandem.feed.verification import EVENT, EXTRA, MISSING, ROW, CannotVerify, Chosen, Difference, Step, Steps
from tandem.runtime.bulk import Row
from tandem.runtime.database import create_database_engine, driver_of, first_line
from tandem.runtime.settings import DatabaseSettings

# As ids stand in events.
_ID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_FIRST = str(uuid.UUID(int=0))

# Rows in one snapshot: some 20 ms.
_CHUNK = 500
# Aggregates whose events are done again together: some kilobytes each.
_MOST_STATES = 20_000
_BATCH_EVENTS = 1000
# Of chosen ids that PostgreSQL looks for in the events: see scan_events.
_MOST_TEXTS = 16


@dataclass(frozen=True)
class _Ids:
    """Ids that are chosen: those, or all from `first` on and before `end`."""

    these: frozenset[Id] | None = None
    first: Id = _FIRST
    end: Id | None = None

    def __contains__(self, identity: object) -> bool:
        if self.these is not None:
            return identity in self.these
        return isinstance(identity, str) and identity >= self.first and (self.end is None or identity < self.end)

    @property
    def texts(self) -> Sequence[str]:
        return sorted(self.these) if self.these is not None and len(self.these) <= _MOST_TEXTS else ()


_ROW_COUNT = text("SELECT reltuples FROM pg_class WHERE oid = CAST(:it AS regclass)")
NOBODY = _Ids(frozenset())


class _Kept(dict[Id, Any]):
    """The states of chosen ids. Changes of any other id are done to a stand-in, and are not kept.

    before: what the states were that have changed since it was emptied.
    """

    def __init__(self, ids: _Ids, stand_in: Any) -> None:
        """stand_in: any state of this kind, None where none is known before the events make one."""
        super().__init__()
        self.ids = ids
        self.failed: dict[Id, tuple[int, str]] = {}
        self.before: dict[Id, Any] = {}
        self._stand_in = stand_in

    def keeps(self, identity: object) -> bool:
        return identity in self.ids and identity not in self.failed

    def __missing__(self, identity: Id) -> Any:
        if self.keeps(identity) or self._stand_in is None:
            raise KeyError(identity)
        return self._stand_in

    def __setitem__(self, identity: Id, state: Any) -> None:
        self._stand_in = state
        if self.keeps(identity):
            self.before.setdefault(identity, self.get(identity))
            super().__setitem__(identity, state)

    def restore(self) -> None:
        for identity, state in self.before.items():
            if state is None:
                self.pop(identity, None)
            else:
                super().__setitem__(identity, state)


class _KeptParts(_Kept):
    """Of a part each owner has one, if only an empty one."""

    def __init__(self, ids: _Ids, part: Part[Any]) -> None:
        super().__init__(ids, None)
        self._part = part

    def __missing__(self, owner: Id) -> Any:
        return self._part.states_of((), [owner], {})[owner]

    def __contains__(self, owner: object) -> bool:
        return self.keeps(owner)


class Fold:
    """Chosen aggregates of one kind, as the events up to `position` make them."""

    def __init__(self, domain: Domain, aggregate: Aggregate[Any], ids: _Ids, stand_ins: dict[Any, Any]) -> None:
        """stand_ins: any state of each kind of aggregate, for what happens to those that are not chosen."""
        self.position = 0
        self._domain = domain
        self._aggregate = aggregate
        self._states = States()
        self._all: dict[Any, _Kept] = {}
        for it in domain.model.loads:
            chosen = ids if it is aggregate or it in aggregate.parts else NOBODY
            kept = _KeptParts(chosen, it) if isinstance(it, Part) else _Kept(chosen, stand_ins.get(it))
            self._states[it] = self._all[it] = kept
        self.states = self._all[aggregate]
        self.positions: dict[Id, int] = {}

    @property
    def ids(self) -> _Ids:
        return self.states.ids

    def part(self, part: Part[Any], owner: Id) -> Any:
        return self._states[part][owner]

    def take_in(self, events: Sequence[FeedEvent], until: int) -> None:
        for event in events:
            mentioned = {it.decode() for it in _ID.findall(event.payload)}
            while ids := [it for it in mentioned if self.states.keeps(it)]:
                try:
                    self._change(event)
                    break
                except Exception as error:  # whatever a change raises says that the events do not follow each other
                    self._undo()
                    for identity in self._guilty(event, ids, error):
                        self.states.failed[identity] = event.position, f"{type(error).__name__}: {error}"
                        self.states.pop(identity, None)
        self.position = until
        self._narrow()

    def _guilty(self, event: FeedEvent, ids: Sequence[Id], error: Exception) -> Sequence[Id]:
        """Those of the chosen ids in an event for which it cannot be taken in."""
        if isinstance(error, KeyError) and error.args[0] in ids:
            return [error.args[0]]
        about = self._domain.events.parse(event.payload, None)
        subject = getattr(getattr(about, event.kind), self._aggregate.id_field, None)
        # Ids of other kinds are mentioned too.
        return [it for it in ids if it == subject or dict.__contains__(self.states, it)] or ids

    def _change(self, event: FeedEvent) -> None:
        for kept in self._all.values():
            kept.before.clear()
        message = event.message
        self._domain.changes[type(message)](self._states, message)
        self.positions |= dict.fromkeys(self.states.before, event.position)

    def _undo(self) -> None:
        for kept in self._all.values():
            kept.restore()

    def _narrow(self) -> None:
        """Leaves out half of a range that holds too many. What is behind is for another fold."""
        if len(self.states) <= _MOST_STATES or self.ids.these is not None:
            return
        ids = sorted(self.states)
        narrower = _Ids(None, self.ids.first, ids[len(ids) // 2])
        for of in (self._aggregate, *self._aggregate.parts):
            kept = self._all[of]
            kept.ids = narrower
            for identity in [it for it in kept if it not in narrower]:
                del kept[identity]
        self.states.failed = {it: why for it, why in self.states.failed.items() if it in narrower}
        self.positions = {it: position for it, position in self.positions.items() if it in narrower}


class WriteVerification:
    """Compares a domain's aggregates with the feed. Each comparison has a connection of its own."""

    def __init__(self, domain: Domain, database: DatabaseSettings, archive: Archive) -> None:
        """archive: where the feed's oldest events may be."""
        self._domain = domain
        self._archive = archive
        self._database = database
        self._aggregates = {it.name: it for it in domain.model.aggregates}

    def verify(self, subject: str, chosen: Chosen, _repair: bool, is_over: Callable[[], bool]) -> Steps:
        """As tandem.feed.verification.Verify has it. Rows are never repaired: nobody knows which of both is right."""
        engine = create_database_engine(self._database, name="tandem-command-verify", pool_size=1, by_key=True)
        try:
            for step in self._steps(engine, self._aggregates[subject], chosen):
                yield step
                if is_over():
                    return
        except SQLAlchemyError as error:
            raise CannotVerify(f"the write database cannot be read: {first_line(error)}") from error
        except EventsMissing as error:
            raise CannotVerify(str(error)) from error
        finally:
            engine.dispose()

    def _steps(self, engine: Engine, aggregate: Aggregate[Any], chosen: Chosen) -> Iterator[Step]:
        with engine.connect() as connection:
            if chosen.sample or chosen.keys:
                keys = chosen.keys or self._sample(connection, aggregate, chosen.sample)
                ids = _Ids(frozenset(str(uuid.UUID(bytes=it)) for it in keys))
            else:
                ids = _Ids()
        rest: _Ids | None = ids
        while rest is not None:
            with engine.connect() as connection:
                fold = Fold(self._domain, aggregate, rest, self._stand_ins(connection))
                until = read_head(connection).position
            yield from self._catch_up(engine, fold, until)
            yield from self._compare_all(engine, aggregate, fold)
            rest = None if fold.ids.end is None else _Ids(None, fold.ids.end)

    def _catch_up(self, engine: Engine, fold: Fold, until: int) -> Iterator[Step]:
        while fold.position < until:
            with engine.connect() as connection:
                events = self._advance(connection, fold, until)
            yield Step(events=events, position=fold.position, until=until)

    def _advance(self, connection: Connection, fold: Fold, until: int) -> int:
        contract = self._domain.events
        part = scan_events(
            connection,
            contract,
            fold.position,
            until,
            _BATCH_EVENTS,
            kinds=contract.kinds,
            texts=fold.ids.texts,
            archive=self._archive,
        )
        fold.take_in(part.events, part.until)
        return len(part.events)

    def _compare_all(self, engine: Engine, aggregate: Aggregate[Any], fold: Fold) -> Iterator[Step]:
        first = fold.ids.first
        while True:
            with engine.connect() as connection:
                head = read_head(connection).position
            if head - fold.position > SCAN_POSITIONS:
                # Not within the snapshot, which is to be short.
                yield from self._catch_up(engine, fold, head)
            with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
                head = read_head(connection).position
                stored = _rows(connection, aggregate, fold.ids, first)
                parts = _parts(connection, aggregate, list(stored))
                while fold.position < head:
                    self._advance(connection, fold, head)
            last = max(stored) if fold.ids.these is None and len(stored) == _CHUNK else None
            keys = {it for it in (*stored, *fold.states, *fold.states.failed) if it in fold.ids and it >= first}
            keys = {it for it in keys if last is None or it <= last}
            differences = [it for key in sorted(keys) if (it := _compare(aggregate, fold, key, stored, parts))]
            yield Step(keys=len(keys), position=fold.position, until=fold.position, differences=differences)
            if last is None or last not in fold.ids:
                return
            # The id behind it: the next character after the last of an id's alphabet would do as well.
            first = str(uuid.UUID(int=uuid.UUID(last).int + 1))

    def _stand_ins(self, connection: Connection) -> dict[Any, Any]:
        """Any state of each kind of aggregate, where there is one."""
        found = {}
        with driver_of(connection) as driver:
            for it in self._domain.model.aggregates:
                row = driver.execute(it.stored_query("true LIMIT 1")).fetchone()
                if row is not None:
                    found[it] = it.state_of(row[1:])
        return found

    def _sample(self, connection: Connection, aggregate: Aggregate[Any], count: int) -> frozenset[bytes]:
        """Ids at random: half of them of rows that are there, half of what events are about."""
        name = aggregate.table.fullname
        rows = connection.execute(
            text("SELECT reltuples FROM pg_class WHERE oid = CAST(:it AS regclass)"), {"it": name}
        )
        share = min(100.0, 500.0 * count / max(rows.scalar_one(), 1.0))
        sampled = text(f"SELECT id FROM {name} TABLESAMPLE SYSTEM (:share) ORDER BY random() LIMIT :most")  # noqa: S608
        found = connection.execute(sampled, {"share": share, "most": count - count // 2}).scalars()
        keys = {it.bytes for it in found}
        position = read_head(connection).position
        contract = self._domain.events
        kinds = [it for it, message in contract.messages.items() if aggregate.id_field in message.fields_by_name]
        for _ in range(min(count // 2, position)):
            after = random.randrange(position)  # noqa: S311 - any event will do
            part = scan_events(connection, contract, after, position, 1, kinds=kinds)
            keys |= {uuid.UUID(getattr(it.message, aggregate.id_field)).bytes for it in part.events}
        return frozenset(keys)


def _rows(connection: Connection, aggregate: Aggregate[Any], ids: _Ids, first: Id) -> dict[Id, Row]:
    """The next rows, by id; each has whether its data subject's key is gone before its columns."""
    with driver_of(connection) as driver:
        if ids.these is not None:
            found = driver.execute(aggregate.stored_query("t.id = ANY(%s::uuid[])"), [list(ids.these)])
        else:
            condition = "t.id >= %s::uuid AND (%s::uuid IS NULL OR t.id < %s::uuid) ORDER BY t.id LIMIT %s"
            found = driver.execute(aggregate.stored_query(condition), [first, ids.end, ids.end, _CHUNK])
        return {row[1]: row for row in found}


def _parts(connection: Connection, aggregate: Aggregate[Any], owners: Sequence[Id]) -> dict[Part[Any], dict[Id, Any]]:
    """Of the owners: those parts that are stored in tables of their own."""
    with driver_of(connection) as driver:
        return {
            part: part.states_of(driver.execute(part.query(()), [[uuid.UUID(it) for it in owners]]), owners, {})
            for part in aggregate.parts
            if part.table is not None
        }


def _compare(
    aggregate: Aggregate[Any],
    fold: Fold,
    identity: Id,
    stored: dict[Id, Row],
    parts: dict[Part[Any], dict[Id, Any]],
) -> Difference | None:
    key = uuid.UUID(identity).bytes
    if identity in fold.states.failed:
        position, error = fold.states.failed[identity]
        return Difference(aggregate.name, key, EVENT, position, error=f"event {position}: {error}")
    right, position = fold.states.get(identity), fold.positions.get(identity, 0)
    if identity not in stored:
        return Difference(aggregate.name, key, MISSING, position)
    if right is None:
        return Difference(aggregate.name, key, EXTRA, 0)
    is_keyless, *row = stored[identity]
    rows = aggregate.row_of(right), aggregate.row_of(aggregate.state_of(row))
    columns = [it.name for it, ours, theirs in zip(aggregate.table.columns, *rows, strict=True) if ours != theirs]
    columns += [str(part.table) for part, of_owner in parts.items() if of_owner[identity] != fold.part(part, identity)]
    if aggregate.erased is not None and aggregate.erased(right) != is_keyless:
        # Whoever is erased has no key any more, and everybody else has one.
        columns.append("subject_key")
    return Difference(aggregate.name, key, ROW, position, tuple(columns)) if columns else None
