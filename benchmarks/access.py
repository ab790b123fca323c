"""What it costs that callers are known: cached reads with a token, and by callers who see their own rows alone.

Each against the same reads of a server that asks nobody who he is. What is verified is remembered: the calls of a turn
all bring one token, as those of a service do.
"""

from contextlib import ExitStack
from pathlib import Path

from benchmarks import shop
from benchmarks.load import h2load
from benchmarks.measure import Result, Sample, alternate, at_least, ratios
from benchmarks.plan import Plan
from benchmarks.world import QUERIES, World
from commerce.query.v1.query_service_pb2 import GetOrderDetailsRequest
from tests.support.issuer import AUDIENCE, ISSUER, Issuer

METHOD = QUERIES + "GetOrderDetails"
OPEN = "nobody is asked"
KNOWN = "with a token"
OWN = "with a token, own rows"

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
    with ExitStack() as exits:
        asking = world.stack.new_query_server(
            SERVER__POLICY_FILE=str(policy),
            SERVER__AUTHENTICATION__TOKEN__ISSUER=ISSUER,
            SERVER__AUTHENTICATION__TOKEN__AUDIENCE=AUDIENCE,
            SERVER__AUTHENTICATION__TOKEN__KEYS_FILE=str(keys),
        )
        exits.callback(asking.stop)
        asking.start()

        def measure(bodies: Path, token: str | None) -> Sample:
            server = world.stack.query_server if token is None else asking
            target = world.target(server, METHOD, *([] if token is None else [f"authorization: Bearer {token}"]))
            return h2load.measure(target, bodies, in_flight=plan.in_flight, seconds=plan.seconds, warm_up=plan.warm_up)

        clerk = issuer.token("clerk", seconds=_TOKEN_SECONDS, roles=["clerk"])
        buyer = shop.customer_id(0)
        owner = issuer.token(buyer, seconds=_TOKEN_SECONDS, roles=["customer"])
        every, own = world.order_requests(world.orders), orders_of(world, buyer)
        known = alternate({OPEN: lambda: measure(every, None), KNOWN: lambda: measure(every, clerk)}, plan.rounds)
        owned = alternate({OPEN: lambda: measure(own, None), OWN: lambda: measure(own, owner)}, plan.rounds)
    return [
        Result(
            f"GetOrderDetails, cached, callers known, {plan.in_flight} in flight",
            known,
            # At most 15 % more for each call.
            bars=[at_least("with a token, times the rate without", ratios(known, KNOWN, OPEN), 1 / 1.15)],
        ),
        Result(f"GetOrderDetails, cached, of one's own, {plan.in_flight} in flight", owned),
    ]


def orders_of(world: World, customer_id: str) -> Path:
    """Bodies for GetOrderDetails: all orders of one customer."""
    placed = (shop.order(number) for number in range(world.orders))
    return world.bodies(GetOrderDetailsRequest(order_id=it.order_id) for it in placed if it.customer_id == customer_id)
