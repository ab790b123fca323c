"""`tandem import`: brings in a shop's tables, and compares what is here then with what is in them."""

import hashlib
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, tzinfo
from itertools import islice
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import grpc
import typer
from google.protobuf.message import Message
from rich.table import Table as Grid

from tandem.cli.access import connect
from tandem.cli.calls import in_words
from tandem.cli.domain import Domain
from tandem.cli.local_stack import DEFAULT_PORTS
from tandem.cli.output import FAILED, WRONG_USAGE, Json, complain, fail, new_console, print_json, report
from tandem.cli.sample import send
from tandem.cli.tables import MAX_PROBLEMS, Problems, Record, Source, Table, records_of

_NAMESPACE = uuid.UUID("5b0e6a0c-7f0d-4a51-8d0e-3a0b7a1c9f42")
# Commands under way at once: enough for the server to commit them in batches. The journal is written after each window.
_PARALLEL = 32
_WINDOW = 256
_PAGE = 100
_LIST_SECONDS = 30.0
_REFUSALS = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ABORTED,
)


@dataclass
class Outcome:
    """What came of a table. rows: in its file. sent: brought in now. before: by an earlier run. there: that were here
    already, by whomever. refused: in words. here: those of them that are listed. missing, differing: keys. sums_there,
    sums_here: in minor units, by currency. others: rows here that are not of this file.
    """

    name: str
    rows: int = 0
    sent: int = 0
    before: int = 0
    there: int = 0
    refused: list[str] = field(default_factory=list)
    here: int = 0
    others: int = 0
    missing: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    sums_there: dict[str, int] = field(default_factory=dict)
    sums_here: dict[str, int] = field(default_factory=dict)

    @property
    def well(self) -> bool:
        return not (self.refused or self.missing or self.differing) and self.sums_there == self.sums_here


