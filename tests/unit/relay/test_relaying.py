"""A relay that stops leaves nothing, whatever its broker does."""

from types import SimpleNamespace
from typing import Any

import pytest

from tandem.relay.relaying import Relay
from tandem.relay.settings import RelaySettings


async def test_a_broker_that_cannot_be_left_keeps_no_connection_to_the_feed_open() -> None:
    closed: list[str] = []

    async def fail() -> None:
        raise ConnectionResetError("the broker is gone")

    source: Any = SimpleNamespace(close=lambda: closed.append("the feed"))
    sink: Any = SimpleNamespace(close=fail)
    nothing: Any = None
    relay = Relay(source, nothing, sink, RelaySettings(), "one")
    with pytest.raises(ConnectionResetError):
        await relay.stop()
    assert closed == ["the feed"]
