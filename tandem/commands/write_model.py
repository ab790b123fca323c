"""The write model: aggregates that a batch locks and loads, and what it has changed in them, saved.

A domain describes each aggregate: its table, and how a row becomes a state and a state a row. A state is an immutable
object, best a NamedTuple: a batch makes thousands of them, and a changed aggregate is another object. The statements
are made here: one a table for loading and one for all that is saved, whatever the size of the batch.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, cast

from google.protobuf.message import Message
from sqlalchemy import Column, Connection, Table, Uuid

from tandem.commands.rules import Id, check_version, not_found
from tandem.feed.sealing import new_key
from tandem.feed.table import subject_key
from tandem.runtime.arrays import array
from tandem.runtime.bulk import Row, Write, execute, inserted, updated
from tandem.runtime.database import Answer, driver_of

S = TypeVar("S")

SubjectKeys = dict[Id, bytes]
"""What personal data is sealed with, by data subject; an erased one has no key."""


class Loaded(ABC, Generic[S]):
    """Something that a batch loads by id, for rules to read: an aggregate, or a part of one."""

    @abstractmethod
    def query(self, references: "Sequence[Reference]") -> str:
        """The statement that loads it: its parameters are an array of ids, and one for each of the references to it."""

    @abstractmethod
    def states_of(self, rows: Iterable[Row], asked: Iterable[Id], subject_keys: SubjectKeys) -> dict[Id, S]:
        """What rows of the statement make, by id. asked: the ids. Adds to subject_keys those that come along."""


class Part(Loaded[S]):
    """What an aggregate has in another table, in several rows: loaded only for the commands that ask for it."""

    def __init__(
        self,
        query: str,
        *,
        of_rows: Callable[[list[Row]], S],
        table: Table | None = None,
        rows_of: Callable[[Id, S], Iterable[Row]] | None = None,
    ) -> None:
        """query: the rows of an array of owners; the owner's id comes first. of_rows: what the other columns make.

        table, rows_of: where the part is inserted with its owner, and as which rows. None for a part that is made of
        the rows of other aggregates.
        """
        self._query = query
        self._of_rows = of_rows
        self.table = table
        self.rows_of = rows_of

    def query(self, references: "Sequence[Reference]") -> str:
        assert not references, "parts are found by their owners alone"
        return self._query

    def states_of(self, rows: Iterable[Row], asked: Iterable[Id], subject_keys: SubjectKeys) -> dict[Id, S]:  # noqa: ARG002
        by_owner: defaultdict[Id, list[Row]] = defaultdict(list)
        for owner, *columns in rows:
            by_owner[owner].append(columns)
        return {owner: self._of_rows(by_owner[owner]) for owner in asked}


class Reference:
    """The aggregates whose ids stand in the rows of others: the customers of some orders, found by the orders' ids.

    to: which aggregate. column: where its id stands. key: the column of what it is found by.
    """

    def __init__(self, to: "Aggregate[Any]", column: Column[Any], *, key: Column[Any]) -> None:
        self.to = to
        self.column = column
        self.key = key
        self.referring = (
            f"SELECT CAST({key.name} AS text) FROM {column.table}"  # noqa: S608
            f" WHERE {key.name} = ANY(%s) AND {column.name} = ANY(%s)"
        )
        """The statement for those of some keys by which some of the aggregates are found."""


class Aggregate(Loaded[S]):
    """A kind of thing that commands create and change, each with an id and a version."""

    def __init__(
        self,
        name: str,
        table: Table,
        *,
        of_row: Callable[[Row], S],
        row_of: Callable[[S], Row] | None = None,
        parts: Sequence[Part[Any]] = (),
        refers: Sequence[Reference] = (),
        unversioned: Sequence[str] = (),
        erased: Callable[[S], bool] | None = None,
    ) -> None:
        """name: in the singular; a request has its id in the field `{name}_id`. table: its first column is `id`.

        of_row, row_of: from a row of all columns, ids as text, to the state and back; a state has `id` and `version`.
        None for a NamedTuple whose fields are the columns.
        parts: what is inserted with it. refers: how commands reach other aggregates through its rows.
        unversioned: columns that change without a new version; where nothing else has, they alone are written.
        erased: set for the data subjects of personal data; tells whether this one's key is to be destroyed.
        """
        self.name = name
        self.id_field = f"{name}_id"
        self.table = table
        self._of_row = of_row
        self.row_of = row_of or _as_it_is
        self.parts = parts
        self.refers = refers
        self.unversioned = ("id", *unversioned) if unversioned else ()
        self.erased = erased
        self.kinds: list[Any] = []
        """The CommandKind of each rule that `tandem.commands.domain.rule` stands above."""
        self.changes: list[tuple[type[Message], Callable[[States, Any], None]]] = []
        """What each event changes, as `tandem.commands.domain.change` and `change_fields` say it."""

    def query(self, references: Sequence[Reference]) -> str:
        table = self.table
        columns = ", ".join(_column(it) for it in table.columns)
        ids = _any_of(references)
        if self.erased is None:
            return f"SELECT {columns} FROM {table.fullname} AS t WHERE t.id = {ids} ORDER BY t.id FOR UPDATE"  # noqa: S608
        # The key comes along: a batch pays for no statement more because personal data is sealed.
        return (
            f"SELECT k.key, {columns} FROM {table.fullname} AS t"  # noqa: S608
            f" LEFT JOIN {subject_key.fullname} AS k ON k.subject_id = t.id"
            f" WHERE t.id = {ids} ORDER BY t.id FOR UPDATE OF t"
        )

    def stored_query(self, condition: str) -> str:
        """The rows for which a condition on `t` holds, not locked; `state_of` reads them behind their first column.

        That says whether the data subject has no key.
        """
        columns = ", ".join(_column(it) for it in self.table.columns)
        keyless, key = "false", ""
        if self.erased is not None:
            keyless, key = "k.key IS NULL", f" LEFT JOIN {subject_key.fullname} AS k ON k.subject_id = t.id"
        return f"SELECT {keyless}, {columns} FROM {self.table.fullname} AS t{key} WHERE {condition}"  # noqa: S608

    def state_of(self, row: Row) -> S:
        """The state that a row of all columns is, ids as text."""
        return self._of_row(row)

    def held_query(self, references: "Sequence[Reference]") -> str:
        """The ids of those that another transaction keeps locked. It has the parameters of `query`, twice."""
        table, ids = self.table.fullname, _any_of(references)
        return (
            f"SELECT CAST(t.id AS text) FROM {table} AS t WHERE t.id = {ids}"  # noqa: S608
            f" EXCEPT SELECT CAST(id AS text) FROM"
            f" (SELECT t.id FROM {table} AS t WHERE t.id = {ids} FOR UPDATE SKIP LOCKED) AS free"
        )

    def states_of(self, rows: Iterable[Row], asked: Iterable[Id], subject_keys: SubjectKeys) -> dict[Id, S]:  # noqa: ARG002
        of_row = self._of_row
        if self.erased is None:
            return {row[0]: of_row(row) for row in rows}
        states = {}
        for key, *row in rows:
            states[row[0]] = of_row(row)
            if key is not None:
                subject_keys[row[0]] = key
        return states

    def current(self, states: "States", request: Message, identity: Id) -> S:
        """What a command is about, at the version that its caller has seen. Raises NotFound and Conflict."""
        state: Any = states[self].get(identity)
        if state is None:
            raise not_found(self.name, identity)
        check_version(request, state.version)
        return cast(S, state)

    def change(self, states: "States", event: Any, **changes: Any) -> None:
        """Gives what an event is about the event's version and other values of these fields. For NamedTuples."""
        of_kind: dict[Id, Any] = states[self]
        identity = getattr(event, self.id_field)
        of_kind[identity] = of_kind[identity]._replace(version=event.version, **changes)


