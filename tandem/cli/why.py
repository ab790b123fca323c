"""`tandem why`: what became of a write, by its token, its request_id, or the key of a row that it changed."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import grpc
import typer
from google.protobuf.descriptor import ServiceDescriptor
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tandem.cli.access import connect
from tandem.cli.calls import Fields, as_fields, ask, in_words
from tandem.cli.domain import Domain
from tandem.cli.local_stack import DEFAULT_PORTS
from tandem.cli.output import Json, fail, new_console, print_json
from tandem.feed.token import MalformedToken, decode_token
from tandem.runtime.checker import is_uuid

# A person waits for the answer.
_ASK_SECONDS = 10.0


@dataclass(frozen=True)
class Found:
    """asked_for: "consistency_token", "position", "request_id" or "key".

    receipt: a GetReceiptResponse, explained: an ExplainResponse, as JSON has them; None for none. problem: why nothing
    more is known; empty where all is.
    """

    asked_for: str
    receipt: Fields | None = None
    explained: Fields | None = None
    problem: str = ""


def add_to(app: typer.Typer, domain: Domain) -> None:
    @app.command()
    def why(
        what: Annotated[str, typer.Argument(help="A consistency token, a request_id, a row's key, or a position.")],
        *,
        command_address: Annotated[
            str, typer.Option(help="Address of the command server.")
        ] = f"127.0.0.1:{DEFAULT_PORTS.command}",
        projector_address: Annotated[
            str, typer.Option(help="Address of the projector.")
        ] = f"127.0.0.1:{DEFAULT_PORTS.projector}",
        as_json: Json = False,
    ) -> None:
        """Show what became of a write: when it was stored and by whom, and in which views it is, or what it waits for.

        Of a row's key, the last event that changed it is shown. Exit code 1 when nothing is known of it.
        """
        with (
            connect(command_address) as commands,
            connect(projector_address) as projector,
        ):
            found = find(domain, commands, projector, what)
        if as_json:
            print_json(vars(found))
        else:
            new_console().print(as_text(found))
        if found.problem:
            fail(found.problem)


def find(domain: Domain, commands: grpc.Channel, projector: grpc.Channel, what: str) -> Found:
    """Asks the command server for a request_id's receipt, and the projector what became of its event."""
    explain = partial(_explain, domain.projections, projector)
    if _is_token(what) or what.isdecimal():
        asked_for = "position" if what.isdecimal() else "consistency_token"
        return explain(asked_for, {asked_for: min(int(what), 2**63) if what.isdecimal() else what})
    if not is_uuid(what):
        return Found("", problem=f"{what} is no token, no position and no UUID")
    try:
        response = ask(domain.receipts, "GetReceipt", commands, {"request_id": what}, timeout=_ASK_SECONDS)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            return Found("request_id", problem=f"the command server does not tell: {in_words(error)}")
        return _by_key(explain("key", {"key": what}), what)
    receipt = as_fields(response)
    if response.HasField("refusal"):
        return Found("request_id", receipt)
    return explain("request_id", {"position": response.position}, receipt)


def _is_token(text: str) -> bool:
    try:
        decode_token(text)
    except MalformedToken:
        return False
    return True


def _by_key(found: Found, key: str) -> Found:
    if "NOT_FOUND" not in found.problem:
        return found
    return Found("", problem=f"{key} is no request_id that is remembered, and no view has a row with this key")


def _explain(
    projections: ServiceDescriptor, projector: grpc.Channel, asked_for: str, of: Fields, receipt: Fields | None = None
) -> Found:
    try:
        explained = as_fields(ask(projections, "Explain", projector, of, timeout=_ASK_SECONDS))
    except grpc.RpcError as error:
        return Found(asked_for, receipt, problem=f"the projector does not tell: {in_words(error)}")
    return Found(asked_for, receipt, explained)


def as_text(found: Found) -> RenderableType:
    """For people."""
    parts: list[RenderableType] = []
    if (receipt := found.receipt) is not None:
        parts.append(_of_receipt(receipt))
    if (explained := found.explained) is not None:
        event = explained["event"]
        parts.append(
            f"event {event['position']} {event['type']}, stored at {explained.get('stored_at', 'an unknown time')}"
            f"{_by(event.get('envelope'))}; the feed is at {explained['feed_head']}"
        )
        parts += ["", _views(explained["views"])]
        parts += [_parked(it) for view in explained["views"] for it in view["parked_keys"]]
        parts += [f"it is not known whether it is in the views: {it['problem']}" for it in explained["unreachable"]]
    return Group(*parts)


def _of_receipt(receipt: Fields) -> str:
    if (refusal := receipt.get("refusal")) is not None:
        return (
            f"refused at {receipt['stored_at']} with {refusal['code']} ({refusal['reason']}): {refusal['message']}\n"
            "Nothing was done, and the same request_id is refused for as long as it is remembered."
        )
    state = "begun, with steps left" if receipt["unfinished"] else "done"
    return f"{state} at {receipt['stored_at']}: {receipt['aggregate_id']} has version {receipt['version']}"


def _by(envelope: Fields | None) -> str:
    if envelope is None:
        return ""
    said = {"by": "actor", "request": "request_id", "in answer to": "causation_id", "part of": "correlation_id"}
    return "".join(f", {word} {envelope[name]}" for word, name in said.items() if envelope[name])


def _views(views: list[Any]) -> Table:
    """Those that the event concerns, and those that do not have it yet."""
    table = Table("view", "rows", "taken in", "announced by", "cache", "waits for", box=None, pad_edge=False)
    for it in views:
        if not it["keys"] and it["included"]:
            continue
        stops = f"no, rows parked: {len(it['parked_keys'])}" if it["parked_keys"] else f"no, is at {it['position']}"
        taken_in = it.get("changed_at", "yes") if it["included"] else stops
        cached = it["cached"].removeprefix("CACHED_STATE_").lower()
        table.add_row(
            it["view"],
            str(len(it["keys"])),
            taken_in,
            it.get("announced_by", ""),
            "" if cached == "unspecified" else cached,
            it["waiting_for"],
        )
    return table


def _parked(it: Fields) -> Text:
    """it: a ParkedKey. A text has no markup: an error may hold brackets."""
    return Text(
        f"\n{it['view']} {it['key']} is parked since event {it['since']}, {it['parked_at']};"
        f" {it['waiting_events']} events wait for a redrive. Mend the cause, then:"
        f" tandem parked redrive {it['view']} {it['key']}\n    {it['error']}"
    )
