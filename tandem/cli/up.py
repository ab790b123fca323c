"""`tandem up`: starts the stack, loads the sample, says what to try, and watches until it is told to stop."""

import signal
import time
from contextlib import ExitStack

import grpc
from rich.console import Console
from rich.progress import Progress

from tandem.cli.access import QUICK_TO_RECONNECT
from tandem.cli.child import DIRECT, Child
from tandem.cli.domain import Domain
from tandem.cli.live import Reading, Totals, at_a_signal_to_stop, watch
from tandem.cli.local_stack import LocalStack, sole_user_of
from tandem.cli.sample import send_sample
from tandem.cli.services import Service
from tandem.cli.status import ServiceHealth, observe
from tandem.cli.supervisor import Supervisor

_TICK_SECONDS = 1.0
# What answers later is shown as away: the table waits for it.
_ASK_SECONDS = 1.0
# Without a terminal the line goes to a log, where one a second would be noise.
_TICKS_A_PLAIN_LINE = 10


def up(domain: Domain, stack: LocalStack, console: Console, *, with_sample: bool) -> None:
    """Runs until SIGINT, SIGTERM or SIGHUP, then stops everything. Raises StackError, with everything stopped."""
    with sole_user_of(stack.folder):
        stack.refuse_ports_in_use()
        # It raises KeyboardInterrupt from now on, wherever we are.
        at_a_signal_to_stop(signal.default_int_handler)
        try:
            _run(domain, stack, console, with_sample=with_sample)
        except KeyboardInterrupt:
            console.print("stopping")
        finally:
            # While we stop, another one ends us at once; the kernel then ends the children.
            at_a_signal_to_stop(signal.SIG_DFL)
            stack.stop()
        console.print(f"stopped; the data stays in {stack.folder}")


def _run(domain: Domain, stack: LocalStack, console: Console, *, with_sample: bool) -> None:
    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    say(f"Tandem on {stack.folder}, logs in {stack.logs}")
    for line in stack.moved_ports():
        say(line)
    if stack.memcached is None:
        say("without a cache: " + ("lite" if stack.lite else "memcached is not on the PATH"))
    if stack.without_pages:
        say(f"without pages: {stack.without_pages}")
    stack.start(say)
    with_sample = with_sample and domain.sample is not None
    if with_sample:
        _load_sample_once(domain, stack, console)
    examples = domain.examples(stack.command_server.address, stack.query_server.address, with_sample)
    if examples:
        say("\nTry, in another terminal:")
    for line in examples:
        say(f"  {line}")
    if pages := stack.pages():
        say("\nAnd in a browser:")
        for address, title in pages.items():
            say(f"  {address:<32} {title}")
    say("\nTandem is up; Ctrl-C stops it")
    supervisor = Supervisor(stack.children, say)
    with ExitStack() as exits:
        # The second server of a kind, with a mesh, has the name of the first.
        channels = {
            (it.name if it in stack.first_services else f"{it.name} 2"): (
                it.address,
                exits.enter_context(grpc.insecure_channel(it.address, (*DIRECT, *QUICK_TO_RECONNECT))),
            )
            for it in stack.children
            if isinstance(it, Service)
        }

        def read() -> Reading:
            return Reading(
                at=time.monotonic(),
                report=observe(channels, stack.projector.name, domain.projections, _ASK_SECONDS),
                stores=tuple(_health(it) for it in stack.children if not isinstance(it, Service)),
                totals=_totals(stack),
            )

        watch(read, console, _TICK_SECONDS, plain_every=_TICKS_A_PLAIN_LINE, before_each=supervisor.check)


def _health(store: Child) -> ServiceHealth:
    serves = store.exit_code() is None and store.serves()
    return ServiceHealth(store.name, store.address, "serving" if serves else "not serving")


def _totals(stack: LocalStack) -> Totals:
    reads = "tandem_cache_reads_total"
    return Totals(
        commands=_metric(stack.command_server, "tandem_commands_total", outcome="stored"),
        hits=_metric(stack.query_server, reads, result="hit"),
        misses=_metric(stack.query_server, reads, result="miss"),
    )


def _metric(service: Service, name: str, **labels: str) -> float | None:
    """A service that is away has no figures: it is shown as away."""
    try:
        return service.metric(name, **labels)
    except OSError:
        return None


def _load_sample_once(domain: Domain, stack: LocalStack, console: Console) -> None:
    """The marker spares later starts the time. A load that was cut short goes on: its commands have request ids."""
    assert domain.sample is not None
    assert domain.commands is not None
    marker = stack.folder / "sample-loaded"
    if marker.exists():
        return
    stages = domain.sample()
    total = sum(len(stage.requests) for stage in stages)
    started = time.monotonic()
    with (
        grpc.insecure_channel(stack.command_server.address, DIRECT) as channel,
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("sample data", total=total)
        send_sample(domain.commands(channel), stages, lambda count: progress.advance(task, count))
    marker.touch()
    counts = ", ".join(f"{len(stage.requests):,} {stage.title}" for stage in stages)
    console.print(f"sample data: {counts} in {time.monotonic() - started:.1f} s", highlight=False, soft_wrap=True)
