"""PgBouncer between services and PostgreSQL, by session and by transaction: what of PostgreSQL goes through it, and
which service works behind it.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import psycopg
from google.protobuf.duration_pb2 import Duration

from benchmarks.scale.tables import Table
from commerce.command.v1.command_service_pb2_grpc import CommandServiceStub
from commerce.query.v1 import query_service_pb2 as queries
from commerce.query.v1.query_service_pb2_grpc import QueryServiceStub
from commerce.type.v1.consistency_pb2 import Consistency
from tandem.cli.child import Child, StackError
from tandem.cli.embedded import Memcached, Postgres, memcached_path
from tandem.cli.services import Service
from tandem.testing.ports import free_port
from tandem.testing.stack import end_node, kill, wait_until
from tests.support.pgbouncer import PgBouncer, pgbouncer_path
from tests.support.shop import an_order, open_shop
from tests.support.stack import Databases, Stack

MODES = ("session", "transaction")
# Of each kind, at most so many under way at once.
CALLS, IN_FLIGHT = 300, 16
# Orders while a projector is behind it.
ORDERS = 40
_START_SECONDS, _CATCH_UP_SECONDS = 15.0, 15.0
_SETTINGS = {"fsync": "off", "max_connections": "300"}
_TOLD = re.compile(r"prepared statement\W+_pg3_\d+\W+(?:already exists|does not exist)|read-only transaction")


def missing() -> str | None:
    """Why it cannot run here; None where it can."""
    if memcached_path() is None:
        return "memcached is not installed: apt-get install memcached"
    return None if pgbouncer_path() is not None else "PgBouncer is not installed: make pgbouncer"


def run(folder: Path, say: Callable[[str], None]) -> Iterator[Table]:
    # PostgreSQL's user must pass through it.
    folder.chmod(0o711)
    with ExitStack() as exits:
        postgres = Postgres(folder / "data", free_port(), settings=_SETTINGS)
        node = Memcached(free_port())
        exits.callback(postgres.stop)
        exits.callback(end_node, node)
        postgres.start()
        node.start()
        stack = Stack(Databases(postgres), folder, nodes=[node])
        exits.callback(stack.stop)
        stack.start()
        asyncio.run(_with_stubs(stack))
        features: dict[str, dict[str, str]] = {}
        services: dict[str, dict[str, str]] = {}
        for mode in MODES:
            pooler = PgBouncer(postgres, mode, folder / mode, {"ignore_startup_parameters": "options"})
            exits.callback(pooler.stop)
            pooler.start()
            features[mode] = _features(stack.read_url.replace(postgres.address, pooler.address))
            say(f"PgBouncer by {mode}: what goes through it is known")
            trial = _Trial(stack, postgres, pooler)
            services[mode] = trial.outcomes()
            say(f"PgBouncer by {mode}: {services[mode]}")
        refused = _without_being_told(postgres, folder, stack.read_url)
    yield _table("What of PostgreSQL goes through PgBouncer, for a client that keeps its connection", features)
    yield _table("Which service works with its databases behind PgBouncer", services, [refused])


async def _with_stubs(stack: Stack) -> None:
    async with stack.async_stubs() as stubs:
        await open_shop(stubs.commands)


class _Trial:
    """Each service in turn behind one PgBouncer; the others, and the shop's own, are at the server itself."""

    def __init__(self, stack: Stack, postgres: Postgres, pooler: PgBouncer) -> None:
        self._stack = stack
        self._first = _numbers_from(stack)

        def through(url: str) -> str:
            return url.replace(postgres.address, pooler.address)

        self._write, self._read = through(stack.write_url), through(stack.read_url)

    def outcomes(self) -> dict[str, str]:
        return {
            "command server": self._try(self._commands),
            "query server": self._try(self._queries),
            "projector, and another one when it is killed": self._try(self._projectors),
        }

    @staticmethod
    def _try(trial: Callable[[], str]) -> str:
        try:
            return trial()
        except StackError as error:
            return f"does not serve: {_told(str(error)) or 'not ready'}"

    def _commands(self) -> str:
        server = self._stack.new_command_server(DATABASE__URL=self._write)
        try:
            _launch(server)
            with grpc.insecure_channel(server.address) as channel:
                place = CommandServiceStub(channel).PlaceOrder
                numbers = [next(self._first) for _ in range(CALLS)]
                return _counted(place, [an_order(number) for number in numbers], server)
        finally:
            _end(server)

    def _queries(self) -> str:
        server = self._stack.new_query_server(DATABASE__URL=self._read, FEED_DATABASE__URL=self._write)
        order = an_order(next(self._first))
        receipt = self._stack.commands.PlaceOrder(order, timeout=20).receipt
        consistency = Consistency(at_least_as_fresh=receipt.consistency_token, max_wait=Duration(seconds=5))
        asked = queries.ListRecentOrdersRequest(customer_id=order.customer_id, consistency=consistency)
        try:
            _launch(server)
            with grpc.insecure_channel(server.address) as channel:
                answered = _counted(QueryServiceStub(channel).ListRecentOrders, [asked] * CALLS, server)
            try:
                wait_until(lambda: server.metric("tandem_freshness_blind") == 0, "it hears", 6.0)
            except AssertionError:
                return f"{answered}; hears no announcement: reads no cache, waits by asking"
            return f"{answered}; hears what is announced"
        finally:
            _end(server)

    def _projectors(self) -> str:
        databases = {"READ_DATABASE__URL": self._read, "FEED_DATABASE__URL": self._write}
        first, second = [self._stack.new_projector(**databases) for _ in range(2)]
        self._stack.projector.stop()
        try:
            _launch(first)
            _launch(second)
            said = []
            for what, change in (("views follow", None), ("after a kill -9 they go on", first)):
                if change is not None:
                    kill(change)
                for _ in range(ORDERS):
                    self._stack.commands.PlaceOrder(an_order(next(self._first)), timeout=20)
                said.append(f"{what}: {'yes' if self._catch_up() else 'no'}")
            found = _told(second.log.read_text(encoding="utf-8", errors="replace"))
            return "; ".join([*said, *([found] if found and "no" in " ".join(said) else [])])
        finally:
            _end(first)
            _end(second)
            self._stack.projector.start()

    def _catch_up(self) -> bool:
        behind = "SELECT count(*) FROM tandem_read.projection WHERE position < %s"
        with (
            psycopg.connect(self._stack.write_url, autocommit=True) as write,
            psycopg.connect(self._stack.read_url, autocommit=True) as read,
        ):
            [head] = write.execute("SELECT position FROM tandem_write.feed_head").fetchall()
            try:
                wait_until(lambda: read.execute(behind, head).fetchone() == (0,), "views follow", _CATCH_UP_SECONDS)
            except AssertionError:
                return False
        return True


