"""A shop's tables as files: what each row says, as the request of a command.

A file is CSV, with the names of fields in its first line, or JSON, an object a line. A name is a field of the command's
request; of a message in it, behind a dot: `address.city`. What differs from the request:

- an id is the other system's key: an id here is made of it, the same one each time;
- an amount is written as people write it, 12.99, and is in the row's `currency`, or the one that is said for all;
- a time is ISO 8601, and one without an offset is in the time zone that is said;
- lines of an order are a file of their own, with the order's key, or a list in its JSON.
"""

import csv
import json
import re
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

_NAMESPACE = uuid.UUID("0d1c2b6e-5a43-4c8b-9a57-5f8c1c1e6a10")
_YES, _NO = {"1", "true", "yes", "t", "y"}, {"0", "false", "no", "f", "n"}
# ISO 4217: how many digits minor units have, where that is not two.
_ZERO_DIGITS = "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF"
_THREE_DIGITS = "BHD IQD JOD KWD LYD OMR TND"
_DIGITS = {
    **dict.fromkeys(_ZERO_DIGITS.split(), 0),
    **dict.fromkeys(_THREE_DIGITS.split(), 3),
    **dict.fromkeys(("CLF", "UYW"), 4),
}
_AMOUNT = re.compile(r"(-?[0-9]+(?:\.[0-9]+)?)(?: ([A-Z]{3}))?")
MAX_PROBLEMS = 20
"""More are not named."""


@dataclass(frozen=True)
class Table:
    """A table that `import` brings in, a command for each row.

    name: of its file. request: of the command. key: the field of its id. refers: the fields that hold keys of other
    tables, in lines too, and which. reference: the path of the field that keeps the other system's key. pairs: a list
    of messages with `name` and `value`, a column for each name. lines: a list of messages with a file of their own, and
    that file's name. further: a column that says whether a further command follows, which has the same key.
    rpc: lists what is there. listing: its request. rows: the field of its answer. comes_to: the amount of a request, as
    the contract works it out; shows: the amount of a row that is listed. None where rows have no amount.
    """

    name: str
    request: type[Message]
    key: str
    rpc: str
    listing: type[Any]
    rows: str
    refers: Mapping[str, str] = field(default_factory=dict)
    reference: str = ""
    pairs: str = ""
    lines: tuple[str, str] | None = None
    further: Mapping[str, type[Message]] = field(default_factory=dict)
    comes_to: Callable[[Any], Any] | None = None
    shows: Callable[[Any], Any] | None = None


@dataclass(frozen=True)
class Source:
    """Where rows come from. name: sets the ids of two systems apart. currency, zone: where a row does not say."""

    folder: Path
    name: str
    currency: str
    zone: tzinfo
    ignored: frozenset[str] = frozenset()

    def file_of(self, name: str) -> Path | None:
        """The table's file, or None. Raises ValueError where there are two."""
        found = [it for it in (self.folder / f"{name}{suffix}" for suffix in (".csv", ".jsonl")) if it.is_file()]
        if len(found) > 1:
            raise ValueError(f"{found[0].name} and {found[1].name} are both there: which is it?")
        return found[0] if found else None

    def id_of(self, table: str, key: str) -> str:
        """The id here of what has that key there; a UUID is one already."""
        try:
            return str(uuid.UUID(key))
        except ValueError:
            return str(uuid.uuid5(_NAMESPACE, f"{self.name}/{table}/{key}"))


@dataclass(frozen=True)
class Record:
    """A row: its key in the other system, the command that brings it in, and those that follow."""

    key: str
    request: Any
    further: tuple[Any, ...] = ()


class Problems(Exception):
    """What is wrong with the files, in words, a line each."""


class _Wrong(Exception):
    """What is wrong with a value. Goes on from its name."""


Cells = list[tuple[str, Any]]
"""Of a row: names and values. A name may come several times."""


def records_of(table: Table, source: Source) -> list[Record] | None:
    """All rows of a table, in the order of its file; None where there is no file. Raises Problems."""
    try:
        path = source.file_of(table.name)
        if path is None:
            return None
        return _Reader(table, source).read(path)
    except (OSError, ValueError, csv.Error) as error:
        raise Problems(str(error)) from error


