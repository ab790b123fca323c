"""The leader of the databases dies under load: PostgreSQL twice, under Patroni, with a synchronous standby."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import grpc
import psycopg

from benchmarks.scale import patroni
from benchmarks.scale.patroni import LOOP, RETRY, TTL, Etcd, Node, urls_of
from benchmarks.scale.tables import Table
from commerce.query.v1 import query_service_pb2 as queries
from commerce.type.v1.consistency_pb2 import Consistency
from commerce.type.v1.receipt_pb2 import CommandReceipt
from tandem.cli.embedded import Memcached, Postgres, memcached_path
from tandem.testing.ports import free_port
from tandem.testing.stack import end_node, until, wait_until
from tests.support.shop import an_order, open_shop, until_answered
from tests.support.stack import AsyncStubs, Databases, Stack

_SETTINGS = {
    "max_connections": "200",
    "shared_buffers": "128MB",
    "max_wal_size": "1GB",
    # A standby asks a leader that came back again after this, and commits wait for it: PostgreSQL's own is 5 s.
    "wal_retrieve_retry_interval": "500ms",
}
BUYERS, PAUSE = 8, 0.02
# Before the leader is killed, and after everything goes on.
BEFORE, AFTER = 3.0, 2.0
# Until writes are acknowledged again; Patroni waits for its `ttl`.
_PATIENCE = 75.0
# As long as callers repeat: longer than that.
_REPEAT = 90.0


def missing() -> str | None:
    """Why it cannot run here; None where it can."""
    if memcached_path() is None:
        return "memcached is not installed: apt-get install memcached"
    return patroni.missing()


def run(folder: Path, say: Callable[[str], None]) -> Iterator[Table]:
    # PostgreSQL's user must pass through it.
    folder.chmod(0o711)
    with ExitStack() as exits:
        etcd = Etcd(folder / "etcd")
        exits.callback(etcd.stop)
        etcd.start()
        nodes = [Node(name, folder / name, etcd, _SETTINGS) for name in ("one", "two")]
        for node in nodes:
            exits.callback(node.stop)
            node.start()
            wait_until(lambda: _leader(nodes) is not None, "there is a leader")
        _wait_for_standby(nodes)
        say("a leader and a synchronous standby")
        cache = Memcached(free_port())
        exits.callback(end_node, cache)
        cache.start()
        # All that is asked of a Postgres is where it is.
        databases = _Databases(cast("Postgres", nodes[0]))
        stack = Stack(databases, folder, nodes=[cache], at=urls_of(nodes), query="?target_session_attrs=primary")
        exits.callback(stack.stop)
        stack.start()
        yield from asyncio.run(_scenario(stack, nodes, say))


class _Databases(Databases):
    def drop(self, url: str) -> None:
        """They go with the servers: where they were made there may be a standby by now."""


@dataclass
class _Load:
    """Orders that are placed until `stop`, each repeated until it is acknowledged, and reads of the last one's token.

    acknowledged: when, on the clock of time.monotonic(), and the receipt, by order id. read: when, and the token's
    position.
    """

    acknowledged: dict[str, tuple[float, CommandReceipt]] = field(default_factory=dict)
    read: list[tuple[float, int]] = field(default_factory=list)
    repeated: int = 0
    stopping: bool = False

    async def run(self, stubs: AsyncStubs) -> None:
        numbers = itertools.count(1)

        async def buy() -> None:
            while not self.stopping:
                answer = await until_answered(stubs.commands.PlaceOrder, an_order(next(numbers)), seconds=_REPEAT)
                self.acknowledged[answer.order_id] = time.monotonic(), answer.receipt
                self.repeated += answer.receipt.replayed
                await asyncio.sleep(PAUSE)

        async def read() -> None:
            while not self.stopping:
                await asyncio.sleep(PAUSE)
                if self.acknowledged:
                    order_id, (_, receipt) = next(reversed(self.acknowledged.items()))
                    wanted = Consistency(at_least_as_fresh=receipt.consistency_token)
                    request = queries.GetOrderDetailsRequest(order_id=order_id, consistency=wanted)
                    try:
                        await stubs.queries.GetOrderDetails(request, timeout=5)
                    except grpc.aio.AioRpcError as error:
                        if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                            raise
                    else:
                        self.read.append((time.monotonic(), receipt.position))

        await asyncio.gather(read(), *(buy() for _ in range(BUYERS)))


@dataclass(frozen=True)
class _Outcome:
    """Seconds since the kill: until PostgreSQL itself could commit again, until the first write was acknowledged behind
    the longest gap, and until one of those was read with its token. leader: who leads afterwards.
    """

    commits: float
    gap: float
    written: float
    read: float
    leader: str


async def _scenario(stack: Stack, nodes: Sequence[Node], say: Callable[[str], None]) -> list[Table]:
    load = _Load()
    found: dict[str, _Outcome] = {}
    async with stack.async_stubs() as stubs:
        await open_shop(stubs.commands)
        epoch = await asyncio.to_thread(_epoch, nodes, stack)
        running = asyncio.create_task(load.run(stubs))
        try:
            for what, kill in (
                ("PostgreSQL alone is killed", Node.crash_postgres),
                ("its machine: PostgreSQL and Patroni are killed", Node.crash),
            ):
                found[what] = await _killed(load, nodes, kill, running)
                say(f"{what}: {found[what].written:.1f} s, the leader is {found[what].leader}")
        finally:
            load.stopping = True
            await running
        gone = next(it for it in nodes if not it.serves())
        began = time.monotonic()
        await asyncio.to_thread(gone.start)
        await asyncio.to_thread(_wait_for_standby, nodes)
        back = time.monotonic() - began
        await until(lambda: _asked(nodes, stack, _BEHIND, lambda rows: rows == [(0,)]), "the views have all")
    checks = await asyncio.to_thread(_checked, nodes, stack, load, epoch)
    titles = (
        "the leader dies",
        "PostgreSQL commits",
        "a write is acknowledged",
        "it is read",
        "no write for",
        "then leads",
    )
    rows = [
        (what, *(f"{seconds:.1f}" for seconds in (it.commits, it.written, it.read, it.gap)), it.leader)
        for what, it in found.items()
    ]
    notes = [
        f"Patroni with ttl {TTL}, loop_wait {LOOP}, retry_timeout {RETRY} s and synchronous_mode;"
        f" {len(load.acknowledged):,} orders were acknowledged, {load.repeated} of them when they were sent again and"
        " had been stored before.",
        f"The dead node came back as the standby {back:.1f} s after it was started.",
        *checks,
    ]
    return [Table("A leader that dies while orders are placed and read, s since it was killed", titles, rows, notes)]


async def _killed(
    load: _Load, nodes: Sequence[Node], kill: Callable[[Node], None], running: "asyncio.Task[None]"
) -> _Outcome:
    # Patroni promotes no other: without one it waits for the leader to come back.
    await asyncio.to_thread(_wait_for_standby, nodes)
    await asyncio.sleep(BEFORE)
    leader = await asyncio.to_thread(_leader, nodes)
    assert leader is not None, "somebody leads"
    killed = time.monotonic()
    await asyncio.to_thread(kill, leader)
    committing = asyncio.create_task(asyncio.to_thread(_committed_at, nodes))

    async def goes_on() -> bool:
        if running.done():
            await running
        return _outcome(load, killed) is not None

    await until(goes_on, "orders are placed and read again", _PATIENCE)
    await asyncio.sleep(AFTER)
    outcome = _outcome(load, killed)
    commits = await committing - killed
    leads = await asyncio.to_thread(_leader, nodes)
    assert outcome is not None
    gap, written, read = outcome
    return _Outcome(commits, gap, written, read, "the same node" if leads is leader else "the other node")


def _committed_at(nodes: Sequence[Node]) -> float:
    """When a commit was done that waits for the standby as a command's does, on the clock of time.monotonic()."""
    url = f"postgresql://postgres@{urls_of(nodes)}/postgres?target_session_attrs=primary"
    statement = "SELECT pg_logical_emit_message(true, 'scale', '')"

    def commits() -> bool:
        try:
            with psycopg.connect(url, connect_timeout=2, options="-c statement_timeout=2s", autocommit=True) as session:
                session.execute(statement)
        except psycopg.Error:
            return False
        return True

    wait_until(commits, "PostgreSQL commits", _PATIENCE)
    return time.monotonic()


