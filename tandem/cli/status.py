"""How the services and the views are: asked over gRPC, shown as tables or as JSON."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.json_format import MessageToDict
from rich.console import Group, RenderableType
from rich.table import Table

from tandem.cli import calls
from tandem.cli.services import begin_to_ask

ASK_SECONDS = 3.0
"""A person waits for the answer; a service that takes longer is not well either."""
LATE_SECONDS = 60.0
"""A view that is further behind is not well. The alert TandemViewBehind has the same limit."""
_FENCED = "fenced"
_NO_ANSWER = "no answer"


@dataclass(frozen=True)
class View:
    """state: "running", "standby" or "failed"; lag_seconds: the age of the oldest event that it has not taken in.

    parked_keys: how many of its rows are parked.
    error: why it cannot go on, in whichever projector; empty while it can.
    differences: to the feed, that the projector has found since it started. audited_seconds: how long ago it had
    compared all of the view; None where it has not yet.
    """

    name: str
    state: str = "running"
    position: int = 0
    lag_events: int = 0
    lag_seconds: float = 0.0
    parked_keys: int = 0
    error: str = ""
    differences: int = 0
    audited_seconds: float | None = None

    @property
    def is_late(self) -> bool:
        return self.lag_seconds > LATE_SECONDS


@dataclass(frozen=True)
class Views:
    """The views by name, and the last position of the feed.

    unreachable: the stores that did not answer the projector, and why: what they alone know is as it last saw it.
    """

    feed_head: int
    views: tuple[View, ...]
    unreachable: Mapping[str, str] = field(default_factory=dict)


def list_projections(service: ServiceDescriptor, channel: grpc.Channel, timeout: float) -> Views:
    """Asks the projector behind the channel, by its service's descriptor: the domain has the contract.

    timeout: in seconds. Raises grpc.RpcError.
    """
    answer = calls.ask(service, "ListProjections", channel, timeout=timeout)
    unreachable = {it.store: it.problem for it in answer.unreachable}
    return Views(answer.feed_head, tuple(map(_view, answer.projections)), unreachable)


def _view(projection: Any) -> View:
    states = projection.DESCRIPTOR.fields_by_name["state"].enum_type.values_by_number
    return View(
        name=projection.view,
        state=states[projection.state].name.removeprefix("PROJECTION_STATE_").lower(),
        position=projection.position,
        lag_events=projection.lag_events,
        lag_seconds=projection.lag.ToTimedelta().total_seconds(),
        parked_keys=projection.parked_keys,
        error=projection.error,
        differences=projection.differences,
        audited_seconds=(time.time() - projection.audited_at.seconds if projection.HasField("audited_at") else None),
    )


def list_generations(
    service: ServiceDescriptor, channel: grpc.Channel, timeout: float
) -> tuple[int, dict[str, dict[str, Any]]]:
    """The feed's head, and each generation that is not served as JSON has it, by view. As `list_projections`."""
    answer = calls.ask(service, "ListGenerations", channel, timeout=timeout)
    return answer.feed_head, {it.view: _as_dict(it) for it in answer.generations}