class Keys(dict["Loaded[Any] | Reference", set[Id]]):
    """What the commands of a batch may read or change: ids, by what they are ids of.

    Those of a Part or a Reference are the ids of their owners.
    """

    def __missing__(self, of: "Loaded[Any] | Reference") -> set[Id]:
        made = self[of] = set()
        return made

    def meets(self, others: "Keys") -> bool:
        """Whether some id is in both, as an id of the same."""
        return any(not ids.isdisjoint(others.get(of, ())) for of, ids in self.items())

    def without(self, others: "Keys") -> "Keys":
        """Those that are not in the others; nothing is in it with no ids."""
        left = {of: ids.difference(others.get(of, ())) for of, ids in self.items()}
        return Keys({of: ids for of, ids in left.items() if ids})


def of_subject(*wanted: "Loaded[Any] | Reference") -> Callable[[Message, Id, Keys], None]:
    """The keys of a command that needs parts of its subject, or what the subject refers to."""

    def add(_request: Message, subject: Id, keys: Keys) -> None:
        for it in wanted:
            keys[it].add(subject)

    return add


class States(dict["Loaded[Any]", dict[Id, Any]]):
    """What a batch has loaded, and the states after the events of its commands: by id, of an aggregate or a part.

    What is not in the database is not in here. A part is here for each owner that was asked for.
    """

    if TYPE_CHECKING:

        def __getitem__(self, of: Loaded[S]) -> dict[Id, S]: ...

    def __missing__(self, of: Loaded[Any]) -> dict[Id, Any]:
        made = self[of] = {}
        return made

    def copy(self) -> "States":
        """The same states, to be replaced one by one."""
        return States({of: dict(states) for of, states in self.items()})


class _Read(NamedTuple):
    """A statement of the batch, and what its parameters are the ids of."""

    of: Loaded[Any]
    query: str
    ids_of: tuple[Loaded[Any] | Reference, ...]


