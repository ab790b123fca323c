"""What many servers need, computed from what few of them were measured to take."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.scale.tables import Table

# Of each query server's processor, and of each ten calls how many are cached reads; the tenth is a list.
BUSY, CACHED_OF_TEN = 0.5, 9
ORDERS_PER_SECOND = 1000.0
_X = "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class Costs:
    """cached, listed, order: processor seconds of a call, by who spends them: "server", "stores", "Envoy".

    at_primary, at_replica: connections of a query server; pooled: that it may have; at_nodes: to each of `nodes`.
    of_command_server: connections of a command server. announcements: a second; with their bytes, and processor seconds
    of a query server and of PostgreSQL for each and each query server.
    """

    cached: Mapping[str, float]
    listed: Mapping[str, float]
    order: Mapping[str, float]
    at_primary: float
    at_replica: float
    pooled: float
    at_nodes: float
    nodes: int
    of_command_server: float
    announcements: float
    announcement_bytes: float
    announcement_heard: float
    announcement_sent: float


def needs(costs: Costs, *, query_servers: int, command_servers: int) -> Table:
    """Each result is the product, or the quotient, that stands before it."""
    cached, listed = CACHED_OF_TEN / 10, 1 - CACHED_OF_TEN / 10
    reads = query_servers * BUSY / (cached * costs.cached["server"] + listed * costs.listed["server"])
    mixed = f"({cached:.1f} {_X} {_us(costs.cached['server'])} + {listed:.1f} {_X} {_us(costs.listed['server'])})"
    delivered = query_servers * costs.announcements
    # More there cannot be: what waits together is announced together.
    alone = f"where each of {ORDERS_PER_SECOND:,.0f} orders/s is announced by itself"
    orders = f"for {ORDERS_PER_SECOND:,.0f} orders/s"
    rows = [
        ("reads/s", f"{query_servers} {_X} {BUSY:g} processors / {mixed}", f"{reads:,.0f}"),
        _seconds("processors of PostgreSQL for the lists, at replicas", reads * listed, costs.listed["stores"]),
        _seconds("processors of memcached", reads * cached, costs.cached["stores"]),
        _seconds("processors of Envoy", reads, cached * costs.cached["Envoy"] + listed * costs.listed["Envoy"]),
        _product("connections to replicas of the read database", query_servers, math.ceil(costs.at_replica)),
        _product("connections to its primary", query_servers, math.ceil(costs.at_primary)),
        _product("connections to PostgreSQL at most, by the sizes of the pools", query_servers, costs.pooled),
        _product("connections to each memcached node", query_servers, math.ceil(costs.at_nodes)),
        _product("announcements/s that are delivered", query_servers, costs.announcements),
        _product("Mbit/s for them", delivered, costs.announcement_bytes * 8 / 1e6, " Mbit"),
        _seconds("processors of the primary for them", delivered, costs.announcement_sent),
        _seconds("processor of each query server for them", costs.announcements, costs.announcement_heard),
        _seconds(f"processors of the primary {alone}", ORDERS_PER_SECOND * query_servers, costs.announcement_sent),
        _seconds(f"processor of each query server {alone}", ORDERS_PER_SECOND, costs.announcement_heard),
        _product("connections of command servers to the write database", command_servers, costs.of_command_server),
        _seconds(
            f"processor of each command server {orders}", ORDERS_PER_SECOND / command_servers, costs.order["server"]
        ),
        _seconds(f"processors of the stores {orders}, views too", ORDERS_PER_SECOND, costs.order["stores"]),
    ]
    return Table(
        f"What {query_servers} query servers and {command_servers} command servers need, computed from the tables: "
        f"query servers with {BUSY:.0%} of a processor each busy, {CACHED_OF_TEN} cached reads for each list",
        ("needed", "computed", "result"),
        rows,
    )


def _seconds(what: str, per_second: float, seconds: float) -> tuple[str, str, str]:
    return what, f"{per_second:,.0f}/s {_X} {_us(seconds)}", f"{per_second * seconds:,.2f}"


def _product(what: str, count: float, each: float, unit: str = "") -> tuple[str, str, str]:
    return what, f"{count:,.0f} {_X} {each:,.3g}{unit}", f"{count * each:,.0f}"


def _us(seconds: float) -> str:
    return f"{1e6 * seconds:,.0f} µs"
