"""What may break: each kind with how it begins and ends, and within how many seconds all is well again afterwards."""

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import grpc
import psutil
import psycopg

from nemesis.clients import CUSTOMERS, PRODUCTS, WATCHED
from nemesis.cluster import Cluster, flush
from shop.cli import SHOP
from tandem.cli import calls
from tandem.cli.child import Child
from tandem.cli.services import Service
from tandem.testing.stack import kill, pause, resume, wait_until
from tests.support.builders import identity
from tests.support.proxy import CuttingProxy
from tests.support.silence import Stopped

BOUND_SECONDS = 30.0
"""Where a program or a database was ended or stood still: its start is in it."""
QUICK_BOUND_SECONDS = 10.0
"""The same where every program and database goes on."""
_PATIENCE = 60.0
"""Seconds until rows are parked, or redriven."""


class Fault(NamedTuple):
    """One fault, chosen. what: for the log. begin: makes it. end: takes it away."""

    what: str
    begin: Callable[[], None]
    end: Callable[[], None]


class Kind(NamedTuple):
    """A kind of fault. bound: seconds from its end until every server writes and reads the newest, and says SERVING.

    choose: one of the kind. possible: whether this machine can make it. held: how many times the usual time it lasts.
    """

    name: str
    bound: float
    choose: Callable[[Cluster, random.Random], Fault]
    possible: Callable[[Cluster], bool] = lambda _: True
    held: float = 1.0


def _nothing() -> None:
    """For what ends by itself."""


def _killed(section: str) -> Callable[[Cluster, random.Random], Fault]:
    def choose(cluster: Cluster, chance: random.Random) -> Fault:
        name, service = _one_of(cluster, section, chance)
        return Fault(name, lambda: kill(service), service.launch)

    return choose


def _paused(section: str) -> Callable[[Cluster, random.Random], Fault]:
    def choose(cluster: Cluster, chance: random.Random) -> Fault:
        name, service = _one_of(cluster, section, chance)
        return Fault(name, lambda: pause(service), lambda: resume(service))

    return choose


def _one_of(cluster: Cluster, section: str, chance: random.Random) -> tuple[str, Service]:
    return chance.choice([it for it in cluster.services.items() if it[0].startswith(section)])


def _database_killed(cluster: Cluster, chance: random.Random) -> Fault:
    side = chance.choice(list(cluster.databases))
    database = cluster.databases[side]
    return Fault(side, lambda: kill(database), database.launch)


def _database_paused(cluster: Cluster, chance: random.Random) -> Fault:
    side = chance.choice(list(cluster.databases))
    silence = Stopped(cluster.databases[side])
    return Fault(side, silence.begin, silence.end)


def _disk_full(cluster: Cluster, chance: random.Random) -> Fault:
    side = chance.choice(list(cluster.disks))
    disk, database = cluster.disks[side], cluster.databases[side]

    def end() -> None:
        disk.free()
        # A server that cannot write its log ends, and whoever runs it starts it again.
        if database.exit_code() is not None:
            database.stop()
            database.launch()

    return Fault(side, disk.fill, end)


def _has_small_disks(cluster: Cluster) -> bool:
    return all(it.is_small for it in cluster.disks.values())


def _has_nodes(cluster: Cluster) -> bool:
    return bool(cluster.nodes)


def _node_killed(cluster: Cluster, chance: random.Random) -> Fault:
    name = chance.choice(list(cluster.nodes))
    node = cluster.nodes[name]
    return Fault(name, lambda: kill(node), node.launch)


def _node_paused(cluster: Cluster, chance: random.Random) -> Fault:
    name = chance.choice(list(cluster.nodes))
    node = cluster.nodes[name]
    return Fault(name, lambda: pause(node), lambda: resume(node))


def _node_wiped(cluster: Cluster, chance: random.Random) -> Fault:
    name = chance.choice(list(cluster.nodes))
    return Fault(name, lambda: flush(cluster.nodes[name]), _nothing)


