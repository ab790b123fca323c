"""`tandem verify`: whether the write tables, the views and the cache are what the events make of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import grpc
import typer
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass
from rich.console import Group, RenderableType
from rich.table import Table

from tandem.cli.access import connect
from tandem.cli.output import FAILED, Json, complain, new_console, print_json

# Differences that are shown as a table; `--json` has all.
_SHOWN = 50


@dataclass(frozen=True)
class Difference:
    """kind: "row", "missing", "extra", "entry" or "event"; see commerce.audit.v1.DifferenceKind."""

    subject: str
    key: str
    kind: str
    position: int
    columns: list[str]
    error: str
    repaired: bool


@dataclass
class Subject:
    """What was compared of a view, or of what the command server keeps. problem: why it was not compared to its end."""

    name: str
    keys: int = 0
    events: int = 0
    not_compared: int = 0
    differences: list[Difference] = field(default_factory=list)
    problem: str = ""


@dataclass
class Report:
    """problem: why a service could not be asked; empty where all could."""

    subjects: list[Subject] = field(default_factory=list)
    problem: str = ""

    @property
    def differences(self) -> list[Difference]:
        return [it for subject in self.subjects for it in subject.differences]

    @property
    def well(self) -> bool:
        """Everything was compared, and nothing differed."""
        return not self.problem and not any(it.differences or it.problem for it in self.subjects)


def add_command(app: typer.Typer, audit: ServiceDescriptor, addresses: Mapping[str, str]) -> None:
    """audit: the service that answers. addresses: where it is by default, by section: command and projector."""

    @app.command()
    def verify(
        subjects: Annotated[
            list[str] | None,
            typer.Argument(help='Views, such as "order_details", and aggregates, such as "order"; all by default.'),
        ] = None,
        *,
        sample: Annotated[int, typer.Option(min=0, max=10_000, help="So many keys of each, at random; 0 for all.")] = 0,
        key: Annotated[
            list[str] | None, typer.Option(help="This key alone, a UUID. May be given several times.")
        ] = None,
        repair: Annotated[
            bool, typer.Option("--repair", help="Make rows of views and cache entries right; never write tables.")
        ] = False,
        command_address: Annotated[str, typer.Option(help="Address of a command server.")] = addresses["command"],
        projector_address: Annotated[
            str, typer.Option(help="Address of the projector that follows the views.")
        ] = addresses["projector"],
        as_json: Json = False,
    ) -> None:
        """Compare what is stored with the events, while everything runs.

        Write tables are compared by the command server, views and the cache by the projector. Reads the whole feed for
        each subject, unless keys are given. Exit code 1 when something differs, also where it was made right, or when
        something could not be compared.
        """
        request = {"subjects": subjects or [], "sample": sample, "keys": key or [], "repair": repair}
        report = Report()
        console = new_console(stderr=True)
        with console.status("") as status:
            for address in (command_address, projector_address):
                _ask(audit, address, request, report, status.update)
        unknown = sorted(set(subjects or []) - {it.name for it in report.subjects})
        if unknown and not report.problem:
            report.problem = f"no service has {', '.join(unknown)}"
        if as_json:
            print_json({"well": report.well, **asdict(report)})
        else:
            new_console().print(as_tables(report))
            for problem in problems(report):
                complain(problem)
        if not report.well:
            raise typer.Exit(FAILED)


def _ask(
    audit: ServiceDescriptor, address: str, request: Mapping[str, Any], report: Report, say: Callable[[str], None]
) -> None:
    """Adds what the service at an address finds. say: is told how far it is."""
    method = audit.methods_by_name["Verify"]
    message = GetMessageClass(method.input_type)
    with connect(address) as channel:
        call = channel.unary_stream(
            f"/{audit.full_name}/{method.name}",
            request_serializer=message.SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        try:
            for answer in call(message(**request)):
                _take(answer, report)
                say(progress(answer))
        except grpc.RpcError as error:
            report.problem = f"{address} does not compare: {error.code().name}: {error.details()}"


def _take(answer: Any, report: Report) -> None:
    if not report.subjects or report.subjects[-1].name != answer.subject:
        report.subjects.append(Subject(answer.subject))
    subject = report.subjects[-1]
    subject.keys, subject.events = answer.keys, answer.events
    subject.not_compared, subject.problem = answer.not_compared, answer.problem
    subject.differences += _differences(answer)


def _differences(answer: Any) -> Iterator[Difference]:
    for it in answer.differences:
        kind = it.DESCRIPTOR.fields_by_name["kind"].enum_type.values_by_number[it.kind].name
        yield Difference(
            subject=answer.subject,
            key=it.key,
            kind=kind.removeprefix("DIFFERENCE_KIND_").lower(),
            position=it.position,
            columns=list(it.columns),
            error=it.error,
            repaired=it.repaired,
        )


def progress(answer: Any) -> str:
    """In a line."""
    part = f"{100 * answer.position // answer.until} % of the feed read" if answer.until else "begins"
    return f"{answer.subject}: {answer.keys:,} keys compared, {answer.events:,} events; {part}"


def as_tables(report: Report) -> RenderableType:
    """The report for people."""
    subjects = Table("subject", box=None, pad_edge=False)
    for column in ("keys", "events read", "differ", "repaired", "not compared"):
        subjects.add_column(column, justify="right")
    for it in report.subjects:
        repaired = sum(one.repaired for one in it.differences)
        style = "red" if it.differences or it.problem else "green"
        numbers = (it.keys, it.events, len(it.differences), repaired, it.not_compared)
        subjects.add_row(f"[{style}]{it.name}[/]", *(f"{number:,}" for number in numbers))
    if not report.differences:
        return subjects
    return Group(subjects, "", _table_of(report.differences))


def _table_of(differences: Sequence[Difference]) -> RenderableType:
    table = Table("subject", "key", "what", "position", "about", "repaired", box=None, pad_edge=False)
    for it in differences[:_SHOWN]:
        about = it.error or ", ".join(it.columns)
        table.add_row(it.subject, it.key, it.kind, f"{it.position:,}", about, "yes" if it.repaired else "no")
    more = len(differences) - _SHOWN
    return Group(table, f"and {more:,} more; --json has all") if more > 0 else table


def problems(report: Report) -> list[str]:
    """What could not be done, and what is to be done, a sentence each."""
    found = [report.problem] if report.problem else []
    found += [f"{it.name} was not compared to its end: {it.problem}" for it in report.subjects if it.problem]
    if not_compared := sum(it.not_compared for it in report.subjects):
        found.append(f"{not_compared} keys tell of people whose erasure is under way: ask again when it is over")
    if any(not it.repaired for it in report.differences):
        found.append("something differs: docs/runbook.md says what to do")
    return found
