"""`tandem history`: the events that changed a row, in order, and the row as it was after each."""

import json
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import grpc
import typer
from google.protobuf.descriptor import ServiceDescriptor

from tandem.cli.access import connect
from tandem.cli.calls import Fields, as_fields, in_words, stream
from tandem.cli.domain import Domain
from tandem.cli.local_stack import DEFAULT_PORTS
from tandem.cli.output import Json, fail, new_console

Tell = Callable[[int, int], None]
"""(position up to which the feed was looked through, up to which it will be) -> nothing."""


def add_to(app: typer.Typer, domain: Domain) -> None:
    @app.command()
    def history(
        aggregate: Annotated[str, typer.Argument(help=_subjects(domain))],
        key: Annotated[str, typer.Argument(help="The id, or the key of the view's row.")],
        *,
        at: Annotated[
            int | None, typer.Option(min=1, help="Show only the row as it was at this position of the feed.")
        ] = None,
        projector_address: Annotated[
            str, typer.Option(help="Address of the projector.")
        ] = f"127.0.0.1:{DEFAULT_PORTS.projector}",
        as_json: Json = False,
    ) -> None:
        """Show the events that made a row, with who caused each, and what each changed in it.

        The feed is looked through from its beginning, some 300,000 events a second. What is known of a person who was
        erased is not shown. With --json a line for each event. Exit code 1 when there is no such row.
        """
        request = {"view": domain.histories.get(aggregate, aggregate), "key": key, "until_position": at or 0}
        request |= {"last_only": at is not None}
        errors = new_console(stderr=True)
        row: Fields | None = None
        count = 0
        try:
            with connect(projector_address) as channel, errors.status("asking the projector") as status:

                def tell(position: int, until: int) -> None:
                    status.update(f"looked through {position:,} of {until:,} events")

                for change in changes(domain.projections, channel, request, tell):
                    typer.echo(json.dumps(change) if as_json else as_text(change, row, whole=at is not None))
                    row, count = change.get("row"), count + 1
        except grpc.RpcError as error:
            fail(f"the projector does not tell: {in_words(error)}")
        if not count:
            fail(f"no event has changed a row with the key {key} there")


def _subjects(domain: Domain) -> str:
    return ", ".join([*domain.histories, "or the name of a view."]) if domain.histories else "The name of a view."


def changes(
    projections: ServiceDescriptor, projector: grpc.Channel, request: Fields, progress: Tell
) -> Iterator[Fields]:
    """Each a GetHistoryResponse with an event, as JSON has it. request: of GetHistory. Raises grpc.RpcError."""
    for response in stream(projections, "GetHistory", projector, request):
        if response.HasField("event"):
            yield as_fields(response)
        else:
            progress(response.position, response.until_position)


def as_text(change: Fields, before: Fields | None, *, whole: bool) -> str:
    """For people: the event, and what it changed in the row, or the row. before: the row before the event."""
    event = change["event"]
    said = event["event"]
    envelope = event.get("envelope", {})
    caused = {"by": "actor", "request": "request_id", "in answer to": "causation_id"}
    by = "".join(f"  {word} {envelope[name]}" for word, name in caused.items() if envelope.get(name))
    lines = [f"{event['position']}  {event['type']}  {said.get('recorded_at', '')}{by}"]
    if event["personal_data_erased"]:
        lines.append("    (it told of a person who was erased since)")
    if change["problem"]:
        return "\n".join([*lines, f"    the row cannot take it in: {change['problem']}"])
    row = change.get("row")
    if row is None:
        return "\n".join([*lines, "    the row was taken away"])
    if whole:
        return "\n".join([*lines, json.dumps(row, indent=2)])
    old, new = dict(_leaves(before or {})), dict(_leaves(row))
    for path in dict.fromkeys([*old, *new]):
        if old.get(path) != new.get(path):
            was = f"{old[path]} → " if path in old else ""
            lines.append(f"    {path}: {was}{new.get(path, 'nothing')}")
    return "\n".join(lines)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The scalar fields of a row, by their paths."""
    match value:
        case dict():
            for name, inner in value.items():
                if name != "@type":
                    yield from _leaves(inner, f"{path}.{name}" if path else name)
        case list():
            for number, inner in enumerate(value):
                yield from _leaves(inner, f"{path}[{number}]")
        case _:
            yield path, value
