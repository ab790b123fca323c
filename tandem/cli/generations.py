"""`tandem rebuild` and `tandem generations`: views made anew beside those that are served."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import grpc
import typer
from google.protobuf.descriptor import ServiceDescriptor
from rich.live import Live
from rich.table import Table

from tandem.cli import calls
from tandem.cli.access import connect
from tandem.cli.output import Json, fail, new_console, print_json, report
from tandem.cli.status import list_generations, list_projections

_ASK_SECONDS = 10.0
_LOOK_SECONDS = 0.5
# How long nobody may answer meanwhile, as while a standby takes the views over.
_AWAY_SECONDS = 60.0
_AWAY = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
# Without a terminal the lines go to a log.
_PLAIN_SECONDS = 10.0
# The rate is of the last so many looks.
_LOOKS = 20

_Views = Annotated[list[str], typer.Argument(metavar="VIEW…", help="Names of views, as `tandem status` shows them.")]
_MaybeViews = Annotated[
    list[str] | None, typer.Argument(metavar="[VIEW…]", help="Names of views, as `tandem status` shows them.")
]


class Refused(Exception):
    """What is asked for is not done; the message says why."""


class Operator:
    """Asks a projector."""

    def __init__(self, service: ServiceDescriptor, channel: grpc.Channel) -> None:
        self._service = service
        self._channel = channel

    def views(self) -> list[str]:
        """Raises grpc.RpcError, as do the others."""
        return [it.name for it in list_projections(self._service, self._channel, _ASK_SECONDS).views]

    def generations(self) -> tuple[int, dict[str, dict[str, Any]]]:
        """As `list_generations`."""
        return list_generations(self._service, self._channel, _ASK_SECONDS)

    def call(self, rpc: str, **fields: Any) -> Any:
        return calls.ask(self._service, rpc, self._channel, fields, timeout=_ASK_SECONDS)


def add_commands(app: typer.Typer, service: ServiceDescriptor, address: str) -> None:
    """service: the domain's ProjectionService. address: where it is, unless a caller says otherwise."""
    projector = Annotated[str, typer.Option("--projector-address", help="Address of a projector, any of them.")]

    @contextmanager
    def asking(at: str) -> Iterator[Operator]:
        with connect(at) as channel:
            try:
                yield Operator(service, channel)
            except Refused as error:
                fail(str(error))
            except grpc.RpcError as error:
                fail(f"{at}: {calls.in_words(error)}")

    @app.command()
    def rebuild(
        views: _MaybeViews = None,
        *,
        all_views: Annotated[bool, typer.Option("--all", help="All views.")] = False,
        switch: Annotated[
            bool, typer.Option("--switch", help="Serve each as soon as it is compared, whatever the comparison says.")
        ] = False,
        rate: Annotated[int, typer.Option(min=0, help="Events a second at most, of each; 0: no limit of its own.")] = 0,
        wait: Annotated[bool, typer.Option(help="Show the progress until all are ready.")] = True,
        as_json: Json = False,
        projector_address: projector = address,
    ) -> None:
        """Make views anew from the feed, beside those that are served, and compare them.

        What is served goes on. When a view is ready, `tandem generations switch` serves it, and `tandem generations
        back` the one before. Ctrl-C ends the progress and not the rebuild, which `tandem generations drop` does.
        """
        with asking(projector_address) as operator:
            wanted = operator.views() if all_views else list(dict.fromkeys(views or ()))
            refuse_wrong(operator, wanted)
            for view in wanted:
                operator.call("StartRebuild", view=view, max_events_per_second=rate, switch_when_ready=switch)
            if wait:
                end = {"kept"} if switch else {"ready"}
                found = _watch(
                    operator, wanted, lambda all_of: all(_is_at(all_of, it, end) for it in wanted), as_json=as_json
                )
                _show({it: found[it] for it in wanted if it in found}, as_json=as_json)

    generations = typer.Typer(no_args_is_help=True, help="Generations of views beside those that are served.")
    app.add_typer(generations, name="generations")

    @generations.command("list")
    def show(*, as_json: Json = False, projector_address: projector = address) -> None:
        """Show them, and how they differ from what is served."""
        with asking(projector_address) as operator:
            _show(operator.generations()[1], as_json=as_json)

    @generations.command("switch")
    def switch_to(views: _Views, *, as_json: Json = False, projector_address: projector = address) -> None:
        """Serve other generations, which are ready. The ones before are kept and followed on."""
        with asking(projector_address) as operator:
            serve(operator, views, as_json=as_json)

    @generations.command()
    def back(views: _Views, *, as_json: Json = False, projector_address: projector = address) -> None:
        """Serve the generations before once more."""
        with asking(projector_address) as operator:
            serve(operator, views, "kept", "ready", as_json=as_json)

    @generations.command("drop")
    def drop_other(views: _Views, *, as_json: Json = False, projector_address: projector = address) -> None:
        """Drop other generations, whatever is being done with them; or views of another version of the program."""
        with asking(projector_address) as operator:
            for view in views:
                operator.call("DropGeneration", view=view)
            _watch(operator, views, lambda found: not found.keys() & set(views), as_json=True)
            _say_done("dropped", views, as_json=as_json)


