"""What it costs that callers are known: cached reads with a token, and by callers who see their own rows alone.

Each against the same reads of a server that asks nobody who he is. What is verified is remembered: the calls of a turn
all bring one token, as those of a service do. h2load sends it as Envoy does: whole with each call, in Huffman's code.

What a call costs is the server's processor time for it. Two processes of the same code differ in that by some percent,
so there are several of each kind, and each turn takes the next of them. Those that ask nobody have the turns before and
after each of the others: their mean is what it is compared with, and how much they differ says what can be known.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path

from benchmarks import shop
from benchmarks.load import h2load
from benchmarks.measure import Figure, Result, Sample, Spread, alternate, at_most, rate, ratios
from benchmarks.plan import Plan
from benchmarks.world import QUERIES, World
from commerce.query.v1.query_service_pb2 import GetOrderDetailsRequest
from tandem.cli.child import Child
from tests.support.issuer import AUDIENCE, ISSUER, Issuer

METHOD = QUERIES + "GetOrderDetails"
OPEN = "nobody is asked"
ANOTHER = "nobody is asked, again"
KNOWN = "with a token"
OWN = "with a token, own rows"

# Servers of each kind. Another round is a turn of each of them.
_PROCESSES = 3
# Longer than all turns together.
_TOKEN_SECONDS = 3600.0
_POLICY = f"""
[rpcs."{METHOD.split("/")[1]}"]
GetOrderDetails = ["clerk", "customer:own"]
"""


def run(world: World, plan: Plan) -> list[Result]:
    issuer = Issuer()
    keys, policy = world.folder / "keys.json", world.folder / "policy.toml"
    keys.write_text(issuer.keys(), encoding="utf-8")
    policy.write_text(_POLICY, encoding="utf-8")
    asking_settings = {
        "SERVER__POLICY_FILE": str(policy),
        "SERVER__AUTHENTICATION__TOKEN__ISSUER": ISSUER,
        "SERVER__AUTHENTICATION__TOKEN__AUDIENCE": AUDIENCE,
        "SERVER__AUTHENTICATION__TOKEN__KEYS_FILE": str(keys),
    }
    with ExitStack() as exits:
        started: list[Iterator[Child]] = []
        for settings in ({}, asking_settings):
            servers = [world.stack.new_query_server(**settings) for _ in range(_PROCESSES)]
            for server in servers:
                exits.callback(server.stop)
                server.start()
            started.append(cycle(servers))
        open_to_all, asking = started

        def measure(bodies: Path, token: str | None) -> Sample:
            server = next(open_to_all if token is None else asking)
            target = world.target(server, METHOD, *([] if token is None else [f"authorization: Bearer {token}"]))
            return h2load.measure(target, bodies, in_flight=plan.in_flight, seconds=plan.seconds, warm_up=plan.warm_up)

        clerk = issuer.token("clerk", seconds=_TOKEN_SECONDS, roles=["clerk"])
        buyer = shop.customer_id(0)
        owner = issuer.token(buyer, seconds=_TOKEN_SECONDS, roles=["customer"])
        every, own = world.order_requests(world.orders), orders_of(world, buyer)
        rounds = plan.rounds * _PROCESSES

        def between(bodies: Path, contender: str, token: str) -> dict[str, list[Sample]]:
            return alternate(
                {
                    OPEN: lambda: measure(bodies, None),
                    contender: lambda: measure(bodies, token),
                    ANOTHER: lambda: measure(bodies, None),
                },
                rounds,
            )

        known, owned = between(every, KNOWN, clerk), between(own, OWN, owner)
    return [
        Result(
            f"GetOrderDetails, cached, callers known, {plan.in_flight} in flight",
            known,
            _figures(known, KNOWN),
            [at_most("the server's processor time, times that without", times_open(known, KNOWN, server_time), 1.15)],
        ),
        Result(
            f"GetOrderDetails, cached, of one's own, {plan.in_flight} in flight",
            owned,
            [
                *_figures(owned, OWN),
                _figure("the server's time, times without", times_open(owned, OWN, server_time)),
            ],
        ),
    ]


def server_time(sample: Sample) -> float:
    """Processor seconds of the server for a call."""
    return sample.cpu["server"]


def times_open(
    samples: Mapping[str, Sequence[Sample]], contender: str, value: Callable[[Sample], float]
) -> list[float]:
    """A contender's value over the mean of its neighbours', who ask nobody, in each round."""
    rounds = zip(samples[OPEN], samples[contender], samples[ANOTHER], strict=True)
    return [2 * value(it) / (value(before) + value(after)) for before, it, after in rounds]


def _figures(samples: Mapping[str, Sequence[Sample]], contender: str) -> list[Figure]:
    return [
        _figure("the server's time, two that ask nobody", ratios(samples, ANOTHER, OPEN, server_time)),
        _figure("rate, times without", times_open(samples, contender, rate)),
    ]


def _figure(name: str, values: list[float]) -> Figure:
    return Figure(name, Spread.of(values), "")


def orders_of(world: World, customer_id: str) -> Path:
    """Bodies for GetOrderDetails: all orders of one customer."""
    placed = (shop.order(number) for number in range(world.orders))
    return world.bodies(GetOrderDetailsRequest(order_id=it.order_id) for it in placed if it.customer_id == customer_id)