def _outcome(load: _Load, killed: float) -> tuple[float, float, float] | None:
    """The longest time without an acknowledged write, its end, and the first read behind it; None before that."""
    times = sorted(at for at, _ in load.acknowledged.values())
    last = [it for it in times if it <= killed][-1:]
    after = [*last, *(it for it in times if it > killed)]
    if len(after) < 2:
        return None
    gap, end = max((later - earlier, later) for earlier, later in itertools.pairwise(after))
    positions = [receipt.position for at, receipt in load.acknowledged.values() if at >= end]
    reads = [at for at, position in load.read if at >= end and position >= min(positions)]
    # What was under way when the leader was killed may still be answered: that is no gap.
    if gap < 0.5 or not reads:
        return None
    return gap, end - killed, min(reads) - killed


def _leader(nodes: Sequence[Node]) -> Node | None:
    for node in nodes:
        try:
            said = node.says()
        except OSError:
            continue
        if said["state"] == "running" and said["role"] in ("primary", "master"):
            return node
    return None


def _wait_for_standby(nodes: Sequence[Node]) -> None:
    """Until a standby may be promoted: commits wait for it, and etcd knows."""

    def is_synchronous() -> bool:
        leader = _leader(nodes)
        if leader is None:
            return False
        try:
            members = leader.says("cluster")["members"]
        except OSError:
            return False
        return any(it["role"] == "sync_standby" and it["state"] in ("running", "streaming") for it in members)

    wait_until(is_synchronous, "there is a synchronous standby")