def _old_content(cluster: Cluster, chance: random.Random) -> Fault:
    """Another node takes the address, and then the old one has it again, with all that it had."""
    name = chance.choice(list(cluster.nodes))
    proxy = cluster.proxies[name]
    return Fault(name, lambda: proxy.lead_to(cluster.spares[name]), lambda: proxy.lead_to(cluster.nodes[name]))


def _clock_stepped(cluster: Cluster, chance: random.Random) -> Fault:
    seconds = chance.choice((-86_400, -3_600, -30, 30, 3_600, 86_400))
    return Fault(f"command 2 by {seconds} s", lambda: _write(cluster, str(seconds)), lambda: _write(cluster, "0"))


def _write(cluster: Cluster, text: str) -> None:
    new = cluster.clock.with_suffix(".new")
    new.write_text(text)
    new.rename(cluster.clock)


def _restarted(cluster: Cluster, chance: random.Random) -> Fault:
    """One server after the other, as a new release is brought out: the next when the one before serves."""
    names = list(cluster.services)
    chance.shuffle(names)

    def restart() -> None:
        for name in names:
            cluster.services[name].stop()
            cluster.services[name].start()

    return Fault(", ".join(names), restart, _nothing)


def _row_refused(cluster: Cluster, chance: random.Random) -> Fault:
    """The read database takes some rows of a view no more. Then it does, and an operator redrives what is parked."""
    kind, count, views = chance.choice(
        (
            ("order", WATCHED, ("order_details", "order_summary")),
            ("product", PRODUCTS, ("product_card",)),
            ("customer", CUSTOMERS, ("customer_profile",)),
        )
    )
    view = chance.choice(views)
    # Of one that clients use, and of half of all others: a row that is parked may not be there yet, and on a busy
    # machine few commands come meanwhile.
    digits = {identity(kind, chance.randint(1, count))[-1], *chance.sample("0123456789abcdef", 8)}

    def execute(statement: str) -> list[Any]:
        with psycopg.connect(cluster.read_url, autocommit=True) as connection:
            done = connection.execute(statement.encode())
            return done.fetchall() if done.description else []

    def begin() -> None:
        taken = f"right(key::text, 1) !~ '[{''.join(sorted(digits))}]'"
        execute(f"ALTER TABLE tandem_read.{view} ADD CONSTRAINT refused CHECK ({taken}) NOT VALID")

    def end() -> None:
        parked = f"SELECT key FROM tandem_read.parked WHERE view = '{view}'"
        wait_until(lambda: execute(parked), f"rows of {view} are parked", _PATIENCE)
        execute(f"ALTER TABLE tandem_read.{view} DROP CONSTRAINT refused")
        with grpc.insecure_channel(_one_of(cluster, "projector", chance)[1].address) as projector:
            ask = partial(calls.ask, SHOP.projections, channel=projector, timeout=10)
            asked = ask("RedriveParkedKeys", fields={"view": view}).operation_id
            wait_until(
                lambda: ask("GetOperation", fields={"operation_id": asked}).done, f"{view} is redriven", _PATIENCE
            )

    return Fault(view, begin, end)


_NEAR = {
    "clients": "clients and a server",
    "write": "a server and the write database",
    "read": "a server and the read database",
    "node": "a server and a cache node",
}


def _links(cluster: Cluster, near: str, chance: random.Random) -> tuple[str, list[CuttingProxy]]:
    """One link of those, or all links of one target: a network that is split in two."""
    chosen = [it for it in cluster.links if it[0 if near == "clients" else 1].startswith(near)]
    source, target = chance.choice(sorted(chosen))
    if near != "clients" and chance.random() < 0.3:
        return f"all and {target}", [link for (_, it), link in cluster.links.items() if it == target]
    return f"{source} and {target}", [cluster.links[source, target]]


