"""Views made anew from the feed, against `eventsourcing` reading and decoding as many events and writing nothing.

The projector is stopped, the views are emptied, all of them or one, and it is started again. The clock runs from the
first position that all of these have to the last: what it takes to start a process is not in it. The positions are
read out of the read database, so that nobody asks the projector anything meanwhile.

The library reads in sections of its notification log, each as long as it is by default.

And apart (`run_beside`): what a rebuild by `tandem rebuild`, beside the views that are served, takes from those who
write meanwhile.
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
# The one that readers ask for most, whose rows are made of orders, customers and products.
VIEW = "order_details"
ALONE = f"Tandem, {VIEW} alone"
LOG = "eventsourcing, notification log"

NONE = "no rebuild"
ONE_VIEW = "one view made anew"
ALL_VIEWS = "all views made anew"

# For a rebuild that lasts as long as a turn.
_MANY_ORDERS = 100_000
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
                ALONE: lambda: rebuild(stack, events, [VIEW]),
            },
            # A turn of all three takes as long as a dozen of others.
            max(1, plan.rounds - 1),
            say=plan.say,
        )
    finally:
        world.databases.drop(url)
    return [Result(f"Rebuild from {events} events", samples, bars=bars(samples))]


def run_beside(world: World, plan: Plan) -> list[Result]:
    """PlaceOrder with the projector following, while other generations of views are filled.

    Of many events: a rebuild must take longer than a turn.
    """
    world.place_orders(_MANY_ORDERS - world.orders)
    orders = Tandem(world, plan)
    samples = alternate(
        {
            NONE: orders.place_orders,
            ONE_VIEW: lambda: while_made_anew(world, orders, ["order_details"]),
            ALL_VIEWS: lambda: while_made_anew(world, orders, list(VIEWS)),
        },
        plan.rounds,
    )
    return [Result(f"PlaceOrder beside a rebuild, {plan.in_flight} in flight", samples)]


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
    world.wait_for_followers()
    return sample


def bars(samples: dict[str, list[Sample]]) -> Sequence[Bar]:
    return [
        at_least("all views, times reading the notification log", ratios(samples, TANDEM, LOG), 0.6),
        at_least("one view alone, times reading the notification log", ratios(samples, ALONE, LOG), 1.0),
    ]


def feed_head(stack: Stack) -> int:
    return int(stack.projections.ListProjections(ListProjectionsRequest(), timeout=30).feed_head)


def rebuild(stack: Stack, events: int, views: Sequence[str] = tuple(VIEWS)) -> Sample:
    """A rate of events. AssertionError when a view does not come to the head, or not in good order."""
    code = stack.projector.stop()
    assert code == 0, f"the projector ended with exit code {code}:\n{stack.projector.log_tail()}"
    with psycopg.connect(stack.read_url, autocommit=True) as connection:
        connection.execute(f"TRUNCATE {', '.join(VIEWS[it].fullname for it in views)}".encode())
        connection.execute(f"DELETE FROM {change.fullname} WHERE view = ANY(%s)", [list(views)])
        connection.execute(
            f"UPDATE {projection_table.fullname} SET position = 0, mark = 0, cache_epochs = NULL WHERE view = ANY(%s)",
            [list(views)],
        )
        stack.projector.launch()
        process = psutil.Process(stack.projector.pid)
        first = wait_for_position(connection, views, 1)
        started, cpu = time.perf_counter(), cpu_seconds([process])
        last = wait_for_position(connection, views, events)
        seconds, cpu = time.perf_counter() - started, cpu_seconds([process]) - cpu
    assert last == events, f"the feed has grown from {events} to {last} meanwhile"
    stack.projector.wait_until_serving()
    check_running(stack, events)
    # Events in a stream are no calls: there is no latency of one.
    return Sample(rate=(last - first) / seconds, p50=0.0, p99=0.0, cpu={"server": cpu / (last - first)})


def read(url: str, events: int, section_size: int) -> Sample:
    found = eventsourced.run("read", url, events=events, section_size=section_size)
    return Sample(found.operations / found.seconds, p50=0.0, p99=0.0, cpu={"server": found.cpu_seconds / events})


def wait_for_position(connection: "psycopg.Connection[tuple[object, ...]]", views: Sequence[str], position: int) -> int:
    """Until these views are there at least; returns where the last of them is."""
    deadline = time.monotonic() + _PATIENCE
    while (slowest := min(positions(connection, views))) < position:
        assert time.monotonic() < deadline, f"not within {_PATIENCE:g} s: position {position}; it is {slowest}"
        time.sleep(_LOOK_SECONDS)
    return slowest


def positions(connection: "psycopg.Connection[tuple[object, ...]]", views: Sequence[str]) -> list[int]:
    table = projection_table.fullname
    rows = connection.execute(f"SELECT position FROM {table} WHERE view = ANY(%s)", [list(views)]).fetchall()
    return [int(str(position)) for [position] in rows]


def check_running(stack: Stack, events: int) -> None:
    """The projector itself says that all views run and are at the head."""
    answer = stack.projections.ListProjections(ListProjectionsRequest(), timeout=30)
    running = ProjectionState.PROJECTION_STATE_RUNNING
    wrong = [it for it in answer.projections if it.state != running or it.position != events]
    assert not wrong, f"after the rebuild: {wrong}"
