"""How channels are made: options and a service config that fit Tandem's servers."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SERVICE_CONFIG: dict[str, Any] = {
    # Every server that the name resolves to gets its share of the calls; one that goes is left out.
    "loadBalancingConfig": [{"round_robin": {}}],
}
"""gRPC's service config: https://github.com/grpc/grpc/blob/master/doc/service_config.md"""

CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
    # Sessions repeat calls (call.py). Where channels do, one in thousands of calls that find no server gets its status
    # and never the rest: whoever waits for a message waits for ever (docs/adr/0019-channels-do-not-repeat.md).
    ("grpc.enable_retries", 0),
    # A server that went without a word is noticed within 40 s, also where only a stream waits. The servers take a ping
    # every 10 s.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # A server that restarts is back within seconds; the default pause grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # How long one attempt to connect may take, in spite of its name: a server that is starting, or busy, answers late.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    # The servers have the limit, 4 MiB unless set; one that was given more is not to be cut short here.
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
)
"""For grpc.insecure_channel, grpc.secure_channel and their asyncio twins."""


def options_for(address: str, chosen: Sequence[tuple[str, Any]] = ()) -> list[tuple[str, Any]]:
    """The options of a channel to `address`, `chosen` ones in place of those above."""
    options = dict(CHANNEL_OPTIONS)
    if "," in address:
        # "ipv4:127.0.0.1:50051,127.0.0.1:50061" would be each call's :authority, and is no name that HTTP/2 allows.
        options["grpc.default_authority"] = "tandem"
    return list((options | dict(chosen)).items())


@dataclass(frozen=True)
class CallDefaults:
    """What a call gets that says nothing itself.

    timeout: seconds for all tries together; a query's max_wait comes on top. Longer than any wait that servers offer by
        default (2 s for a view, 5 s for a statement), shorter than a person's patience. A stream has none.
    token: gives the token that each try sends as `authorization: Bearer …`: a new one where the last has expired. Over
        plaintext it can be read on the way.
    wait_for_ready: whether calls and streams wait for a connection, calls up to their timeout, rather than fail as
        UNAVAILABLE at once; one to a server that stops counts as none.
    """

    timeout: float = 10.0
    wait_for_ready: bool = False
    token: Callable[[], str] | None = None


def token_of(file: Path) -> Callable[[], str]:
    """For CallDefaults: what a file holds, read for each try, since others replace it before it expires."""
    return lambda: file.read_text(encoding="ascii").strip()