def _link_kinds() -> Iterator[Kind]:
    def each(do: Callable[[CuttingProxy], None], links: Sequence[CuttingProxy]) -> Callable[[], None]:
        def act() -> None:
            for link in links:
                do(link)

        return act

    def delay(seconds: float) -> Callable[[CuttingProxy], None]:
        return lambda link: setattr(link, "delay", seconds)

    ways: dict[str, tuple[Callable[[CuttingProxy], None], Callable[[CuttingProxy], None]]] = {
        "cut off": (CuttingProxy.refuse, CuttingProxy.admit),
        "slow (each piece by 0.1 s)": (delay(0.1), delay(0)),
        "silent": (CuttingProxy.be_silent, CuttingProxy.speak),
        "silent towards the server": (lambda it: it.be_silent(to_client=False), CuttingProxy.speak),
        "silent from the server": (lambda it: it.be_silent(to_server=False), CuttingProxy.speak),
    }
    for near, words in _NEAR.items():
        for way, (begin, end) in ways.items():

            def choose(
                cluster: Cluster,
                chance: random.Random,
                near: str = near,
                begin: Callable[[CuttingProxy], None] = begin,
                end: Callable[[CuttingProxy], None] = end,
            ) -> Fault:
                what, links = _links(cluster, near, chance)
                return Fault(what, each(begin, links), each(end, links))

            possible = _has_nodes if near == "node" else (lambda _: True)
            yield Kind(f"between {words}: {way}", QUICK_BOUND_SECONDS, choose, possible)


_ALONE: tuple[Kind, ...] = (
    Kind("a command server is killed", BOUND_SECONDS, _killed("command")),
    Kind("a projector is killed", BOUND_SECONDS, _killed("projector")),
    Kind("a query server is killed", BOUND_SECONDS, _killed("query")),
    Kind("a database is killed", BOUND_SECONDS, _database_killed),
    Kind("a cache node is killed, and starts empty", QUICK_BOUND_SECONDS, _node_killed, _has_nodes),
    Kind("a command server is stopped for long (SIGSTOP)", QUICK_BOUND_SECONDS, _paused("command"), held=3.0),
    Kind("a projector is stopped for long (SIGSTOP)", QUICK_BOUND_SECONDS, _paused("projector"), held=3.0),
    Kind("a query server is stopped for long (SIGSTOP)", QUICK_BOUND_SECONDS, _paused("query"), held=3.0),
    Kind("a database is stopped for long (SIGSTOP)", BOUND_SECONDS, _database_paused, held=3.0),
    Kind("a cache node is stopped for long (SIGSTOP)", QUICK_BOUND_SECONDS, _node_paused, _has_nodes, held=3.0),
    Kind("a cache node is wiped", QUICK_BOUND_SECONDS, _node_wiped, _has_nodes),
    Kind("a cache node comes back with old content", QUICK_BOUND_SECONDS, _old_content, _has_nodes),
    Kind("the disk of a database is full", BOUND_SECONDS, _disk_full, _has_small_disks),
    Kind("the clock of a command server steps", QUICK_BOUND_SECONDS, _clock_stepped),
    *_link_kinds(),
)


def _two(cluster: Cluster, chance: random.Random) -> Fault:
    """Of different kinds, at different places; the one that began first ends first."""
    possible = [it for it in _ALONE if it.possible(cluster)]
    while True:
        kinds = chance.sample(possible, 2)
        one, other = (it.choose(cluster, chance) for it in kinds)
        if one.what != other.what:
            break

    def begin() -> None:
        one.begin()
        other.begin()

    def end() -> None:
        one.end()
        other.end()

    return Fault("; ".join(f"{kind.name}, {it.what}" for kind, it in zip(kinds, (one, other), strict=True)), begin, end)


KINDS: tuple[Kind, ...] = (
    *_ALONE,
    Kind("all servers are restarted, one after the other", BOUND_SECONDS, _restarted),
    Kind("rows of a view are refused, and redriven at its end", QUICK_BOUND_SECONDS, _row_refused),
    Kind("two of these at once", BOUND_SECONDS, _two),
    Kind("two of these at once, for long", BOUND_SECONDS, _two, held=3.0),
)


def end_all(cluster: Cluster) -> None:
    """Whatever was broken when a run fails: so that everything can be stopped."""
    for link in cluster.links.values():
        link.delay = 0
        link.speak()
        link.admit()
    children: list[Child] = [*cluster.services.values(), *cluster.nodes.values()]
    for child in children:
        if child.exit_code() is None:
            resume(child)
    for database in cluster.databases.values():
        with contextlib.suppress(psutil.Error):
            Stopped(database).end()
