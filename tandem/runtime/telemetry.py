"""Logs and metrics: JSON lines on standard error, Prometheus over HTTP."""

import logging
import os
import sys
from bisect import bisect_left
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from prometheus_client import Counter, Gauge, Histogram, Info

from tandem.runtime.start import import_without

# rich is there for the command line. structlog would import it to draw tracebacks in terminals, and here it writes
# JSON: a tenth of a start, and 5 MiB.
with import_without("rich"):
    import structlog

log = structlog.get_logger()


class CallHistogram(Histogram):
    """A histogram that counts calls that took equally long, a batch, at the price of one."""

    def observe_many(self, amount: float, times: int) -> None:
        """As `observe(amount)`, so many times."""
        self._sum.inc(amount * times)
        self._buckets[bisect_left(self._upper_bounds, amount)].inc(times)


CALLS = Counter("tandem_calls_total", "Calls answered, by method and status code", ["method", "code"])
CALL_SECONDS = CallHistogram(
    "tandem_call_seconds",
    "Time from a call's arrival to its answer",
    ["method"],
    # Cached reads take a fraction of a millisecond, a wait for a token up to a minute.
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
)
CALLS_UNDER_WAY = Gauge("tandem_calls_under_way", "Calls that are being answered; streams are counted apart")
CALLS_ANSWERED_TWICE = Counter(
    "tandem_calls_answered_twice_total", "Answers to calls that had one already: each is a bug, and was not sent"
)
STREAMS_OPEN = Gauge("tandem_streams_open", "Streams that callers have open", ["method"])
STREAM_MESSAGES = Counter("tandem_stream_messages_total", "Messages that were sent in streams", ["method"])
SERVING = Gauge("tandem_serving", "1 while health says SERVING; all is the server's own", ["service"])
LOOP_DELAY = Histogram(
    "tandem_event_loop_delay_seconds",
    "How much later than due the event loop came to a task, once a second: streams and health wait so long, on the"
    " transport grpcio all calls",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1, 5),
)
JOB_SUCCEEDED = Gauge(
    "tandem_job_success_timestamp_seconds",
    "When a job that runs now and then last did all it had to; its beginning where it has not yet",
    # Not "job": Prometheus means something else by it.
    ["name"],
)
BUILD = Info("tandem_build", "What runs: the service, its version, and Python's")
MEMORY_LIMIT = Gauge(
    "tandem_memory_limit_bytes", "What this process may use: its control group's limit, or the machine's memory"
)
_DISTRIBUTION = "tandem-cqrs"
# Version 1 of control groups says a number near 2^63 where there is no limit.
_CGROUPS = ("/sys/fs/cgroup", "/sys/fs/cgroup/memory")
_LIMITS = ("memory.max", "memory.limit_in_bytes")


def version() -> str:
    """Of this program."""
    try:
        return metadata.version(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "not installed"


def note_process(service: str, transport: str) -> None:
    """Sets what a process says of itself, once."""
    python = ".".join(map(str, sys.version_info[:3]))
    BUILD.info({"service": service, "version": version(), "python": python, "transport": transport})
    MEMORY_LIMIT.set(memory_limit())


def memory_limit() -> int:
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for group in _CGROUPS:
        for name in _LIMITS:
            # Not there, or "max".
            with suppress(OSError, ValueError):
                limits.append(int((Path(group) / name).read_text()))
    return min(limits)


def note_success(job: str) -> None:
    JOB_SUCCEEDED.labels(job).set_to_current_time()


def configure_logging(least: str, service: str) -> None:
    """Sends structlog's and the standard library's records to standard error as JSON, each naming the service."""
    shared: list[Callable[..., object]] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        lambda _logger, _name, event: {"service": service, **event},
        structlog.processors.format_exc_info,
    ]
    level = logging.getLevelNamesMapping()[least.upper()]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer()],  # type: ignore[list-item]
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,  # type: ignore[arg-type]
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(level, logging.WARNING))
