"""What it costs that callers are known: cached reads by callers with a token, or whose token a sidecar has verified.

Each against the same reads of a server that asks nobody who he is. What is verified is remembered. The calls of a turn
are of one caller, as those of a service are, or of many at random, as those of customers are whose calls share Envoy's
connections to a server: HTTP/2 remembers few of their headers. h2load sends them as Envoy does: `authorization` whole
with each call, in Huffman's code, and `tandem-claims` as a number while the connection's table has it.

What a call costs is the server's processor time for it. Two processes of the same code differ in that by some percent,
so there are several of each kind, and each turn takes the next of them. Those that ask nobody have the turns before and
after each of the others: their mean is what it is compared with, and how much they differ says what can be known.
"""

import random
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

from benchmarks import shop
from benchmarks.load import h2load
from benchmarks.measure import Bar, Figure, Result, Sample, Spread, alternate, at_most, rate, ratios
from benchmarks.plan import Plan
from benchmarks.world import QUERIES, World
from commerce.query.v1.query_service_pb2 import GetOrderDetailsRequest
from tandem.cli.child import Child
from tests.support.issuer import AUDIENCE, ISSUER, Issuer, claims_of

METHOD = QUERIES + "GetOrderDetails"
OPEN = "nobody is asked"
ANOTHER = "nobody is asked, again"

# Servers of each kind: in `make bench`, and apart. Another round is a turn of each of them.
_FEW, _PROCESSES = 2, 3
# Longer than all turns together.
_TOKEN_SECONDS = 3600.0
_MANY = 64
_OWN = 0
_KEYS = "keys.json"
_SIDECAR = {"VERIFIED_BY_SIDECAR": "true"}
# In the file of them: more than one connection's table of headers has, and in no order.
_DRAWN = 20_000
_POLICY = f"""
[rpcs."{METHOD.split("/")[1]}"]
GetOrderDetails = ["clerk", "customer:own"]
"""
_BAR = 1.15


@dataclass(frozen=True)
class Way:
    """A way of being known. header: what says of a token who calls, as the server is sent it. transport: of the server.

    One that callers of a network reach is on grpcio, or behind a sidecar.
    """

    name: str
    settings: Mapping[str, str]
    header: Callable[[str], str]
    bar: float | None
    transport: str = "native"


def run(world: World, plan: Plan) -> list[Result]:
    """One way, as a call comes from Envoy: half a minute. `run_all` has the others."""
    return _measure(world, plan, _FEW, [Way("with a sidecar's claims", _SIDECAR, claims_header, _BAR)], [_MANY])


def run_all(world: World, plan: Plan) -> list[Result]:
    """Every way, by one caller, by many, and by one who sees his own orders alone: ten minutes."""
    token = {"KEYS_FILE": str(world.folder / _KEYS), "OWNER_CLAIM": "customer_id"}
    with_token = Way("with a token", token, "authorization: Bearer {}".format, None)
    ways = [
        with_token,
        Way("with a sidecar's claims", _SIDECAR, claims_header, _BAR),
        replace(with_token, name="with a token, on grpcio", bar=_BAR, transport="grpcio"),
    ]
    return _measure(world, plan, _PROCESSES, ways, [1, _MANY, _OWN])