def _as_dict(generation: Any) -> dict[str, Any]:
    """Numbers as numbers, and what is not set too: a program that reads it looks for nothing."""
    found = MessageToDict(generation, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    found["state"] = found["state"].removeprefix("GENERATION_STATE_").lower().replace("_", " ")
    for numbers in (found, found.get("comparison", {}), *found.get("comparison", {}).get("examples", [])):
        for name, value in numbers.items():
            if name.endswith(("position", "count")):
                numbers[name] = int(value)
    return found


@dataclass(frozen=True)
class ServiceHealth:
    """health: "serving", "not serving" or "unreachable"; problem: why it is unreachable, or empty."""

    name: str
    address: str
    health: str
    problem: str = ""


@dataclass(frozen=True)
class Report:
    """feed_head: None when the projector does not tell; `problem` then says why, unless it is unreachable.

    generations: those beside the ones that are served, as tandem.cli.generations has them.
    unreachable: as Views has it. reactions, cache: each reaction and each node of the cache as JSON has it.
    """

    services: tuple[ServiceHealth, ...]
    feed_head: int | None
    views: tuple[View, ...]
    problem: str = ""
    generations: tuple[Mapping[str, Any], ...] = ()
    unreachable: Mapping[str, str] = field(default_factory=dict)
    reactions: tuple[Mapping[str, Any], ...] = ()
    cache: tuple[Mapping[str, Any], ...] = ()

    @property
    def well(self) -> bool:
        """All services serve, every view goes on, in the projector that was asked or in another one, and in time, and
        the cache's nodes answer.
        """
        return (
            all(it.health == "serving" for it in self.services)
            and self.feed_head is not None
            and not self.problem
            and not self.unreachable
            and not any(it.error or it.is_late for it in self.views)
            and not any(it["problem"] for it in self.reactions)
            and all(map(is_node_well, self.cache))
        )


def ask(
    channels: Mapping[str, tuple[str, grpc.Channel]],
    projector: str,
    projections: ServiceDescriptor,
    timeout: float = ASK_SECONDS,
) -> Report:
    """Asks the services, all at once.

    channels: name of the service to its address and a channel to it. projector: the name of the one that has the
    service `projections`. timeout: in seconds, for their health and for the views.
    """
    asked = {name: begin_to_ask(channel, timeout) for name, (_, channel) in channels.items()}
    services = tuple(_health(name, address, asked[name]) for name, (address, _) in channels.items())
    if any(it.name == projector and it.health == "unreachable" for it in services):
        return Report(services, None, ())
    _, channel = channels[projector]
    try:
        known = list_projections(projections, channel, timeout)
    except grpc.RpcError as error:
        return Report(services, None, (), f"the projector does not tell how far the views are: {calls.in_words(error)}")
    return Report(services, known.feed_head, known.views, unreachable=known.unreachable)


def _health(name: str, address: str, serves: Callable[[], bool]) -> ServiceHealth:
    try:
        health = "serving" if serves() else "not serving"
    except grpc.RpcError as error:
        return ServiceHealth(name, address, "unreachable", calls.in_words(error))
    return ServiceHealth(name, address, health)


def observe(
    channels: Mapping[str, tuple[str, grpc.Channel]],
    projector: str,
    projections: ServiceDescriptor,
    timeout: float = ASK_SECONDS,
) -> Report:
    """As `ask`, with the views' other generations; none of a projector of a release before."""
    report = ask(channels, projector, projections, timeout)
    if report.feed_head is None:
        return report
    try:
        _, found = list_generations(projections, channels[projector][1], timeout)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            return report
        problem = f"the projector does not tell the views' other generations: {calls.in_words(error)}"
        return replace(report, problem=problem)
    return replace(report, generations=tuple(found.values()))


def with_reactions(
    report: Report,
    channels: Mapping[str, tuple[str, grpc.Channel]],
    command_server: str,
    service: ServiceDescriptor,
    timeout: float = ASK_SECONDS,
) -> Report:
    """The report, with the reactions as that command server tells them; none of one of a release before.

    service: as tandem.services.v1.ReactionService is.
    """
    if any(it.name == command_server and it.health == "unreachable" for it in report.services):
        return report
    failing = "the command server does not tell of its reactions"
    report, answer = _asked(report, service, "ListReactions", channels[command_server][1], failing, timeout)
    return report if answer is None else replace(report, reactions=tuple(map(calls.as_fields, answer.reactions)))


def with_cache(
    report: Report,
    channels: Mapping[str, tuple[str, grpc.Channel]],
    projector: str,
    service: ServiceDescriptor,
    timeout: float = ASK_SECONDS,
) -> Report:
    """The report, with the nodes of the cache as that projector tells them; none of one of a release before.

    service: as tandem.services.v1.ProjectionService is.
    """
    if report.feed_head is None or "ListCacheNodes" not in service.methods_by_name:
        return report
    failing = "the projector does not tell how the cache is"
    report, answer = _asked(report, service, "ListCacheNodes", channels[projector][1], failing, timeout)
    return report if answer is None else replace(report, cache=tuple(map(calls.as_fields, answer.nodes)))


def _asked(  # noqa: PLR0917 - a call and its report
    report: Report, service: ServiceDescriptor, name: str, channel: grpc.Channel, failing: str, timeout: float
) -> tuple[Report, Any]:
    """What a call answers: None of a server of a release before, and where it fails, which the report says then."""
    try:
        return report, calls.ask(service, name, channel, timeout=timeout)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            return report, None
        return replace(report, problem=report.problem or f"{failing}: {calls.in_words(error)}"), None


def observe_all(
    channels: Mapping[str, tuple[str, grpc.Channel]],
    projector: str,
    command_server: str,
    projections: ServiceDescriptor,
    reactions: ServiceDescriptor,
) -> Report:
    """As `observe`, with the cache's nodes and the reactions."""
    report = with_cache(observe(channels, projector, projections), channels, projector, projections)
    return with_reactions(report, channels, command_server, reactions)


def state_of_node(node: Mapping[str, Any]) -> str:
    """In a word or two. node: as JSON has it.

    The projector finds out at the next write that a node is gone; one that does not answer now is none that serves.
    """
    state: str = node["state"].removeprefix("CACHE_NODE_STATE_").lower()
    return _NO_ANSWER if node["problem"] and state != _FENCED else state


def is_node_well(node: Mapping[str, Any]) -> bool:
    """Whether it answers, and readers read there or may. node: as JSON has it."""
    return state_of_node(node) not in {_FENCED, _NO_ANSWER}


def as_fields(report: Report) -> dict[str, Any]:
    """The report for programs."""
    return {
        "well": report.well,
        "feed_head": report.feed_head,
        "services": [vars(it) for it in report.services],
        "views": [vars(it) for it in report.views],
        "problem": report.problem,
        "generations": report.generations,
        "unreachable": dict(report.unreachable),
        "reactions": report.reactions,
        "cache": report.cache,
    }


def as_tables(report: Report) -> RenderableType:
    """The report for people; what is wrong is said in sentences below the tables."""
    services = Table("service", "address", "health", box=None, pad_edge=False)
    for service in report.services:
        style = "green" if service.health == "serving" else "red"
        services.add_row(service.name, service.address, f"[{style}]{service.health}[/]")
    parts: list[RenderableType] = [services]
    if report.feed_head is not None:
        views = Table("view", "state", box=None, pad_edge=False)
        for column in ("position", "events behind", "seconds behind", "rows parked", "differences", "compared"):
            views.add_column(column, justify="right")
        for view in report.views:
            style = "red" if view.error else "green"
            lag = f"[yellow]{view.lag_seconds:.3f}[/]" if view.is_late else f"{view.lag_seconds:.3f}"
            parked = f"[yellow]{view.parked_keys:,}[/]" if view.parked_keys else "0"
            progress = (f"{view.position:,}", f"{view.lag_events:,}", lag, parked, f"{view.differences:,}", _ago(view))
            views.add_row(view.name, f"[{style}]{view.state}[/]", *progress)
        parts += ["", views, "", f"feed head: {report.feed_head:,}"]
    if report.generations:
        others = Table("other generation of", "state", box=None, pad_edge=False)
        others.add_column("position", justify="right")
        for it in report.generations:
            others.add_row(it["view"], it["state"], f"{it['position']:,}")
        parts += ["", others]
    if report.reactions:
        parts += ["", reactions_table(report.reactions)]
    return Group(*parts)


def reactions_table(reactions: Iterable[Mapping[str, Any]]) -> Table:
    """reactions: each as JSON has it."""
    table = Table("reaction", box=None, pad_edge=False)
    for column in ("position", "seconds behind", "to do", "seconds overdue", "parked"):
        table.add_column(column, justify="right")
    for it in reactions:
        parked = int(it["parked_tasks"])
        behind, overdue = (float(it.get(name, "0s").removesuffix("s")) for name in ("behind", "overdue"))
        table.add_row(
            f"[red]{it['name']}[/]" if it["problem"] else it["name"],
            f"{int(it['position']):,}",
            f"{behind:.3f}",
            f"{int(it['waiting_tasks']):,}",
            f"{overdue:.3f}",
            f"[yellow]{parked:,}[/]" if parked else "0",
        )
    return table


def _ago(view: View) -> str:
    return "not yet" if view.audited_seconds is None else f"{max(0, view.audited_seconds):.0f} s ago"


def problems(report: Report) -> list[str]:
    """What is wrong, a sentence each; empty when all is well."""
    found = [
        f"{it.name} cannot be reached at {it.address} ({it.problem}). Is it running there?"
        for it in report.services
        if it.health == "unreachable"
    ]
    found += [
        f"{it.name} does not serve: a store of its is away or not migrated; its log says more."
        for it in report.services
        if it.health == "not serving"
    ]
    if report.problem:
        found.append(report.problem)
    found += [f"the views are as the projector last saw them: {it}" for it in report.unreachable.values()]
    found += [f"{it.name} cannot go on: {it.error}" for it in report.views if it.error]
    found += [_late(it) for it in report.views if it.is_late and not it.error]
    for it in report.reactions:
        if it["problem"]:
            found.append(f"{it['name']} cannot go on: {it['problem']}")
        if int(it["parked_tasks"]):
            found.append(
                f"{it['name']} has parked {it['parked_tasks']}: `tandem reactions parked {it['name']}` says why"
            )
    for node in report.cache:
        if not is_node_well(node):
            why = f": {node['problem']}" if node["problem"] else ""
            found.append(f"the cache's node {node['node']} ({state_of_node(node)}){why}")
    return found + [
        f"{it.name} has {it.parked_keys} rows that are parked: `tandem parked list {it.name}` says why"
        for it in report.views
        if it.parked_keys
    ]


def _late(view: View) -> str:
    said = f"{view.name} is {view.lag_seconds:.0f} s behind, by {view.lag_events:,} events"
    if view.state != "standby":
        return said
    return f"{said}, and the projector that was asked is on standby for it: does another one follow it?"