class _Reader:
    def __init__(self, table: Table, source: Source) -> None:
        self._table = table
        self._source = source
        self._problems: list[str] = []

    def read(self, path: Path) -> list[Record]:
        lines = self._lines()
        found: dict[str, Record] = {}
        for where, cells in _cells_of(path):
            record = self._record(where, cells, lines)
            if record.key in found and record.key:
                self._note(where, f"the key {record.key} comes a second time")
            found[record.key] = record
        if unknown := lines.keys() - found.keys():
            some = ", ".join(sorted(unknown)[:3])
            of_lines = self._table.lines[1] if self._table.lines else ""
            self._note(of_lines, f"{len(unknown)} keys are not in {path.name}, such as {some}")
        if self._problems:
            more = len(self._problems) - MAX_PROBLEMS
            rest = [f"and {more:,} more"] if more > 0 else []
            raise Problems("\n".join([*self._problems[:MAX_PROBLEMS], *rest]))
        return list(found.values())

    def _lines(self) -> dict[str, list[tuple[str, Cells]]]:
        """The rows of the lines' file, by the key that they belong to."""
        by_key: defaultdict[str, list[tuple[str, Cells]]] = defaultdict(list)
        if self._table.lines is not None and (path := self._source.file_of(self._table.lines[1])) is not None:
            for where, cells in _cells_of(path):
                keys = [str(value) for name, value in cells if name == self._table.key]
                if keys and keys[0]:
                    by_key[keys[0]].append((where, [it for it in cells if it[0] != self._table.key]))
                else:
                    self._note(where, f"{self._table.key} is missing")
        return by_key

    def _record(self, where: str, cells: Cells, lines: Mapping[str, Sequence[tuple[str, Cells]]]) -> Record:
        table, request = self._table, self._table.request()
        key = next((str(value) for name, value in cells if name == table.key), "")
        if not key:
            self._note(where, f"{table.key} is missing")
        currency = next((str(value) for name, value in cells if name == "currency" and value), self._source.currency)
        further: list[Message] = []
        for name, value in cells:
            if name == "currency" or name in self._source.ignored or value in ("", None):
                continue
            if name in table.further:
                if self._try(where, name, _bool, value):
                    following = table.further[name]()
                    setattr(following, table.key, self._source.id_of(table.name, key))
                    further.append(following)
            elif table.lines is not None and name == table.lines[0] and isinstance(value, list):
                for number, line in enumerate(value):
                    self._add_line(f"{where}: {name}[{number}]", request, list(line.items()), currency)
            else:
                self._set(where, request, name, value, currency)
        for place, line in lines.get(key, ()):
            self._add_line(place, request, line, currency)
        if table.reference and key:
            _keep_reference(request, table.reference, key)
        return Record(key, request, tuple(further))

    def _add_line(self, where: str, request: Any, cells: Cells, currency: str) -> None:
        assert self._table.lines is not None
        line = getattr(request, self._table.lines[0]).add()
        currency = next((str(value) for name, value in cells if name == "currency" and value), currency)
        for name, value in cells:
            if name != "currency" and name not in self._source.ignored and value not in ("", None):
                self._set(where, line, name, value, currency)

    def _set(self, where: str, message: Any, name: str, value: Any, currency: str) -> None:
        """Sets a field by its path. value: text, or what JSON has; an object's fields are set one by one."""
        if self._table.pairs and name.split(".", maxsplit=1)[0] == self._table.pairs:
            self._add_pairs(message, name, value)
            return
        *above, last = name.split(".")
        holder = message
        for part in above:
            inner = _field(holder.DESCRIPTOR, part)
            if inner is None or inner.message_type is None or inner.is_repeated:
                self._note(where, f"{name} is no field of {message.DESCRIPTOR.name}")
                return
            holder = getattr(holder, part)
        of = _field(holder.DESCRIPTOR, last)
        if of is None or of.is_repeated:
            self._note(where, f"{name} is no field of {message.DESCRIPTOR.name}")
        elif isinstance(value, dict):
            for inner_name, inner_value in value.items():
                self._set(where, message, f"{name}.{inner_name}", inner_value, currency)
        else:
            self._try(where, name, lambda it: self._put(holder, of, it, currency), value)

    def _put(self, holder: Any, of: FieldDescriptor, value: Any, currency: str) -> None:
        """Raises _Wrong."""
        name, message = of.name, of.message_type
        if message is not None and message.full_name == "google.protobuf.Timestamp":
            getattr(holder, name).FromDatetime(_moment(str(value), self._source.zone))
        elif message is not None and {"minor_units", "currency_code"} <= set(message.fields_by_name):
            money = getattr(holder, name)
            money.minor_units, money.currency_code = _amount(str(value), currency)
        elif message is not None:
            raise _Wrong("is a message: name its fields")
        elif name in self._keys:
            setattr(holder, name, self._source.id_of(self._keys[name], str(value)))
        elif of.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
            setattr(holder, name, _bool(value))
        elif of.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            setattr(holder, name, str(value))
        else:
            try:
                setattr(holder, name, int(value))
            except (ValueError, TypeError, OverflowError) as error:
                raise _Wrong(f"is {value!r}, and must be a whole number") from error

    @property
    def _keys(self) -> Mapping[str, str]:
        return {self._table.key: self._table.name, **self._table.refers}

    def _add_pairs(self, message: Any, name: str, value: Any) -> None:
        field_name, _, of = name.partition(".")
        pairs = value.items() if isinstance(value, dict) else [(of, value)]
        for pair_name, values in pairs:
            for it in values if isinstance(values, list) else [values]:
                getattr(message, field_name).add(name=pair_name, value=str(it))

    def _try(self, where: str, name: str, use: Callable[[Any], Any], value: Any) -> Any:
        try:
            return use(value)
        except _Wrong as wrong:
            self._note(where, f"{name} {wrong}")
            return None

    def _note(self, where: str, problem: str) -> None:
        self._problems.append(f"{where}: {problem}")


