"""grpcurl lines to paste: they work as they are, one after the other, in any shell."""

import json
import shlex
import sys
from pathlib import Path

from shop import sample
from tandem.client.command import new_id

_QUERY = "commerce.query.v1.QueryService/GetOrderDetails"
_SALES = "commerce.query.v1.QueryService/GetSalesSummary"
_COMMAND = "commerce.command.v1.CommandService/PlaceOrder"


def lines(command_address: str, query_address: str, with_sample: bool) -> list[str]:
    """With the sample's ids; without the sample only what needs no data."""
    grpcurl = f"{_grpcurl()} -plaintext"
    found = [f"{grpcurl} {command_address} list"]
    if not with_sample:
        return found
    order = {"order_id": sample.identity("order", 1)}
    placed = {
        "order_id": new_id(),
        "customer_id": sample.identity("customer", 1),
        "lines": [{"product_id": sample.identity("product", 1), "quantity": 2}],
    }
    spring = {"start_date": "2025-03-01", "end_date": "2025-05-31", "top_products": 3}
    fresh = {"order_id": placed["order_id"], "consistency": {"at_least_as_fresh": "$TOKEN"}}
    place = f"{grpcurl} -d {shlex.quote(json.dumps(placed))} {command_address} {_COMMAND}"
    # The answer is shown, and its token kept for the line after.
    keep = r"""tee /dev/stderr | sed -n 's/.*"consistencyToken": "\([^"]*\)".*/\1/p'"""
    read = json.dumps(fresh).replace('"', r"\"")
    return [
        *found,
        f"{grpcurl} -d {shlex.quote(json.dumps(order))} {query_address} {_QUERY}",
        f"TOKEN=$({place} | {keep})",
        f'{grpcurl} -d "{read}" {query_address} {_QUERY}',
        f"{grpcurl} -d {shlex.quote(json.dumps(spring))} {query_address} {_SALES}",
    ]


def _grpcurl() -> str:
    """The grpcurl beside this Python, which need not be on the caller's PATH; without one, by name."""
    beside = Path(sys.executable).with_name("grpcurl")
    if not beside.exists():
        return "grpcurl"
    here = Path.cwd()
    return shlex.quote(str(beside.relative_to(here) if beside.is_relative_to(here) else beside))
