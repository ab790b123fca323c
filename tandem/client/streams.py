"""Streams that go on: when one ends, another is opened from the last position that was received.

    for message in resuming(session.feed.Subscribe, SubscribeRequest(after_cursor=cursor)):

Nothing is missed and nothing comes twice, for as long as the iterator is used. A follower that keeps what it made of
the messages across its own restarts stores the position with it: `cursor` of the feed, `as_of` of a watch.
"""

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import Any, TypeVar

from google.protobuf.message import Message

from tandem.client.call import connection_broke
from tandem.client.errors import (
    CallFailed,
    DeadlineExceeded,
    EventUnreadable,
    MessageTooLarge,
    Overloaded,
    TokenExpired,
    Unavailable,
)

# A pause before each further stream: the first is short, since most ends are a server's that stops or a proxy's time
# limit, and another server is there. Drawn at random: a thousand followers of one server do not come back at once.
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 10.0
# What the servers do where the request says nothing, in seconds.
_HEARTBEAT = 15.0
_HEARTBEATS_MISSED = 3

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


RESUMPTIONS = {"after_cursor": "cursor", "resume_from": "as_of"}
"""The field of a request that says where a stream goes on, and the field of its messages that says how far it is."""


def resuming(call: Callable[[Request], Iterable[Response]], request: Request) -> Iterator[Response]:
    """The messages of a stream, and of those that follow it. It ends when it is closed.

    call: a stub's method, whose request has one of the fields in RESUMPTIONS.

    A stream without a message for three heartbeats is taken for dead. Raises CallFailed for what another stream would
    end with too: a request that is refused, a cursor that is outdated or not kept any more, an event that the server
    cannot read, a bug. All else is waited for: an outage however long, overload, a connection that breaks. After its
    token has expired a stream is opened once with the next one.
    """
    following = _Following(request)
    while True:
        stream: Any = call(following.request)
        watchdog = _Watchdog(stream.cancel, following.silence)
        try:
            for response in stream:
                watchdog.see()
                following.received(response)
                yield response
        except CallFailed as error:
            if not following.goes_on_after(error):
                raise
        finally:
            watchdog.stop()
            stream.cancel()
        time.sleep(following.pause())


async def async_resuming(
    call: Callable[[Request], AsyncIterable[Response]], request: Request
) -> AsyncIterator[Response]:
    """As `resuming`, for asyncio. A loop that is left before its end is to close it: contextlib.aclosing."""
    following = _Following(request)
    while True:
        stream: Any = call(following.request)
        try:
            responses = aiter(stream)
            while True:
                async with asyncio.timeout(following.silence):
                    response = await anext(responses)
                following.received(response)
                yield response
        except (StopAsyncIteration, TimeoutError):
            pass
        except CallFailed as error:
            if not following.goes_on_after(error):
                raise
        finally:
            stream.cancel()
        await asyncio.sleep(following.pause())


def may_be_resumed(error: CallFailed) -> bool:
    """Whether another stream may fare better."""
    if isinstance(error, EventUnreadable | MessageTooLarge):
        return False
    return connection_broke(error) or isinstance(error, Unavailable | Overloaded | DeadlineExceeded)


class _Following:
    """Where a follower is, and how long it has been getting nothing."""

    def __init__(self, request: Any) -> None:
        self.request = type(request)()
        self.request.CopyFrom(request)
        [self._goes_on] = RESUMPTIONS.keys() & self.request.DESCRIPTOR.fields_by_name.keys()
        beat = self.request.heartbeat_interval.ToTimedelta().total_seconds() or _HEARTBEAT
        self.silence = _HEARTBEATS_MISSED * beat
        """Seconds without a message after which a stream is dead."""
        self._longest = _FIRST_PAUSE
        self._was_open = False

    def received(self, response: Any) -> None:
        setattr(self.request, self._goes_on, getattr(response, RESUMPTIONS[self._goes_on]))
        self._longest = _FIRST_PAUSE
        self._was_open = True

    def goes_on_after(self, error: CallFailed) -> bool:
        """Whether another stream may fare better. One that ended with its token does, where that had let it in."""
        return may_be_resumed(error) or (isinstance(error, TokenExpired) and self._was_open)

    def pause(self) -> float:
        """Seconds until the next stream."""
        self._was_open = False
        drawn = random.uniform(0, self._longest)  # noqa: S311 - spreads load, keeps no secret
        self._longest = min(2 * self._longest, _LONGEST_PAUSE)
        return drawn


class _Watchdog:
    """Cancels a stream that says nothing for so many seconds, from a thread."""

    def __init__(self, cancel: Callable[[], Any], seconds: float) -> None:
        self._cancel = cancel
        self._seconds = seconds
        self._start()

    def see(self) -> None:
        """A message came. Timers are threads: a new one is made now and then, and not for each message."""
        if time.monotonic() - self._started > self._seconds / 10:
            self.stop()
            self._start()

    def stop(self) -> None:
        self._timer.cancel()

    def _start(self) -> None:
        self._started = time.monotonic()
        self._timer = threading.Timer(self._seconds, self._cancel)
        self._timer.daemon = True
        self._timer.start()