def _cells_of(path: Path) -> Iterator[tuple[str, Cells]]:
    """Each row, with where it stands. Raises ValueError for what is no row."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".csv":
            rows = csv.reader(file)
            names = [it.strip() for it in next(rows, [])]
            for row in rows:
                if row and len(row) != len(names):
                    raise ValueError(
                        f"{path.name}:{rows.line_num}: {len(row)} cells, and the first line has {len(names)}"
                    )
                if row:
                    yield f"{path.name}:{rows.line_num}", list(zip(names, row, strict=True))
            return
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                value = json.loads(text, parse_float=Decimal)
            except ValueError as error:
                raise ValueError(f"{path.name}:{number}: is no JSON: {error}") from error
            if not isinstance(value, dict):
                raise ValueError(f"{path.name}:{number}: is no object")
            yield f"{path.name}:{number}", list(value.items())


def _field(of: Descriptor, name: str) -> FieldDescriptor | None:
    return None if name == "request_id" else of.fields_by_name.get(name)


def _keep_reference(request: Any, path: str, key: str) -> None:
    """Where the row does not say what it is called there, it is its key."""
    *above, last = path.split(".")
    holder = request
    for name in above:
        holder = getattr(holder, name)
    if not getattr(holder, last):
        setattr(holder, last, key)


def _bool(value: Any) -> bool:
    text = str(value).strip().lower()
    if text not in _YES | _NO:
        raise _Wrong(f"is {value!r}, and must be true or false")
    return text in _YES


def _amount(text: str, currency: str) -> tuple[int, str]:
    """Minor units, and the currency."""
    match = _AMOUNT.fullmatch(text.strip())
    if match is None:
        raise _Wrong(f"is {text!r}, and must be an amount such as 12.99")
    code = match[2] or currency
    if not code:
        raise _Wrong("has no currency: give the row a column `currency`, or --currency")
    try:
        minor = Decimal(match[1]).scaleb(_DIGITS.get(code, 2))
    except InvalidOperation as error:
        raise _Wrong(f"is {text!r}, which is too large") from error
    if minor != int(minor):
        raise _Wrong(f"is {text}, and {code} has {_DIGITS.get(code, 2)} decimals")
    return int(minor), code


def _moment(text: str, zone: tzinfo) -> datetime:
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise _Wrong(f"is {text!r}, and must be a time such as 2024-05-31 or 2024-05-31T09:30:00+02:00") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=zone)