class WriteModel:
    """All aggregates of a domain."""

    def __init__(self, loads: Sequence[Loaded[Any]]) -> None:
        """loads: aggregates and their parts, in the order in which they are locked."""
        self.loads = loads
        self.aggregates = [it for it in loads if isinstance(it, Aggregate)]
        self._reads = []
        for it in loads:
            references = [reference for by in self.aggregates for reference in by.refers if reference.to is it]
            self._reads.append(_Read(it, it.query(references), (it, *references)))

    def load(self, connection: Connection, keys: Keys) -> Answer[tuple[States, SubjectKeys]]:
        """Locks and loads the aggregates that exist, and with them the keys of the loaded data subjects.

        Tables in one order everywhere and rows by id, so that two transactions never wait for each other in a circle.
        The locks last until the transaction ends.
        """
        found: list[tuple[Loaded[Any], Iterable[Row]]] = []
        with driver_of(connection) as driver:
            for read in self._reads:
                ids = [keys.get(it, ()) for it in read.ids_of]
                if any(ids):
                    arrays = [array("UUID", list(it)) for it in ids]
                    found.append((read.of, driver.send(read.query, arrays)))

        def answer() -> tuple[States, SubjectKeys]:
            states = States({read.of: {} for read in self._reads})
            subject_keys: SubjectKeys = {}
            for of, rows in found:
                states[of] = of.states_of(rows, keys[of], subject_keys)
            return states, subject_keys

        return answer

    def find_held(self, connection: Connection, keys: Keys) -> Keys:
        """Those of the keys whose rows another transaction keeps locked at this moment. It waits for none of them.

        With a Reference, those of its keys whose rows refer to a locked one.
        """
        held = Keys()
        with driver_of(connection) as driver:
            for read in self._reads:
                ids = [keys.get(it, ()) for it in read.ids_of]
                if not isinstance(read.of, Aggregate) or not any(ids):
                    continue
                references = [it for it in read.ids_of if isinstance(it, Reference)]
                arrays = [array("UUID", list(it)) for it in ids]
                locked = {it for (it,) in driver.execute(read.of.held_query(references), [*arrays, *arrays])}
                if locked:
                    held[read.of] |= locked
                    for it in references:
                        sent = [array("UUID", list(these)) for these in (keys.get(it, ()), locked)]
                        held[it] |= {key for (key,) in driver.execute(it.referring, sent)}
        return held

    def save(self, connection: Connection, before: States, after: States) -> tuple[SubjectKeys, list[Id]]:
        """Writes what differs, in one statement: inserts what is new, updates what changed.

        New data subjects get their keys, which are returned, and the keys of erased ones are destroyed: who that is is
        returned too. An insert fails
        with a unique violation when another transaction has created the same in between.
        """
        writes: list[Write] = []
        subject_keys: SubjectKeys = {}
        gone: list[Id] = []
        for aggregate in self.aggregates:
            old, now = before[aggregate], after[aggregate]
            # By id, so that two servers that create the same things never wait for each other in a circle.
            new = [now[it] for it in sorted(now.keys() - old.keys())]
            # An aggregate is replaced by another object when an event changes it, so identity tells.
            changed = [it for key, it in now.items() if old.get(key, it) is not it]
            if not new and not changed:
                continue
            writes += inserted(aggregate.table, map(aggregate.row_of, new))
            for part in aggregate.parts:
                if part.table is not None and part.rows_of is not None:
                    rows_of, parts = part.rows_of, after[part]
                    writes += inserted(part.table, (row for it in new for row in rows_of(it.id, parts[it.id])))
            if aggregate.unversioned:
                counted = [it for it in changed if it.version == old[it.id].version]
                changed = [it for it in changed if it.version != old[it.id].version]
                columns = attrgetter(*aggregate.unversioned)
                writes += updated(aggregate.table, map(columns, counted), names=aggregate.unversioned)
            writes += updated(aggregate.table, map(aggregate.row_of, changed))
            if aggregate.erased is not None:
                erased = aggregate.erased
                subject_keys |= {it.id: new_key() for it in new}
                # One that is created and erased in this very batch has a key for its events, and none in the table.
                keys = [(it.id, None if erased(it) else subject_keys[it.id]) for it in new]
                writes += inserted(subject_key, keys)
                gone_now = [it.id for it in changed if erased(it)]
                writes += updated(subject_key, [(it, None) for it in gone_now])
                gone += gone_now
        execute(connection, writes)
        return subject_keys, gone


def _as_it_is(state: Any) -> Row:
    row: Row = state
    return row


def _any_of(references: Sequence[Reference]) -> str:
    """What an id is compared with: parameters as `Loaded.query` says."""
    # `= ANY(array)` is one prepared statement for every number of ids; `IN (…)` would be one for each.
    if not references:
        return "ANY(%s)"
    # By an array, so that each id is looked up.
    found = "".join(
        f" UNION SELECT {it.column.name} FROM {it.column.table} WHERE {it.key.name} = ANY(%s)"  # noqa: S608
        for it in references
    )
    return f"ANY(ARRAY(SELECT unnest(CAST(%s AS uuid[])){found}))"


def _column(column: Column[Any]) -> str:
    return f"CAST(t.{column.name} AS text)" if isinstance(column.type, Uuid) else f"t.{column.name}"
