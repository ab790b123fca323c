"""The relay as a program that ends itself at a step of a transaction: `python -m tests.support.dying_relay serve`.

RELAY_DIES_AT: the number of the step that is not done any more; from 1 on, of all calls of Kafka's producer.
RELAY_DIES_WITH: the signal, by its number. SIGSTOP leaves it as it is until somebody sends SIGCONT.
"""

import itertools
import os
import runpy
from typing import Any

import confluent_kafka

STEPS = ("init_transactions", "begin_transaction", "produce", "flush", "commit_transaction")


class DyingProducer(confluent_kafka.Producer):
    """Calls are counted over all producers of the process."""


_numbers = itertools.count(1)


def _dying(name: str) -> Any:
    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        if next(_numbers) == int(os.environ["RELAY_DIES_AT"]):
            os.kill(os.getpid(), int(os.environ["RELAY_DIES_WITH"]))
        return getattr(confluent_kafka.cimpl.Producer, name)(self, *arguments, **options)

    return call


if __name__ == "__main__":
    for step in STEPS:
        setattr(DyingProducer, step, _dying(step))
    confluent_kafka.Producer = DyingProducer  # type: ignore[misc]
    runpy.run_module("relay", run_name="__main__", alter_sys=True)
