"""What this program's metrics say."""

from prometheus_client import REGISTRY


def sample(name: str, **labels: str) -> float | None:
    """The value of a metric's sample, None where there is none.

    Only the metric itself is asked: a program has hundreds, and those of the process read files of the kernel's.
    """
    for metric in REGISTRY.restricted_registry([name]).collect():
        for it in metric.samples:
            if it.name == name and it.labels == labels:
                return float(it.value)
    return None
