"""What a suggestion takes beside a search for the same beginnings: 20,000 products, one call at a time, nothing else.

    python -m benchmarks.suggestions

Each beginning of a name, of one to six letters, is asked for once, and nothing is remembered: it is the dearest that
suggestions are. Then all are asked for again. Ends with 1 where suggestions take more than a quarter.
"""

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import SecretStr

from query_server.search.memory import SearchMemory
from tandem.cli.embedded import Postgres
from tandem.runtime.settings import DatabaseSettings
from tandem.testing.ports import free_port
from tests.integration.query_server.test_search_relevance import project
from tests.support.catalogue import catalogue
from tests.support.searching import Searcher, Suggester
from tests.support.stack import Databases

ASKED = 100
ROUNDS = 2
BAR = 0.25


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as folder:
        postgres = Postgres(Path(folder) / "data", free_port(), {"fsync": "off"})
        postgres.start()
        try:
            url = Databases(postgres).create("read")
            project(url, (it.added() for it in catalogue()))
            return measure(DatabaseSettings(url=SecretStr(url)))
        finally:
            postgres.stop()


def measure(settings: DatabaseSettings) -> int:
    asked = list(beginnings())
    search = Searcher(settings, SearchMemory(0))
    # What was measured once is planned, and in PostgreSQL's memory.
    seconds: dict[str, list[float]] = {"a search": [], "a suggestion": [], "the same again": []}
    for _ in range(ROUNDS):
        suggest = Suggester(settings)
        for query in asked:
            for name, call in (("a search", search), ("a suggestion", suggest), ("the same again", suggest)):
                seconds[name].append(taken(call, query))
        suggest.close()
    search.close()
    for name, them in seconds.items():
        cuts = statistics.quantiles(them, n=20)
        print(f"{name}: median {1e3 * statistics.median(them):.2f} ms, one in twenty over {1e3 * cuts[-1]:.2f} ms")
    ratios = {
        what: of(seconds["a suggestion"]) / of(seconds["a search"])
        for what, of in (("median", statistics.median), ("mean", statistics.fmean))
    }
    print(", ".join(f"{what} {ratio:.2f} of a search's" for what, ratio in ratios.items()), f"(bar: {BAR})")
    return int(max(ratios.values()) > BAR)


def beginnings() -> Iterable[str]:
    dice = random.Random("beginnings")
    for name in dice.choices([it.name for it in catalogue()], k=ASKED):
        yield dice.choice(name.split())[: dice.randint(1, 6)]


def taken(call: Callable[[str], object], query: str) -> float:
    began = time.perf_counter()
    call(query)
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
