"""All profiles, one after the other: `python -m benchmarks.profiles`."""

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks import lag, rebuild, writes
from benchmarks.load.compiled import installed
from benchmarks.plan import Plan, progress
from benchmarks.profiles import marks, steps
from benchmarks.profiles.marks import Taken
from benchmarks.world import World, open_world
from tandem.cli.services import Service
from tandem.projection.settings import FollowSettings

# From a commit to the acknowledgement, at most: less than lies between two probes.
_BEFORE_SECONDS = 0.004


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profiles", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PROFILES, default=list(PROFILES), help="these alone")
    parser.add_argument("--orders", type=int, default=20_000, help="in the shop before (default: %(default)s)")
    arguments = parser.parse_args()
    if not installed():
        return 1
    say = progress()
    plan = Plan(orders=arguments.orders, rounds=1, seconds=4.0, warm_up=1.0, grown=arguments.orders, say=say)
    with (
        tempfile.TemporaryDirectory(prefix="tandem-profile-") as folder,
        open_world(Path(folder), plan.orders, say) as world,
    ):
        for name in arguments.only:
            say(f"{name} …")
            for line in PROFILES[name](world, plan):
                sys.stdout.write(line + "\n")
    return 0


def of_a_batch(world: World, plan: Plan) -> Iterator[str]:
    """Of a batch in a thread of the command server, under the load of the benchmark of writes."""
    server = world.stack.command_server
    tandem = writes.Tandem(world, plan)
    with _marked(world, server) as file:
        sample = tandem.place_orders_alone()
        found = marks.read(file)
    batches, taken = marks.in_the_middle(found, steps.COMMITS)
    size = tandem.batch_sizes[-1]
    busy = sum(sample.cpu.values()) * sample.rate
    spent = ", ".join(f"{who} {1e6 * seconds:.0f}" for who, seconds in sample.cpu.items())
    yield ""
    yield f"PlaceOrder, {plan.in_flight} in flight: {sample.rate:,.0f} orders/s, in batches of {size:.0f}"
    yield f"  processor time an order, microseconds: {spent}; in all {busy:.2f} processors' time"
    yield f"  {'a batch in one thread, milliseconds':40}{'all':>8}{'processor':>12}"
    for what, it in _in_order(server, taken):
        yield f"    {what:38}{1e3 * it.seconds / batches:>8.2f}{1e3 * it.cpu / batches:>12.2f}"


def of_one_order(world: World, plan: Plan) -> Iterator[str]:
    """The same, of orders that come one after the other: what a batch costs whatever is in it."""
    return of_a_batch(world, replace(plan, in_flight=1))


def of_an_event(world: World, _plan: Plan) -> Iterator[str]:
    """Of an event in a rebuild of all views."""
    stack = world.stack
    events = rebuild.feed_head(stack)
    with _marked(world, stack.projector) as file:
        sample = rebuild.rebuild(stack, events)
        found = marks.read(file)
    batches, taken = marks.in_the_middle(found, steps.STORES)
    # All batches but the last are full.
    each = batches * FollowSettings().batch_size
    yield ""
    yield f"Rebuild of {events:,} events: {sample.rate:,.0f} a second"
    yield f"  processor time an event: {1e6 * sample.cpu['server']:.0f} microseconds"
    yield f"  {'an event, microseconds; three at once':40}{'all':>8}{'processor':>12}"
    for what, it in _in_order(stack.projector, taken):
        yield f"    {what:38}{1e6 * it.seconds / each:>8.1f}{1e6 * it.cpu / each:>12.1f}"


def of_a_read(world: World, plan: Plan) -> Iterator[str]:
    """The way of a single order, from its acknowledgement to the answer of a read that waited for it."""
    stack = world.stack
    with (
        _marked(world, stack.command_server) as commands,
        _marked(world, stack.projector) as projector,
        _marked(world, stack.query_server) as queries,
    ):
        lag.probe(world, plan.warm_up)
        lags = lag.probe(world, plan.seconds)
        found = [mark for mark in marks.read(commands) if mark.what in (steps.COMMITS, steps.ANSWERS)]
        found = sorted([*found, *marks.read(projector), *marks.read(queries)])
    moments: defaultdict[str, list[float]] = defaultdict(list)
    for acknowledged, visible in zip(lags.acknowledged, lags.visible, strict=True):
        seen: dict[str, float] = {"(acknowledged)": 0.0, "(answered)": visible}
        for mark in found:
            after = mark.at - acknowledged
            if mark.what and -_BEFORE_SECONDS < after < visible:
                seen.setdefault(mark.what, after)
        for what, after in seen.items():
            moments[what].append(after)
    most = len(lags.visible)
    yield ""
    yield f"An order's way, of {most}: milliseconds after the acknowledgement, medians"
    last = 0.0
    for after, what in sorted((statistics.median(it), what) for what, it in moments.items() if len(it) > most / 2):
        yield f"    {what:38}{1e3 * after:>8.2f}{1e3 * (after - last):>+9.2f}"
        last = after
    yield f"  the same read once more: {1e3 * statistics.median(lags.again):.2f}"


PROFILES = {"writes": of_a_batch, "order": of_one_order, "rebuild": of_an_event, "lag": of_a_read}


@contextmanager
def _marked(world: World, service: Service) -> Iterator[Path]:
    """Runs it anew with marks, in the file that is yielded, and as it was before in the end."""
    file = world.folder / f"marks-{service.name}-{time.monotonic_ns()}"
    plain = service.command
    service.stop()
    service.command = ["-m", "benchmarks.profiles.marks", service.name, str(file)]
    service.start()
    try:
        yield file
    finally:
        service.stop()
        service.command = plain
        service.start()
        world.wait_for_followers()


def _in_order(service: Service, taken: Mapping[str, Taken]) -> Iterator[tuple[str, Taken]]:
    """As they follow each other, those that depend on what was done after the others; and what all took."""
    known = [what for step in steps.OF[service.name] for what in (step.before, step.after) if isinstance(what, str)]
    for what in sorted(taken, key=lambda it: (known.index(it) if it in known else len(known), it)):
        yield what, taken[what]
    yield "together", Taken(sum(it.seconds for it in taken.values()), sum(it.cpu for it in taken.values()))


if __name__ == "__main__":
    sys.exit(main())
