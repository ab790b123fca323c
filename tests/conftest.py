"""Fixtures over tests/support/stack.py, and the services' logs in the report of a test that fails."""

import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tandem.cli.embedded import Memcached, Postgres, memcached_path
from tandem.testing import ports
from tandem.testing.ports import free_port
from tandem.testing.stack import end_node
from tests.support.caches import Node, new_node, require
from tests.support.stack import Databases, Stack

# Nothing that is imported or collected is garbage: to look for it is a quarter of the time that this takes.
gc.disable()

_TESTS = Path(__file__).parent
# Folders whose tests take seconds and minutes.
_LONG = ("e2e", "faults", "fuzz", "pages")

# A busy machine is slow, and that is no failure: no test says how long something may take.
settings.register_profile("tandem", deadline=None)
settings.load_profile("tandem")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-examples", action="store_true", help="write what docs/examples.md's commands print into it"
    )
    parser.addoption("--seed", type=int, help="what tests/fuzz makes its inputs from, to send the same again")


def pytest_configure(config: pytest.Config) -> None:
    """Test processes side by side have ports of their own: none can tell by itself what another has chosen."""
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        number = int(worker.removeprefix("gw"))
        ports.QUIET_PORTS = ports.QUIET_PORTS[number::workers]
        if config.args == config.getini("testpaths"):
            # Each begins with other files: what one has compiled the others need not, and compiling all takes 5 s.
            files = sorted(map(str, _TESTS.rglob("test_*.py")))
            first = number * len(files) // workers
            config.args[:] = files[first:] + files[:first]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: one that begins last is what all other test processes wait for.

    xdist deals each process a row of neighbours, and who has none left takes the end of another's. So each row begins
    with its share of the long ones, and those that share what takes long to make are neighbours.
    """
    items.sort(key=lambda item: item.path)
    long: list[pytest.Item] = []
    short: list[pytest.Item] = []
    for item in items:
        (long if item.path.relative_to(_TESTS).parts[0] in _LONG else short).append(item)
    hands = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    files = [list(its) for _, its in groupby(long, key=_shared)]
    dealt: list[pytest.Item] = []
    for hand in range(hands):
        first = list(chain.from_iterable(files[hand::hands]))
        # As xdist does it: what is left, by whom it is left for.
        rest = max(0, (len(items) - len(dealt)) // (hands - hand) - len(first))
        dealt += [*first, *short[:rest]]
        del short[:rest]
    items[:] = [*dealt, *short]


def _shared(item: pytest.Item) -> Path:
    """What its long fixtures are shared in: the pages' tests have one browser and one stack."""
    return item.path.parent if item.path.parent.name == "pages" else item.path


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """Has the garbage collector look at what tests make alone, and less often.

    Thousands of tests and all modules stay to the end: to look at them again and again took a sixth of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for stack in Stack.running:
            report.sections += [(f"end of the log of {name}", text) for name, text in stack.logs().items()]
    return report


# A new database is a copy of hundreds of files: in memory that takes a tenth of the time.
_MEMORY = Path("/dev/shm")
# Some hundred megabytes for the server of each test process, most of it what it logs ahead.
_MEMORY_BYTES = 4 * 2**30


def _roomy_memory() -> Path | None:
    """None where there is little, as in a container with Docker's 64 MB: the usual folder does then, more slowly."""
    there = _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _MEMORY_BYTES
    return _MEMORY if there else None


@contextmanager
def _folder_of_servers() -> Iterator[Path]:
    # PostgreSQL's user must pass through it to what a server archives, and to its copies. Not under pytest's own
    # temporary folder, which nobody else may pass through.
    with tempfile.TemporaryDirectory(prefix="tandem-test-", dir=_roomy_memory()) as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


@pytest.fixture
def servers_folder() -> Iterator[Path]:
    """For the data of PostgreSQL servers that a test starts and stops itself."""
    with _folder_of_servers() as folder:
        yield folder


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One PostgreSQL for all tests that do not kill it. Without fsync: a machine crash is not among the tests.

    Without autovacuum: the blocks that it looks at and the statistics that it takes would come at any time.
    """
    settings = {"fsync": "off", "max_wal_size": "256MB", "autovacuum": "off"}
    with _folder_of_servers() as folder:
        server = Postgres(folder / "data", free_port(), settings=settings)
        server.start()
        yield server
        server.stop()


@pytest.fixture(scope="session")
def databases(postgres: Postgres) -> Iterator[Databases]:
    with Databases(postgres).in_one_session() as databases:
        yield databases


@pytest.fixture
def fresh_database(databases: Databases) -> Iterator[Callable[[], str]]:
    """Makes new empty databases, and drops them after the test."""
    urls: list[str] = []

    def create() -> str:
        urls.append(databases.create())
        return urls[-1]

    yield create
    for url in urls:
        databases.drop(url)


@pytest.fixture
def memcached_nodes() -> Iterator[Callable[..., list[Memcached]]]:
    """Starts so many memcached nodes, new and empty, with more options if they are given; stops them after the test."""
    started: list[Memcached] = []

    def start(count: int, *options: str) -> list[Memcached]:
        if count and memcached_path() is None:
            pytest.skip("memcached is not installed (apt-get install memcached): the cache's own tests need it")
        nodes = [Memcached(free_port(), options=options) for _ in range(count)]
        for node in nodes:
            node.start()
            started.append(node)
        return nodes

    yield start
    for node in started:
        end_node(node)


@pytest.fixture
def node_kind() -> str:
    """What the nodes of `cache_nodes` are. A file whose tests are for each kind has one of its own, with `params`."""
    return "memcached"


@pytest.fixture
def cache_nodes(node_kind: str) -> Iterator[Callable[..., list[Node]]]:
    """Starts so many nodes, new and empty, of the kind; stops them after the test.

    does: what else they are to do, of tests.support.caches.
    """
    started: list[Node] = []

    def start(count: int, does: dict[str, tuple[str, ...]] | None = None) -> list[Node]:
        if count:
            require(node_kind)
        nodes = [new_node(node_kind, does) for _ in range(count)]
        for node in nodes:
            node.start()
            started.append(node)
        return nodes

    yield start
    for node in started:
        end_node(node)


@pytest.fixture
def new_stack(
    databases: Databases, cache_nodes: Callable[..., list[Node]], tmp_path: Path
) -> Iterator[Callable[..., Stack]]:
    """Starts a Stack; takes its keyword arguments, the number of cache nodes, and what these do else as `nodes_do`."""
    stacks: list[Stack] = []

    new_nodes = cache_nodes

    def start(cache_nodes: int = 0, nodes_do: dict[str, tuple[str, ...]] | None = None, **options: Any) -> Stack:
        stack = Stack(databases, tmp_path, nodes=new_nodes(cache_nodes, nodes_do), **options)
        stacks.append(stack)
        return stack.start()

    yield start
    for stack in stacks:
        stack.stop()