def _numbers_from(stack: Stack) -> Iterator[int]:
    """Of orders that nobody has placed yet."""
    with psycopg.connect(stack.write_url, autocommit=True) as connection:
        [(count,)] = connection.execute("SELECT count(*) FROM tandem_write.customer_order").fetchall()
    return iter(range(1_000 + 10 * count, 10_000_000))


def _launch(server: Service) -> None:
    server.launch()
    server.wait_until_serving(_START_SECONDS)


def _end(server: Child) -> None:
    if server.exit_code() is None:
        server.stop()


def _counted(call: Any, requests: Sequence[Any], server: Service) -> str:
    """How many are answered, and with which statuses the others are not."""
    outcomes: Counter[str] = Counter()
    for start in range(0, len(requests), IN_FLIGHT):
        futures = [call.future(it, timeout=10) for it in requests[start : start + IN_FLIGHT]]
        for future in futures:
            outcomes["OK" if future.exception() is None else future.code().name] += 1
    if outcomes["OK"] == len(requests):
        return f"{len(requests)} of {len(requests)} calls answered"
    others = ", ".join(f"{count} {name}" for name, count in outcomes.most_common() if name != "OK")
    reason = _told(server.log.read_text(encoding="utf-8", errors="replace"))
    return f"{outcomes['OK']} of {len(requests)} calls answered, {others}" + (f" ({reason})" if reason else "")


def _told(log: str) -> str:
    """What PostgreSQL said first of what a pooler spoils."""
    found = _TOLD.search(log)
    return found[0].replace("\\", "") if found else ""


def _features(url: str) -> dict[str, str]:
    """Each with two clients that take turns, as callers of a service do."""
    checks: dict[str, Callable[[Any, Any], bool]] = {
        "SET for the session, there in the next transaction and not at another client": _sets,
        "LISTEN": _listens,
        "advisory locks of a session": _locks,
        "prepared statements": _prepares,
        "a pipeline in one transaction": _pipelines,
    }
    found = {}
    for what, check in checks.items():
        with (
            psycopg.connect(url, autocommit=True) as one,
            psycopg.connect(url, autocommit=True) as other,
        ):
            try:
                found[what] = "yes" if check(one, other) else "no"
            except psycopg.Error as error:
                found[what] = f"no: {str(error).splitlines()[0]}"
    return found


def _sets(one: Any, other: Any) -> bool:
    one.execute("SET statement_timeout = 1234")
    theirs = other.execute("SHOW statement_timeout").fetchone()
    return (one.execute("SHOW statement_timeout").fetchone(), theirs) == (("1234ms",), ("0",))


def _listens(one: Any, other: Any) -> bool:
    one.execute("LISTEN scale_test")
    other.execute("NOTIFY scale_test, 'heard'")
    return [it.payload for it in one.notifies(timeout=2.0, stop_after=1)] == ["heard"]


def _locks(one: Any, other: Any) -> bool:
    takes = "SELECT pg_try_advisory_lock(4711)"
    return (one.execute(takes).fetchone(), other.execute(takes).fetchone()) == ((True,), (False,))


def _prepares(one: Any, other: Any) -> bool:
    for _ in range(3):
        for number, connection in enumerate((one, other)):
            answer = connection.execute(f"SELECT %s + {number}", (1,), prepare=True).fetchone()
            if answer != (1 + number,):
                return False
    return True


def _pipelines(one: Any, other: Any) -> bool:
    with one.transaction(), one.pipeline():
        cursors = [one.execute("SELECT %s::int", (number,)) for number in range(3)]
        other.execute("SELECT 1")
    return [it.fetchone() for it in cursors] == [(0,), (1,), (2,)]


def _without_being_told(postgres: Postgres, folder: Path, url: str) -> str:
    """What a service meets at a PgBouncer as it is installed."""
    pooler = PgBouncer(postgres, "session", folder / "untold", {})
    pooler.start()
    try:
        psycopg.connect(url.replace(postgres.address, pooler.address), options="-c lock_timeout=1s").close()
    except psycopg.OperationalError as error:
        said = str(error).rpartition("FATAL:")[2].strip()
        return f"Without ignore_startup_parameters = options it takes no service at all: {said}."
    finally:
        pooler.stop()
    return "It takes services as it is installed."


def _table(title: str, found: dict[str, dict[str, str]], notes: Sequence[str] = ()) -> Table:
    rows = [(what, *(found[mode][what] for mode in MODES)) for what in found[MODES[0]]]
    return Table(title, ("", *(f"by {mode}" for mode in MODES)), rows, notes)