_PLACED = """
    SELECT r.subject_id::text, r.position FROM tandem_write.receipt AS r JOIN tandem_write.event AS e USING (position)
    WHERE e.kind = 'order_placed'"""
_BEHIND = """
    SELECT count(*) FROM tandem_read.projection
    WHERE position < (SELECT max(position) FROM tandem_read.projection) OR error IS NOT NULL"""


def _rows(nodes: Sequence[Node], url: str, statement: str) -> list[Any]:
    """At the leader."""
    name = url.rsplit("/", 1)[1]
    with psycopg.connect(
        f"postgresql://postgres@{urls_of(nodes)}/{name}?target_session_attrs=primary", autocommit=True
    ) as connection:
        return connection.execute(statement.encode()).fetchall()


def _asked(
    nodes: Sequence[Node], stack: Stack, statement: str, condition: Callable[[list[Any]], bool]
) -> Awaitable[bool]:
    return asyncio.to_thread(lambda: condition(_rows(nodes, stack.read_url, statement)))


def _epoch(nodes: Sequence[Node], stack: Stack) -> Any:
    return _rows(nodes, stack.write_url, "SELECT epoch FROM tandem_write.feed_head")


def _checked(nodes: Sequence[Node], stack: Stack, load: _Load, epoch: Any) -> list[str]:
    """What holds. Raises RuntimeError for what does not."""
    found = _rows(nodes, stack.write_url, _PLACED)
    positions = dict(found)
    lost = [it for it, (_, receipt) in load.acknowledged.items() if positions.get(it) != receipt.position]
    orders = _rows(nodes, stack.write_url, "SELECT count(*) FROM tandem_write.customer_order")
    feed = _rows(
        nodes,
        stack.write_url,
        "SELECT count(*), count(DISTINCT position), min(position), max(position) FROM tandem_write.event",
    )
    head = _rows(nodes, stack.write_url, "SELECT position FROM tandem_write.feed_head")
    views = _rows(nodes, stack.read_url, "SELECT key::text FROM tandem_read.order_details")
    [(events, different, first, last)] = feed
    wrong = {
        "acknowledged orders that are not there as they were acknowledged": len(lost),
        "orders placed twice": len(found) - len(positions),
        "orders without their event": orders[0][0] - len(positions),
        "positions missing or twice": abs(events - different) + abs(last - first + 1 - events) + abs(head[0][0] - last),
        "acknowledged orders that no view has": len(load.acknowledged.keys() - {it for (it,) in views}),
        "epochs that began": int(_epoch(nodes, stack) != epoch),
    }
    if bad := {what: count for what, count in wrong.items() if count}:
        raise RuntimeError(f"a promise does not hold: {bad}")
    return [
        f"Afterwards: all {len(load.acknowledged):,} acknowledged orders in the write tables and in the view,"
        f" {events:,} events at positions {first} to {last} without a gap or a double, in the epoch from before."
    ]
