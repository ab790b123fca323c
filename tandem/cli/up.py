"""`tandem up`: starts the stack, loads the sample, says what to try, and watches until it is told to stop."""

import itertools
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from types import FrameType

import grpc
from rich.console import Console
from rich.live import Live
from rich.progress import Progress
from rich.text import Text

from tandem.cli.child import DIRECT
from tandem.cli.domain import Domain
from tandem.cli.live import Meter
from tandem.cli.local_stack import LocalStack, sole_user_of
from tandem.cli.sample import send_sample
from tandem.cli.status import list_projections
from tandem.cli.supervisor import Supervisor

_TICK_SECONDS = 1.0
# Without a terminal the line goes to a log, where one a second would be noise.
_TICKS_A_PLAIN_LINE = 10


def up(domain: Domain, stack: LocalStack, console: Console, *, with_sample: bool) -> None:
    """Runs until SIGINT, SIGTERM or SIGHUP, then stops everything. Raises StackError, with everything stopped."""
    with sole_user_of(stack.folder):
        stack.refuse_ports_in_use()
        # It raises KeyboardInterrupt from now on, wherever we are.
        _at_a_signal_to_stop(signal.default_int_handler)
        try:
            _run(domain, stack, console, with_sample=with_sample)
        except KeyboardInterrupt:
            console.print("stopping")
        finally:
            # While we stop, another one ends us at once; the kernel then ends the children.
            _at_a_signal_to_stop(signal.SIG_DFL)
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
    stack.start(say)
    if with_sample:
        _load_sample_once(domain, stack, console)
    say("\nTry, in another terminal:")
    for line in domain.examples(stack.command_server.address, stack.query_server.address, with_sample):
        say(f"  {line}")
    say("\nTandem is up; Ctrl-C stops it")
    with grpc.insecure_channel(stack.projector.address, DIRECT) as channel:
        views = partial(list_projections, domain.projections, channel)
        _watch(Supervisor(stack.children, say), Meter(stack.command_server, stack.query_server, views), console)


def _load_sample_once(domain: Domain, stack: LocalStack, console: Console) -> None:
    """The marker spares later starts the time. A load that was cut short goes on: its commands have request ids."""
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


def _watch(supervisor: Supervisor, meter: Meter, console: Console) -> None:
    with Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext() as live:
        for tick in itertools.count():
            supervisor.check()
            if live:
                live.update(Text(meter.line(), no_wrap=True, overflow="ellipsis"), refresh=True)
            elif tick % _TICKS_A_PLAIN_LINE == 0:
                console.print(meter.line(), highlight=False, soft_wrap=True)
            time.sleep(_TICK_SECONDS)


def _at_a_signal_to_stop(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> None:
    """SIGHUP is none under `nohup`, which has it ignored."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    for number in (signal.SIGINT, signal.SIGTERM, *([] if ignored else [signal.SIGHUP])):
        signal.signal(number, handler)