def _measure(world: World, plan: Plan, processes: int, ways: Sequence[Way], callers: Sequence[int]) -> list[Result]:
    """callers: how many there are in turn; _OWN is one who sees his own orders."""
    issuer = Issuer("RS256")
    policy = world.folder / "policy.toml"
    (world.folder / _KEYS).write_text(issuer.keys(), encoding="utf-8")
    policy.write_text(_POLICY, encoding="utf-8")
    customers = [shop.customer_id(number) for number in range(_MANY)]
    clerks, owners = (
        [token_of(issuer, number, role, customer) for number, customer in enumerate(customers)]
        for role in ("clerk", "customer")
    )
    every, own = world.order_requests(world.orders), orders_of(world, customers[0])
    results: list[Result] = []
    with ExitStack() as exits:

        def started(transport: str, settings: Mapping[str, str]) -> Iterator[Child]:
            settings = {"SERVER__TRANSPORT": transport, **settings}
            servers = [world.stack.new_query_server(**settings) for _ in range(processes)]
            for server in servers:
                exits.callback(server.stop)
                server.launch()
            for server in servers:
                server.wait_until_serving()
            return cycle(servers)

        open_to_all = {transport: started(transport, {}) for transport in {it.transport for it in ways}}

        def measure(servers: Iterator[Child], bodies: Path, callers: Path | None = None) -> Sample:
            target = replace(world.target(next(servers), METHOD), callers=callers)
            return h2load.measure(target, bodies, in_flight=plan.in_flight, seconds=plan.seconds, warm_up=plan.warm_up)

        def between(way: Way, asking: Iterator[Child], bodies: Path, callers: Path) -> dict[str, list[Sample]]:
            return alternate(
                {
                    OPEN: lambda: measure(open_to_all[way.transport], bodies),
                    way.name: lambda: measure(asking, bodies, callers),
                    ANOTHER: lambda: measure(open_to_all[way.transport], bodies),
                },
                plan.side_rounds * processes,
                say=plan.say,
            )

        for way in ways:
            said = {"ISSUER": ISSUER, "AUDIENCE": AUDIENCE, **way.settings}
            asking = started(
                way.transport,
                {f"SERVER__AUTHENTICATION__TOKEN__{name}": value for name, value in said.items()}
                | {"SERVER__POLICY_FILE": str(policy)},
            )
            kinds = {
                1: ("one caller", every, clerks[:1], way.bar),
                _MANY: (f"{_MANY} callers", every, clerks, way.bar),
                _OWN: ("one caller, of its own", own, owners[:1], None),
            }
            for who, bodies, tokens, bar in (kinds[it] for it in callers):
                file = callers_file(world.folder / "callers", [way.header(it) for it in tokens])
                name = f"GetOrderDetails, cached, {way.name}, {who}, {plan.in_flight} in flight"
                results.append(result_of(name, between(way, asking, bodies, file), way.name, bar))
    return results


def token_of(issuer: Issuer, number: int, role: str, customer: str) -> str:
    """A token as issuers make them, of some 900 characters: with more than anybody here reads."""
    drawn = random.Random(number)

    def some_id() -> str:
        return str(uuid.UUID(int=drawn.getrandbits(128)))

    return issuer.token(
        some_id(),
        seconds=_TOKEN_SECONDS,
        iat=1,
        auth_time=1,
        jti=some_id(),
        sid=some_id(),
        azp="shop-web",
        typ="Bearer",
        scope="openid profile",
        roles=[role],
        customer_id=customer,
    )


def claims_header(token: str) -> str:
    return f"tandem-claims: {claims_of(token, owner_claim='customer_id')}"


def callers_file(path: Path, headers: Sequence[str]) -> Path:
    """A file of them for the load generator, drawn at random. Returns the path."""
    drawn = random.Random("callers").choices(headers, k=_DRAWN if len(headers) > 1 else 1)
    path.write_text("".join(f"{it}\n" for it in drawn), encoding="utf-8")
    return path


def result_of(name: str, samples: Mapping[str, Sequence[Sample]], contender: str, limit: float | None) -> Result:
    text, times = "the server's processor time, times that without", times_open(samples, contender, server_time)
    figures = [
        _figure("the server's time, two that ask nobody", ratios(samples, ANOTHER, OPEN, server_time)),
        _figure("rate, times without", times_open(samples, contender, rate)),
    ]
    bars: list[Bar] = []
    if limit is None:
        figures.append(_figure(text, times))
    else:
        bars.append(at_most(text, times, limit))
    return Result(name, samples, figures, bars)


def server_time(sample: Sample) -> float:
    """Processor seconds of the server for a call."""
    return sample.cpu["server"]


def times_open(
    samples: Mapping[str, Sequence[Sample]], contender: str, value: Callable[[Sample], float]
) -> list[float]:
    """A contender's value over the mean of its neighbours', who ask nobody, in each round."""
    rounds = zip(samples[OPEN], samples[contender], samples[ANOTHER], strict=True)
    return [2 * value(it) / (value(before) + value(after)) for before, it, after in rounds]


def _figure(name: str, values: list[float]) -> Figure:
    return Figure(name, Spread.of(values), "")


def orders_of(world: World, customer_id: str) -> Path:
    """Bodies for GetOrderDetails: all orders of one customer."""
    ids = (shop.order_id(number) for number in range(world.orders) if shop.customer_of(number) == customer_id)
    return world.bodies(GetOrderDetailsRequest(order_id=it) for it in ids)