class Journal:
    """The commands that are done, in a file beside the tables, so that a run that ended goes on where it was.

    What is not in it is sent again, which changes nothing: a command's request id is made of its table, its key and
    what it says. A refusal is counted into that id, since a request id is refused for ever.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._done: set[str] = set()
        self._refusals: Counter[str] = Counter()
        self.token = ""
        """Of the last command: what is listed has it."""
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                what, _, value = line.partition(" ")
                if what == "done":
                    self._done.add(value)
                elif what == "refused":
                    self._refusals[value] += 1
                elif what == "token":
                    self.token = value
        self._file = path.open("a", encoding="utf-8")

    def close(self) -> None:
        self._file.close()

    def is_done(self, command: str) -> bool:
        return command in self._done

    def request_id(self, command: str) -> str:
        return str(uuid.uuid5(_NAMESPACE, f"{command}/{self._refusals[command]}"))

    def note(self, done: Sequence[str], refused: Sequence[str], token: str) -> None:
        """Raises OSError."""
        lines = [*(f"done {it}" for it in done), *(f"refused {it}" for it in refused)]
        if token:
            self.token = token
            lines.append(f"token {token}")
        self._file.write("".join(f"{it}\n" for it in lines))
        self._file.flush()


def add_to(app: typer.Typer, domain: Domain) -> None:
    names = ", ".join(it.name for it in domain.tables)

    @app.command(name="import", epilog="docs/importing.md says what the columns are called.")
    def import_(
        folder: Annotated[
            Path, typer.Argument(help=f"Folder with {names}: .csv or .jsonl.", exists=True, file_okay=False)
        ],
        *,
        currency: Annotated[str, typer.Option(help="ISO 4217 code of amounts that name none.")] = "",
        time_zone: Annotated[str, typer.Option(help="Of times without an offset, such as Europe/Berlin.")] = "UTC",
        source: Annotated[
            str, typer.Option(help="Name of the system that it comes from: sets its keys apart from others'.")
        ] = "import",
        ignore: Annotated[
            list[str] | None, typer.Option(help="A column that is not brought in. May be given several times.")
        ] = None,
        check: Annotated[
            bool, typer.Option("--check", help="Read the files, say what is wrong with them, and bring in nothing.")
        ] = False,
        command_address: Annotated[
            str, typer.Option(help="Address of a command server.")
        ] = f"127.0.0.1:{DEFAULT_PORTS.command}",
        query_address: Annotated[
            str, typer.Option(help="Address of a query server.")
        ] = f"127.0.0.1:{DEFAULT_PORTS.query}",
        as_json: Json = False,
    ) -> None:
        """Bring in the tables of another system, in order, and compare both sides: rows and sums of amounts.

        All files are read before anything is sent. Ctrl-C ends it, and it goes on where it was when it is run again: a
        row is brought in once, however often. A row that is refused is named, the others go on; mend it and run again.
        Exit code 1 where rows were refused or the sides differ, 2 where the files are wrong.
        """
        origin = Source(folder, source, currency, _zone(time_zone), frozenset(ignore or []))
        tables = _read(domain.tables, origin)
        if check:
            counts = {table.name: len(records) for table, records in tables}
            if as_json:
                print_json({"well": True, "rows": counts})
            else:
                typer.echo(", ".join(f"{count:,} {name}" for name, count in counts.items()) + ": all can be read")
            return
        assert domain.commands is not None, "a domain with tables has both"
        assert domain.queries is not None, "a domain with tables has both"
        outcomes = []
        try:
            with connect(command_address) as commands, connect(query_address) as queries:
                journal = Journal(folder / f".tandem-import-{source}.journal")
                try:
                    for table, records in tables:
                        outcome = Outcome(table.name, rows=len(records))
                        outcomes.append(outcome)
                        bring_in(table, records, domain.commands(commands), journal, outcome)
                    for (table, records), outcome in zip(tables, outcomes, strict=True):
                        report(f"{table.name}: comparing both sides")
                        compare(table, records, domain.queries(queries), journal.token, outcome)
                finally:
                    journal.close()
        except grpc.RpcError as error:
            fail(f"it ended, and goes on when it is run again: {in_words(error)}")
        except OSError as error:
            fail(f"the journal cannot be written: {error}")
        except KeyboardInterrupt:
            fail("stopped; it goes on when it is run again")
        _show(outcomes, as_json=as_json)


def _zone(name: str) -> tzinfo:
    try:
        return UTC if name == "UTC" else ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise typer.BadParameter(f"there is no time zone {name}") from error


def _read(tables: Sequence[Table], source: Source) -> list[tuple[Table, list[Record]]]:
    found, problems = [], []
    for table in tables:
        try:
            if (records := records_of(table, source)) is not None:
                found.append((table, records))
        except Problems as wrong:
            problems.append(str(wrong))
    for problem in problems:
        complain(problem)
    if problems:
        raise typer.Exit(WRONG_USAGE)
    if not found:
        fail(f"{source.folder} has none of {', '.join(it.name for it in tables)}", WRONG_USAGE)
    return found


def bring_in(table: Table, records: Sequence[Record], commands: Any, journal: Journal, outcome: Outcome) -> None:
    """Sends the commands of a table's rows, those of a window side by side. Raises grpc.RpcError and OSError."""
    pool = ThreadPoolExecutor(_PARALLEL, thread_name_prefix="import")
    todo = iter(records)
    try:
        looked_at = 0
        while window := list(islice(todo, _WINDOW)):
            # What follows a row waits for it.
            results = list(pool.map(lambda it: list(_send(table, it, commands, journal)), window))
            done = [it.command for row in results for it in row if it.is_done]
            refused = [it.command for row in results for it in row if it.problem]
            newest = max((it for row in results for it in row), key=lambda it: it.position, default=None)
            journal.note(done, refused, newest.token if newest else "")
            for record, row in zip(window, results, strict=True):
                problems = [it.problem for it in row if it.problem]
                outcome.refused += [f"{table.name} {record.key}: {it}" for it in problems]
                if not row:
                    outcome.before += 1
                elif not problems:
                    outcome.there += row[0].was_there
                    outcome.sent += not row[0].was_there
            looked_at += len(window)
            report(f"{table.name}: {looked_at:,} of {len(records):,}, {len(outcome.refused):,} refused")
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Sent:
    """A command that was sent. problem: why it was refused. token, position: of its receipt."""

    command: str
    problem: str = ""
    was_there: bool = False
    token: str = ""
    position: int = 0

    @property
    def is_done(self) -> bool:
        return not self.problem


