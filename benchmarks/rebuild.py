"""All views made anew from the feed, against `eventsourcing` reading and decoding as many events and writing nothing.

The projector is stopped, the views are emptied, and it is started again. The clock
runs from the first position that all views have to the last: what it takes to start a process is not in it. The
positions are read out of the read database, so that nobody asks the projector anything meanwhile.

The library reads in two ways: in sections of its notification log, each as long as it is by default, and as it feeds
its own projections, by a subscription. The bars are against the first; the second is beside it.

And what a rebuild by `tandem rebuild`, beside the views that are served, takes from those who write meanwhile.
"""

import time
from collections.abc import Sequence

import psutil
import psycopg

from benchmarks.contenders import eventsourced
from benchmarks.measure import Bar, Result, Sample, alternate, at_least, ratios
from benchmarks.plan import Plan
from benchmarks.processor import cpu_seconds
from benchmarks.world import World
from benchmarks.writes import Tandem
from commerce.projection.v1.projection_service_pb2 import (
    DropGenerationRequest,
    GenerationState,
    ListGenerationsRequest,
    ListProjectionsRequest,
    ProjectionState,
    StartRebuildRequest,
)
from shop.views import VIEWS
from tandem.read_store.tables import change
from tandem.read_store.tables import projection as projection_table
from tandem.testing.stack import wait_until
from tests.support.stack import Stack

TANDEM = "Tandem, all views"
LOG = "eventsourcing, notification log"
SUBSCRIPTION = "eventsourcing, subscription"
BAR, BEYOND = 0.6, 1.0

ALONE = "no rebuild"
ONE_VIEW = "one view made anew"
ALL_VIEWS = "all views made anew"

# Between two looks at the positions; a rebuild takes seconds.
_LOOK_SECONDS = 0.01
_PATIENCE = 900.0


def run(world: World, plan: Plan) -> list[Result]:
    """Before the world has grown: the views are made of all of its events, several times."""
    stack = world.stack
    events = feed_head(stack)
    plan.say(f"rebuild: {events} events")
    url = world.databases.create()
    try:
        eventsourced.run("fill", url, events=events)
        samples = alternate(
            {
                TANDEM: lambda: rebuild(stack, events),
                LOG: lambda: read(url, events, eventsourced.DEFAULT_SECTION_SIZE),
                SUBSCRIPTION: lambda: read(url, events, 0),
            },
            plan.rounds,
        )
    finally:
        world.databases.drop(url)
    return [Result(f"Rebuild from {events} events", samples, bars=bars(samples)), beside_writes(world, plan)]


def beside_writes(world: World, plan: Plan) -> Result:
    """PlaceOrder with the projector following, while other generations of views are filled."""
    orders = Tandem(world, plan)
    samples = alternate(
        {
            ALONE: orders.place_orders,
            ONE_VIEW: lambda: while_made_anew(world, orders, ["order_details"]),
            ALL_VIEWS: lambda: while_made_anew(world, orders, list(VIEWS)),
        },
        plan.rounds,
    )
    return Result(f"PlaceOrder beside a rebuild, {plan.in_flight} in flight", samples)


def while_made_anew(world: World, orders: Tandem, views: Sequence[str]) -> Sample:
    """AssertionError when it was over before the turn was."""
    operator = world.stack.projections
    filling = GenerationState.GENERATION_STATE_FILLING

    def generations(*states: int) -> int:
        found = operator.ListGenerations(ListGenerationsRequest(), timeout=30).generations
        return sum(it.state in states or not states for it in found)

    for view in views:
        operator.StartRebuild(StartRebuildRequest(view=view), timeout=30)
    wait_until(lambda: generations(filling) == len(views), f"{views} are filled")
    sample = orders.place_orders_beside()
    assert generations(filling) == len(views), "the rebuild was over before the turn"
    for view in views:
        operator.DropGeneration(DropGenerationRequest(view=view), timeout=30)
    wait_until(lambda: generations() == 0, "no view has another generation")
    world.wait_for_views()
    return sample


def bars(samples: dict[str, list[Sample]]) -> Sequence[Bar]:
    found = ratios(samples, TANDEM, LOG)
    return [
        at_least("rebuild of all views, times reading the notification log", found, BAR),
        at_least("beyond: rebuild of all views, times reading the notification log", found, BEYOND),
    ]


def feed_head(stack: Stack) -> int:
    return int(stack.projections.ListProjections(ListProjectionsRequest(), timeout=30).feed_head)


def rebuild(stack: Stack, events: int) -> Sample:
    """A rate of events. AssertionError when a view does not come to the head, or not in good order."""
    code = stack.projector.stop()
    assert code == 0, f"the projector ended with exit code {code}:\n{stack.projector.log_tail()}"
    with psycopg.connect(stack.read_url, autocommit=True) as connection:
        tables = ", ".join(it.fullname for it in (change, *VIEWS.values()))
        connection.execute(f"TRUNCATE {tables}".encode())
        connection.execute(f"UPDATE {projection_table.fullname} SET position = 0, mark = 0, cache_epochs = NULL")
        stack.projector.launch()
        process = psutil.Process(stack.projector.pid)
        first = wait_for_position(connection, 1)
        started, cpu = time.perf_counter(), cpu_seconds([process])
        last = wait_for_position(connection, events)
        seconds, cpu = time.perf_counter() - started, cpu_seconds([process]) - cpu
    assert last == events, f"the feed has grown from {events} to {last} meanwhile"
    stack.projector.wait_until_serving()
    check_running(stack, events)
    # Events in a stream are no calls: there is no latency of one.
    return Sample(rate=(last - first) / seconds, p50=0.0, p99=0.0, cpu={"server": cpu / (last - first)})


def read(url: str, events: int, section_size: int) -> Sample:
    found = eventsourced.run("read", url, events=events, section_size=section_size)
    return Sample(found.operations / found.seconds, p50=0.0, p99=0.0, cpu={"server": found.cpu_seconds / events})


def wait_for_position(connection: "psycopg.Connection[tuple[object, ...]]", position: int) -> int:
    """Until all views are there at least; returns where the last of them is."""
    deadline = time.monotonic() + _PATIENCE
    while (slowest := min(positions(connection).values())) < position:
        assert time.monotonic() < deadline, f"not within {_PATIENCE:g} s: position {position}; it is {slowest}"
        time.sleep(_LOOK_SECONDS)
    return slowest


def positions(connection: "psycopg.Connection[tuple[object, ...]]") -> dict[str, int]:
    rows = connection.execute(f"SELECT view, position FROM {projection_table.fullname}").fetchall()
    return {str(view): int(str(position)) for view, position in rows}


def check_running(stack: Stack, events: int) -> None:
    """The projector itself says that all views run and are at the head."""
    answer = stack.projections.ListProjections(ListProjectionsRequest(), timeout=30)
    running = ProjectionState.PROJECTION_STATE_RUNNING
    wrong = [it for it in answer.projections if it.state != running or it.position != events]
    assert not wrong, f"after the rebuild: {wrong}"
