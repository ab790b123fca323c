"""Writes docs/metrics.md from what each service registers when it is imported: `make docs`."""

import gc
import json
import os
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from prometheus_client import REGISTRY

_SERVICES = {
    "command_server": "command server",
    "projector": "projector",
    "query_server": "query server",
    "relay": "relay",
}
_ROOT = Path(__file__).parents[1]
_PREFIX = "tandem_"
# Of other packages, what all services import: three quarters of the time of an import, and none of our metrics.
_OTHERS = (
    *("google.rpc.error_details_pb2", "grpc.aio", "grpc_reflection.v1alpha.reflection", "grpc_status.rpc_status"),
    *("jwt", "psycopg", "pydantic_settings", "sqlalchemy.dialects.postgresql", "structlog", "tenacity", "uvloop"),
)

_HEAD = """# Metrics

<!-- Generated from the services by `make docs`. -->

Each service serves its metrics to Prometheus at `http://host:port/metrics`, where `TANDEM_…_SERVER__METRICS_PORT` is
set. Beside those below there are prometheus-client's own of the process: `process_resident_memory_bytes`,
`process_open_fds`, `process_max_fds`, `process_cpu_seconds_total`, `process_start_time_seconds`, and `python_gc_…`.

[deploy/prometheus](../deploy/prometheus) has rules that alert, each with its section in the
[runbook](runbook.md#alerts), and [deploy/grafana](../deploy/grafana) a dashboard. A sample with labels is there from
the first time that something was counted under them; a histogram has `_bucket`, `_sum` and `_count`.
"""


class Metric(NamedTuple):
    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


@cache
def all_metrics() -> dict[Metric, list[str]]:
    """And which services have each."""
    command = (sys.executable, "-m", "tools.metrics", "registered")
    output = subprocess.run(command, cwd=_ROOT, check=True, stdout=subprocess.PIPE).stdout
    found: dict[Metric, list[str]] = {}
    for line in output.splitlines():
        service, metrics = json.loads(line)
        for name, kind, labels, text in metrics:
            found.setdefault(Metric(name, kind, tuple(labels), text), []).append(service)
    return found


def render() -> str:
    """The whole page."""
    rows = ["| metric | kind | labels | of | |\n|---|---|---|---|---|\n"]
    for it, services in sorted(all_metrics().items()):
        of = "all" if len(services) == len(_SERVICES) else ", ".join(_SERVICES[service] for service in services)
        labels = ", ".join(f"`{label}`" for label in it.labels)
        rows.append(f"| `{it.name}` | {it.kind} | {labels} | {of} | {it.help} |\n")
    return _HEAD + "\n" + "".join(rows)


def _registered() -> list[Metric]:
    """Of this process."""
    found = []
    # The library has no public list of its metrics, and none of their labels.
    for collector in list(REGISTRY._collector_to_names):
        for family in collector.describe() if hasattr(collector, "describe") else ():
            if family.name.startswith(_PREFIX):
                labels = getattr(collector, "_labelnames", getattr(collector, "labels", ()))
                suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
                found.append(Metric(family.name + suffix, family.type, tuple(labels), family.documentation))
    return found


def _write_registered() -> None:
    """A line for each service, of a process of its own: what one has imported is not another's."""
    # Nothing that is imported is garbage.
    gc.disable()
    for name in _OTHERS:
        import_module(name)
    for service in _SERVICES:
        if (process := os.fork()) == 0:
            import_module(f"{service}.app")
            sys.stdout.write(f"{json.dumps((service, _registered()))}\n")
            sys.stdout.flush()
            # To take all modules apart, as at the end of a program, would copy the memory that they share.
            os._exit(0)
        _, status = os.waitpid(process, 0)
        assert status == 0, f"{service} is not imported"


if __name__ == "__main__":
    if sys.argv[1:]:
        _write_registered()
    else:
        sys.stdout.write(render())