def refuse_wrong(operator: Operator, wanted: Sequence[str]) -> None:
    """Names all that is wrong, before anything is begun."""
    if not wanted:
        raise Refused("name the views, or say --all")
    known, (_, there) = operator.views(), operator.generations()
    problems = [f"{view} is no view; there are {', '.join(known)}" for view in wanted if view not in known]
    problems += [
        f"{view} has another generation already ({there[view]['state']}): `tandem generations drop {view}` drops it"
        for view in wanted
        if view in there
    ]
    if problems:
        raise Refused("; ".join(problems))


def serve(
    operator: Operator, views: Sequence[str], now: str = "ready", then: str = "kept", *, as_json: bool = False
) -> None:
    """Serves other generations, once it can be done. now, then: the state that they are in, and will be in.

    Raises Refused and grpc.RpcError.
    """
    _, there = operator.generations()
    states = {view: there[view]["state"] if view in there else "not there" for view in views}
    if wrong := [f"the other generation of {view} is {state}" for view, state in states.items() if state != now]:
        raise Refused(f"{'; '.join(wrong)}: it must be {now}")
    for view in views:
        operator.call("SwitchGeneration", view=view)
    _watch(operator, views, lambda found: all(_is_at(found, view, {then}) for view in views), as_json=True)
    _say_done("served now", views, as_json=as_json)


def _say_done(what: str, views: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        print_json({what.replace(" ", "_"): list(views)})
    else:
        typer.echo(f"{what}: {', '.join(views)}")


def _is_at(found: Mapping[str, Mapping[str, Any]], view: str, states: Collection[str]) -> bool:
    """Somebody may have dropped it."""
    return view not in found or found[view]["state"] in states


def _watch(
    operator: Operator,
    views: Sequence[str],
    is_over: Callable[[Mapping[str, dict[str, Any]]], bool],
    *,
    as_json: bool,
) -> dict[str, dict[str, Any]]:
    """Until it is over; shows the progress meanwhile, or, if it is to print JSON, why views wait. Returns what is there
    then.
    """
    console, looks = new_console(stderr=as_json), [_look(operator)]
    shown_at, said = 0.0, dict.fromkeys(views, "")
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while not is_over(looks[-1][2]):
            if as_json:
                for view, it in looks[-1][2].items():
                    if said.get(view, it["error"]) != it["error"]:
                        said[view] = it["error"]
                        report(f"{view} waits: {it['error']}" if it["error"] else f"{view} goes on")
            elif console.is_terminal:
                live.update(progress_table(looks), refresh=True)
            elif time.monotonic() - shown_at > _PLAIN_SECONDS:
                console.print(progress_table(looks))
                shown_at = time.monotonic()
            time.sleep(_LOOK_SECONDS)
            looks = [*looks[1 - _LOOKS :], _look(operator)]
    return looks[-1][2]


def _look(operator: Operator) -> "Look":
    """A rebuild takes hours: a projector that starts anew meanwhile does not end the progress. Raises grpc.RpcError."""
    until = time.monotonic() + _AWAY_SECONDS
    while True:
        try:
            return time.monotonic(), *operator.generations()
        except grpc.RpcError as error:
            if error.code() not in _AWAY or time.monotonic() > until:
                raise
            time.sleep(_LOOK_SECONDS)


Look = tuple[float, int, dict[str, dict[str, Any]]]
"""When it was, the feed's head, and the generations."""


def progress_table(looks: Sequence[Look]) -> Table:
    """looks: the last ones, in order."""
    table = _table("view", "state", "done", "events/s", "time left", "why it waits")
    (began, _, first), (now, head, last) = looks[0], looks[-1]
    for view, it in last.items():
        gained = it["position"] - first.get(view, it)["position"]
        rate = gained / (now - began) if now > began else 0.0
        missing = max(0, it["served_position"] - it["position"])
        done = f"{it['position'] / head:.0%}" if head else ""
        left = _duration(missing / rate) if rate and missing else ""
        table.add_row(view, it["state"], done, f"{rate:,.0f}", left, it["error"])
    return table


def _show(found: Mapping[str, Mapping[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print_json(list(found.values()))
        return
    if not found:
        typer.echo("no view has another generation")
        return
    table = _table("view", "state", "position", "served at", "rows parked", "asked for")
    for it in found.values():
        asked = "switch" if it["switch_asked"] else "drop" if it["drop_asked"] else ""
        positions = f"{it['position']:,}", f"{it['served_position']:,}"
        table.add_row(it["view"], it["state"], *positions, f"{it['parked_keys']:,}", asked)
    new_console().print(table)
    for it in found.values():
        if "comparison" in it:
            typer.echo(f"{it['view']}: {in_words(it['comparison'])}")
        if it["parked_keys"]:
            why = "" if it["state"] == "other version" else f": tandem parked list {it['view']}@other"
            typer.echo(f"{it['view']}: {it['parked_keys']:,} rows parked{why}")
        if it["error"]:
            typer.echo(f"{it['view']} waits: {it['error']}", err=True)
        for example in it.get("comparison", {}).get("examples", ()):
            served, other = example["served_position"] or "no row", example["other_position"] or "no row"
            typer.echo(f"{it['view']} {example['key']}: served {served}, other {other}")


def in_words(comparison: Mapping[str, Any]) -> str:
    counts = {name: comparison[f"{name}_count"] for name in ("changed", "missing", "added")}
    differing = [f"{count:,} {name}" for name, count in counts.items() if count]
    return f"{comparison['row_count']:,} rows, " + (", ".join(differing) or "all the same")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def _table(*columns: str) -> Table:
    return Table(*columns, box=None, pad_edge=False)
