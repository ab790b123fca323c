"""The native transport, whose streams wait for a slow client on the event loop."""

import asyncio
from typing import Any

import pygrpc_native.aio
from pygrpc_native import STREAM_CLOSED, STREAM_FULL

# The transport keeps a message or two, so a client that reads as fast as it can makes us wait at every other one: the
# first pause bounds the messages a second that it gets. A thousand clients that do not read cost 4,000 looks a second.
_FIRST_PAUSE_SECONDS = 0.001
_LONGEST_PAUSE_SECONDS = 0.25


class NativeServer(pygrpc_native.aio.Server):
    """The library's, but for how a stream's message is sent.

    The library waits for room in a thread of the event loop's executor, one for each client that is behind. There are a
    handful of those threads, and readiness and others need them: a few clients that stop reading would stop the server.
    """

    async def _send(self, call: Any, context: Any, response: Any) -> bool:
        data = self._encode(call, context, response)
        if data is None:
            # Too large, and the caller has been told.
            call.cancel()
            return False
        front = self._front
        assert front is not None, "started"
        context._initial_sent = True
        pause = _FIRST_PAUSE_SECONDS
        while (sent := front.stream_try_send(call.call_id, data)) == STREAM_FULL:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        if sent == STREAM_CLOSED:
            # The library would let the handler write on into nothing.
            call.cancel()
        return bool(sent != STREAM_CLOSED)
