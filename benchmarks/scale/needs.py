"""What many servers need, computed from what few of them were measured to take."""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.scale.tables import Table

# Of each query server's processor, and of each ten calls how many are cached reads; the tenth is a list.
BUSY, CACHED_OF_TEN = 0.5, 9
ORDERS_PER_SECOND = 1000.0


@dataclass(frozen=True)
class Costs:
    """cached, listed, order: processor seconds of a call, by who spends them: "server", "stores", "Envoy".

    at_primary, at_replica: connections of a query server; at_nodes: to each of `nodes`. of_command_server: connections
    of a command server. announcements: a second; with their bytes, and processor seconds of a query server and of
    PostgreSQL for each and each query server.
    """

    cached: Mapping[str, float]
    listed: Mapping[str, float]
    order: Mapping[str, float]
    orders_rate: float
    at_primary: float
    at_replica: float
    at_nodes: float
    nodes: int
    of_command_server: float
    announcements: float
    announcement_bytes: float
    announcement_heard: float
    announcement_sent: float


def needs(costs: Costs, *, query_servers: int, command_servers: int) -> Table:
    """The arithmetic is in the table: every number of its last column follows from the one before it."""
    cached, listed = CACHED_OF_TEN / 10, 1 - CACHED_OF_TEN / 10
    mixed = cached * costs.cached["server"] + listed * costs.listed["server"]
    reads = query_servers * BUSY / mixed
    lists = reads * listed
    rows = [
        (
            "reads/s",
            f"{query_servers} servers × {BUSY:g} processors ÷ ({cached:.1f} × {_us(costs.cached['server'])} + {listed:.1f}"
            f" × {_us(costs.listed['server'])})",
            f"{reads:,.0f}",
        ),
        (
            "processors of PostgreSQL for the lists, at replicas",
            f"{lists:,.0f}/s × {_us(costs.listed['stores'])}",
            f"{lists * costs.listed['stores']:,.1f}",
        ),
        (
            "processors of memcached",
            f"{reads * cached:,.0f}/s × {_us(costs.cached['stores'])}",
            f"{reads * cached * costs.cached['stores']:,.1f}",
        ),
        (
            "processors of Envoy",
            f"{reads:,.0f}/s × {_us(costs.cached['Envoy'])}",
            f"{reads * costs.cached['Envoy']:,.1f}",
        ),
        (
            "connections to replicas of the read database, all together",
            f"{query_servers} × {costs.at_replica:.0f}",
            f"{query_servers * costs.at_replica:,.0f}",
        ),
        (
            "connections to its primary",
            f"{query_servers} × {costs.at_primary:.0f}",
            f"{query_servers * costs.at_primary:,.0f}",
        ),
        (
            "connections to each memcached node",
            f"{query_servers} × {costs.at_nodes:.0f}",
            f"{query_servers * costs.at_nodes:,.0f}",
        ),
        (
            "announcements/s that are delivered",
            f"{query_servers} × {costs.announcements:,.0f}",
            f"{query_servers * costs.announcements:,.0f}",
        ),
        (
            "network for them, Mbit/s",
            f"{query_servers * costs.announcements:,.0f}/s × {costs.announcement_bytes:,.0f} bytes",
            f"{query_servers * costs.announcements * costs.announcement_bytes * 8 / 1e6:,.1f}",
        ),
        (
            "processors of the primary for them",
            f"{query_servers * costs.announcements:,.0f}/s × {_us(costs.announcement_sent)}",
            f"{query_servers * costs.announcements * costs.announcement_sent:,.2f}",
        ),
        (
            "part of each query server's processor for them",
            f"{costs.announcements:,.0f}/s × {_us(costs.announcement_heard)}",
            f"{costs.announcements * costs.announcement_heard:.1%}",
        ),
        (
            "connections to the write database, of command servers",
            f"{command_servers} × {costs.of_command_server:.0f}",
            f"{command_servers * costs.of_command_server:,.0f}",
        ),
        (
            f"part of each command server's processor for {ORDERS_PER_SECOND:,.0f} orders/s",
            f"{ORDERS_PER_SECOND:,.0f}/s × {_us(costs.order['server'])} ÷ {command_servers}",
            f"{ORDERS_PER_SECOND * costs.order['server'] / command_servers:.1%}",
        ),
        (
            "processors of the stores for them, views too",
            f"{ORDERS_PER_SECOND:,.0f}/s × {_us(costs.order['stores'])}",
            f"{ORDERS_PER_SECOND * costs.order['stores']:,.2f}",
        ),
    ]
    return Table(
        f"What {query_servers} query servers and {command_servers} command servers need, computed from the tables above:"
        f" query servers with {BUSY:.0%} of a processor each busy, {CACHED_OF_TEN} cached reads for each list",
        ("needed", "computed", "result"),
        rows,
    )


def _us(seconds: float) -> str:
    return f"{1e6 * seconds:,.0f} µs"
