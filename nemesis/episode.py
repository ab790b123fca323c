"""One cluster and its clients: some faults, one after the other, and then the proof that nothing came of them."""

import asyncio
import contextlib
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from nemesis.checker import Violation, check
from nemesis.clients import Crowd
from nemesis.cluster import Cluster, running
from nemesis.faults import Kind, end_all
from nemesis.shop import read_feed
from nemesis.stores import compare, wait_until_followed
from tandem.cli.child import StackError
from tandem.feed.token import Token

T = TypeVar("T")
Say = Callable[[str], None]

_BACK_SECONDS = 90.0
"""Until what is not back counts as never."""
_CALM_SECONDS = 1.0
"""Between two faults, so that clients act in peace too."""


class Recovery(NamedTuple):
    """How many seconds after a fault's end all command servers stored something, all query servers showed it, and all
    servers said SERVING.
    """

    kind: str
    what: str
    write: float
    read: float
    serving: float
    bound: float

    @property
    def is_late(self) -> bool:
        return max(self.write, self.read, self.serving) > self.bound


@dataclass
class Episode:
    """calls: that were answered. acknowledged: commands among them."""

    seed: int
    recoveries: list[Recovery] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    calls: int = 0
    acknowledged: int = 0


class Loop:
    """An event loop on a thread of its own: this thread starts children, which die with the thread that starts them."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.submit(work).result()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def run_episode(
    seed: int, kinds: Sequence[Kind], *, hold: float, settings: Mapping[str, Mapping[str, str]], say: Say
) -> Episode:
    """Makes a fault of each kind, each held for `hold` seconds or a multiple. The seed chooses what each one hits.

    say: prints each. Where something was violated the servers' logs are kept, and `say` prints where.
    """
    episode = Episode(seed)
    folder = Path(tempfile.mkdtemp(prefix="tandem-nemesis-"))
    loop = Loop()
    try:
        with running(folder, settings) as cluster, _crowd(cluster, loop, seed) as crowd:
            try:
                nemesis = _Nemesis(cluster, crowd, loop, random.Random(f"{seed}/faults"), hold, say)
                for kind in kinds:
                    if not kind.possible(cluster):
                        say(f"skipped, since this machine cannot make it: {kind.name}")
                        continue
                    episode.recoveries.append(nemesis.make(kind))
                episode.violations = prove(cluster, crowd, loop)
            except (AssertionError, StackError) as error:
                episode.violations.append(Violation("recovery", str(error)))
            finally:
                # What is broken still would keep everything from stopping.
                end_all(cluster)
            episode.calls = len(crowd.history.writes) + len(crowd.history.reads)
            episode.acknowledged = sum(it.receipt is not None for it in crowd.history.writes)
    finally:
        loop.close()
    if episode.violations:
        say(f"{len(episode.violations)} violations; the servers' logs are in {folder}")
    else:
        shutil.rmtree(folder)
    return episode


@contextlib.contextmanager
def at_rest(folder: Path, *, clients: int) -> Iterator[tuple[Cluster, Crowd, Loop]]:
    """A cluster and its clients, and nothing that breaks them."""
    loop = Loop()
    try:
        with running(folder, {}) as cluster, _crowd(cluster, loop, seed=1, clients=clients) as crowd:
            yield cluster, crowd, loop
    finally:
        loop.close()


@contextlib.contextmanager
def _crowd(cluster: Cluster, loop: Loop, seed: int, *, clients: int = 8) -> Iterator[Crowd]:
    async def made() -> Crowd:
        return Crowd(cluster.addresses, seed, clients=clients)

    crowd = loop.run(made())
    try:
        loop.run(crowd.open())
        loop.submit(_begin(crowd)).result()
        yield crowd
    finally:
        loop.run(crowd.close())


async def _begin(crowd: Crowd) -> None:
    crowd.begin()


class _Nemesis(NamedTuple):
    """Breaks a cluster. hold: for how many seconds a usual fault lasts."""

    cluster: Cluster
    crowd: Crowd
    loop: Loop
    chance: random.Random
    hold: float
    say: Say

    def make(self, kind: Kind) -> Recovery:
        """One fault of a kind. AssertionError when something does not come back."""
        fault = kind.choose(self.cluster, self.chance)
        writes = self.crowd.history.writes
        before = len(writes)
        fault.begin()
        time.sleep(self.hold * kind.held)
        fault.end()
        it = self._recovery(kind, fault.what)
        self.say(
            f"{kind.name} ({fault.what}): writes after {it.write:.1f} s, reads after {it.read:.1f} s, serving after"
            f" {it.serving:.1f} s; {len(writes) - before} commands meanwhile"
        )
        time.sleep(_CALM_SECONDS)
        return it

    def _recovery(self, kind: Kind, what: str) -> Recovery:
        """Since now."""
        ended = time.monotonic()
        asked = self.loop.submit(_answering(self.crowd, ended))
        services = self.cluster.services
        with ThreadPoolExecutor(len(services)) as pool:
            serving = [pool.submit(_since, ended, it.serves, f"{name} serves") for name, it in services.items()]
        write, read = asked.result()
        return Recovery(kind.name, what, write, read, max(it.result() for it in serving), kind.bound)


def _since(start: float, condition: Callable[[], bool], what: str) -> float:
    while not condition():
        assert time.monotonic() < start + _BACK_SECONDS, f"not back {_BACK_SECONDS:g} s after the fault: {what}"
        time.sleep(0.05)
    return time.monotonic() - start


async def _answering(crowd: Crowd, start: float) -> tuple[float, float]:
    """When every command server has stored something, and every query server has shown the last of it."""

    async def until_answered(what: str, ask: Callable[[], Awaitable[T]]) -> T:
        while not (answer := await ask()):
            assert time.monotonic() < start + _BACK_SECONDS, f"not back {_BACK_SECONDS:g} s after the fault: {what}"
            await asyncio.sleep(0.05)
        return answer

    def stored(server: int) -> Awaitable[Token | None]:
        return until_answered(f"command server {server + 1}", lambda: crowd.probe_write(server))

    tokens = await asyncio.gather(*map(stored, range(crowd.command_servers)))
    written = time.monotonic() - start
    newest = max((it for it in tokens if it is not None), key=lambda it: it.position)

    def shown(server: int) -> Awaitable[bool]:
        return until_answered(f"query server {server + 1}", lambda: crowd.probe_read(server, newest))

    await asyncio.gather(*map(shown, range(crowd.query_servers)))
    return written, time.monotonic() - start


def prove(cluster: Cluster, crowd: Crowd, loop: Loop) -> list[Violation]:
    """Ends the clients, waits until all is quiet, and compares everything with everything."""
    loop.run(crowd.settle(lambda: asyncio.to_thread(lambda: read_feed(cluster.write_url).head)))
    wait_until_followed(cluster.write_url, cluster.read_url)
    feed = read_feed(cluster.write_url)
    return check(crowd.history, feed) + compare(cluster.write_url, cluster.read_url, feed, cluster.node_addresses)