def _send(table: Table, record: Record, commands: Any, journal: Journal) -> Iterator[_Sent]:
    """The commands of a row that are not done, up to the first that is refused."""
    for request in (record.request, *record.further):
        command = name_of(table, record, request)
        if journal.is_done(command):
            continue
        sent = type(request)()
        sent.CopyFrom(request)
        sent.request_id = journal.request_id(command)
        try:
            receipt = send(commands, sent).receipt
            yield _Sent(command, token=receipt.consistency_token, position=receipt.position)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.ALREADY_EXISTS:
                yield _Sent(command, was_there=True)
            elif error.code() in _REFUSALS:
                yield _Sent(command, problem=in_words(error))
                return
            else:
                raise


def name_of(table: Table, record: Record, request: Message) -> str:
    """What a command is called in the journal: its table, its key, and what it says."""
    said = hashlib.sha256(request.DESCRIPTOR.name.encode() + request.SerializeToString(deterministic=True))
    # A key may have any characters.
    key = hashlib.sha256(record.key.encode()).hexdigest()[:32]
    return f"{table.name}/{key}/{said.hexdigest()[:32]}"


def compare(table: Table, records: Sequence[Record], queries: Any, token: str, outcome: Outcome) -> None:
    """Lists what is here, and compares it with the rows. Raises grpc.RpcError."""
    wanted = {getattr(it.request, table.key): it for it in records}
    found: set[str] = set()
    there, here = Counter[str](), Counter[str]()
    if table.comes_to is not None:
        for record in records:
            amount = table.comes_to(record.request)
            there[amount.currency_code] += amount.minor_units
    for row in _listed(table, queries, token):
        identity = getattr(row, table.key)
        expected = wanted.get(identity)
        if expected is None:
            outcome.others += 1
            continue
        found.add(identity)
        if table.comes_to is not None and table.shows is not None:
            amount = table.shows(row)
            here[amount.currency_code] += amount.minor_units
            if amount != table.comes_to(expected.request):
                outcome.differing.append(expected.key)
    outcome.here = len(found)
    outcome.missing = [it.key for identity, it in wanted.items() if identity not in found]
    outcome.sums_there, outcome.sums_here = dict(sorted(there.items())), dict(sorted(here.items()))


def _listed(table: Table, queries: Any, token: str) -> Iterator[Any]:
    call = getattr(queries, table.rpc)
    page_token = ""
    while True:
        request = table.listing(page_size=_PAGE, page_token=page_token)
        if token:
            request.consistency.at_least_as_fresh = token
        answer = call(request, timeout=_LIST_SECONDS)
        yield from getattr(answer, table.rows)
        page_token = answer.next_page_token
        if not page_token:
            return


def _show(outcomes: Sequence[Outcome], *, as_json: bool) -> None:
    well = all(it.well for it in outcomes)
    if as_json:
        print_json({"well": well, "tables": [{**asdict(it), "well": it.well} for it in outcomes]})
    else:
        new_console().print(as_table(outcomes))
    for it in outcomes:
        for problem in it.refused[:MAX_PROBLEMS]:
            complain(problem)
        if more := len(it.refused[MAX_PROBLEMS:]):
            complain(f"{it.name}: {more:,} more were refused; --json has all")
        for what, keys in (("are not here", it.missing), ("differ in their amount", it.differing)):
            if keys:
                complain(f"{it.name}: {len(keys):,} {what}, such as {', '.join(keys[:5])}")
    if not well:
        raise typer.Exit(FAILED)


def as_table(outcomes: Sequence[Outcome]) -> Grid:
    """Both sides, for people."""
    grid = Grid("table", box=None, pad_edge=False)
    for column in ("rows", "here", "now", "before", "were there", "refused", "sum there", "sum here", "others here"):
        grid.add_column(column, justify="right")
    for it in outcomes:
        style = "green" if it.well else "red"
        counts = (it.rows, it.here, it.sent, it.before, it.there, len(it.refused))
        sums = ("\n".join(f"{minor:,} {code}" for code, minor in of.items()) for of in (it.sums_there, it.sums_here))
        grid.add_row(f"[{style}]{it.name}[/]", *(f"{number:,}" for number in counts), *sums, f"{it.others:,}")
    return grid
