"""NATS JetStream: a stream for each epoch of the feed, in which an event's sequence is its position.

Each event is published with the expectation that the one before it is the stream's last: the broker refuses a gap and
a double, whoever publishes. So several are in flight at once, any number of relays may try, and the stream itself says
where to go on.

    stream   tandem-0190b3…            the epoch's 32 hexadecimal digits
    subject  tandem.0190b3….kind.key   kind: of the event; key: the id of the aggregate that it is about

Nobody deletes single messages from a stream, which denies it: a hole would not be told from a loss. Who wants a stream
anew deletes it, and the relay fills it again.
"""

import asyncio
import contextlib
import itertools
import json
import ssl
import uuid
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, Header, RetentionPolicy, StorageType, StreamConfig, StreamInfo
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError

from tandem.feed.table import MAX_EVENT_BYTES
from tandem.relay.cloud_events import CloudEvent
from tandem.relay.settings import NatsSettings, secret_of
from tandem.relay.sink import Origin, Place, PlaceTaken, SinkAway, SinkRefused
from tandem.runtime.telemetry import log

PREFIX = "ce-"
"""Of the headers with a CloudEvent's attributes."""
RELAY_HEADER = "Tandem-Relay"
"""Which relay published a message."""
EPOCH, FIRST, PERSONAL_DATA = "tandem.epoch", "tandem.first", "tandem.personal-data"
HEAD, ENDED = "tandem.head", "tandem.ended"
"""What a stream's metadata says of it: the feed's epoch, the position it begins with, how personal data is in it; and
where the feed was when it was made, and which epochs that had before.
"""

# Of a message: an event as large as they come, which upcasting may let grow by little, with its headers.
LARGEST_MESSAGE = MAX_EVENT_BYTES + 64 * 1024
_WRONG_LAST_SEQUENCE = 10071
_NAME_IN_USE = 10058
_NO_RESPONDERS = "503"
_CONNECT_SECONDS = 2
_RECONNECT_SECONDS = 0.5
_LOOK_SECONDS = 0.005
# A line that is cut says nothing, to neither end: whoever has not answered three of these is given up, and connected to
# anew. TCP by itself sends again ever more rarely: after a minute's cut it would be half a minute late.
_PING_SECONDS = 2

T = TypeVar("T")


class _Acks:
    """What JetStream answers to what was published in one connection, at most so many answers awaited at once.

    nats-py has the same, `publish_async`, whose futures never end where the answer is an error (2.16.0).
    """

    def __init__(self, client: Client, most: int) -> None:
        self._client = client
        self._inbox = client.new_inbox()
        self._awaited: dict[str, asyncio.Future[int]] = {}
        self._numbers = itertools.count()
        self._free = asyncio.Semaphore(most)

    async def begin(self) -> None:
        await self._client.subscribe(f"{self._inbox}.*", cb=self._take)

    async def publish(
        self, subject: str, data: bytes, headers: dict[str, str], seconds: float
    ) -> "asyncio.Future[int]":
        """The sequence at which it is stored; or APIError, PlaceTaken, NoStreamResponseError.

        Who gets it awaits or cancels it. Raises TimeoutError where too many answers are awaited for so long, and
        nats.errors.Error.
        """
        async with asyncio.timeout(seconds):
            await self._free.acquire()
            try:
                # Where too much is not written, nats-py waits until it is, for ever, and cannot be called off (2.16).
                while self._client.pending_data_size > LARGEST_MESSAGE:  # noqa: ASYNC110 - it tells nobody
                    await asyncio.sleep(_LOOK_SECONDS)
            except BaseException:
                self._free.release()
                raise
        number = str(next(self._numbers))
        answer = self._awaited[number] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda _: self._forget(number))
        try:
            await self._client.publish(subject, data, f"{self._inbox}.{number}", headers)
        except BaseException:
            answer.cancel()
            raise
        return answer

    def _forget(self, number: str) -> None:
        del self._awaited[number]
        self._free.release()

    async def _take(self, message: Msg) -> None:
        answer = self._awaited.get(message.subject.rpartition(".")[2])
        if answer is None or answer.done():
            return
        if (message.headers or {}).get(Header.STATUS) == _NO_RESPONDERS:
            answer.set_exception(NoStreamResponseError())
            return
        said = json.loads(message.data)
        if (error := said.get("error")) is not None:
            answer.set_exception(APIError(error.get("code"), error.get("description"), error.get("err_code")))
        elif said.get("duplicate"):
            answer.set_exception(PlaceTaken(f"the stream has it already, at sequence {said['seq']}"))
        else:
            answer.set_result(said["seq"])


class NatsConnection:
    """A connection that comes back by itself. For one event loop."""

    def __init__(self, settings: NatsSettings, name: str) -> None:
        """Raises SettingsError where a file of the settings cannot be used."""
        self._settings = settings
        self._name = name
        self._tls: ssl.SSLContext | None = settings.tls()
        self._password = secret_of("nats", settings.password_file)
        self._token = secret_of("nats", settings.token_file)
        self._client: Client | None = None
        self._js: JetStreamContext | None = None
        self._acks: _Acks | None = None
        self._number = 0
        self._connected = asyncio.Event()
        self._is_silent = False

    @property
    def number(self) -> int:
        """Another one after each connection that broke: what was sent on that one may have been lost."""
        return self._number

    async def acks(self) -> _Acks:
        """As `jetstream`, to publish."""
        await self.jetstream()
        assert self._acks is not None
        return self._acks

    async def jetstream(self) -> JetStreamContext:
        """Raises SinkAway while no server answers, and SinkRefused where the server's settings do not do."""
        if self._is_silent:
            await self._check()
        if self._client is None or self._client.is_closed:
            await self._connect()
        assert self._client is not None
        assert self._js is not None
        if not self._client.is_connected:
            # An event loop that runs only while something is asked would never connect it again.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CONNECT_SECONDS + _RECONNECT_SECONDS):
                    await self._connected.wait()
        if not self._client.is_connected:
            error = self._client.last_error
            raise SinkAway(f"NATS is away: {said(error) if error is not None else 'connecting'}")
        if self._client.max_payload < LARGEST_MESSAGE:
            raise SinkRefused(
                f"the NATS server takes messages of {self._client.max_payload} bytes, and an event may have"
                f" {LARGEST_MESSAGE}: raise max_payload in its configuration (its default is 1048576)"
            )
        return self._js

    def note_silence(self) -> None:
        """Something was not answered: before the next question it is seen to whether the server is there.

        nats-py's own pings wait behind what the server does not take, and never end then (2.16.0).
        """
        self._is_silent = True

    async def _check(self) -> None:
        """Gives the connection up where the server does not answer on it."""
        self._is_silent = False
        if self._client is None or not self._client.is_connected:
            return
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await self._client.flush(_CONNECT_SECONDS)
        except (OSError, TimeoutError, nats.errors.Error):
            log.warning("a connection to NATS is given up, since nothing is answered on it")
            await self.close()

    async def _connect(self) -> None:
        client = Client()
        self._number += 1
        try:
            # It would try for ever.
            async with asyncio.timeout(_CONNECT_SECONDS * len(self._settings.servers) + _RECONNECT_SECONDS):
                await self._connect_by(client)
                acks = _Acks(client, self._settings.max_in_flight)
                await acks.begin()
        except (OSError, nats.errors.Error, TimeoutError) as error:
            reason = client.last_error or error
            await _end(client)
            raise SinkAway(f"NATS is away: {said(reason)}") from error
        self._connected.set()
        self._client, self._acks = client, acks
        self._js = client.jetstream(timeout=self._settings.ack_seconds)

    async def _connect_by(self, client: Client) -> None:
        await client.connect(
            list(self._settings.servers),
            name=self._name,
            error_cb=_note,
            disconnected_cb=self._note_disconnected,
            reconnected_cb=self._note_connected,
            # For ever: what waits is bounded, and the relay says that the broker is away.
            max_reconnect_attempts=-1,
            connect_timeout=_CONNECT_SECONDS,
            reconnect_time_wait=_RECONNECT_SECONDS,  # type: ignore[arg-type] # any number does
            ping_interval=_PING_SECONDS,
            # Of what is not written yet, and of what is kept for a server that is away; it is published again
            # anyway.
            pending_size=2 * LARGEST_MESSAGE,
            tls=self._tls,
            user=self._settings.user,
            password=self._password,
            token=self._token,
        )

    async def _note_disconnected(self) -> None:
        self._number += 1
        self._connected.clear()

    async def _note_connected(self) -> None:
        self._connected.set()

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await _end(client)


async def _end(client: Client) -> None:
    """Also where the other end takes nothing more of what is still to be sent, or is gone."""
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            await client.close()
    except (OSError, TimeoutError):
        # It waits until all is sent, or fails with that; what it had to end behind that is not ended then.
        transport: Any = client._transport
        if transport is not None:
            transport._io_writer.transport.abort()
        for it in client._subs.values():
            if it._wait_for_msgs_task is not None:
                it._wait_for_msgs_task.cancel()


async def _note(error: Exception) -> None:
    log.debug("NATS", error=str(error) or type(error).__name__)


async def asked(answer: Awaitable[T]) -> T:
    """What JetStream answers. Raises SinkAway; NotFoundError where that is the answer."""
    try:
        return await answer
    except NotFoundError:
        raise
    except (OSError, TimeoutError, nats.errors.Error) as error:
        raise SinkAway(f"JetStream does not answer: {said(error)}") from error


def said(error: BaseException) -> str:
    if isinstance(error, APIError):
        return f"{error.description} (error {error.err_code})"
    return str(error) or type(error).__name__


def stream_of(prefix: str, epoch: uuid.UUID) -> str:
    return f"{prefix}-{epoch.hex}"


class JetStreamSink:
    """A Sink."""

    def __init__(self, settings: NatsSettings, *, relay: str, first_position: int, personal_data: str) -> None:
        """relay: the name of this one, another one than all others' have. personal_data: sealed or opened."""
        self._settings = settings
        self._relay = relay
        self._first = first_position
        self._personal_data = personal_data
        self._connection = NatsConnection(settings, relay)

    async def place(self, feed: Origin) -> Place:
        try:
            return await self._place(feed)
        except SinkAway:
            self._connection.note_silence()
            raise

    async def _place(self, feed: Origin) -> Place:
        js = await self._connection.jetstream()
        name = stream_of(self._settings.stream, feed.epoch)
        try:
            info = await asked(js.stream_info(name))
        except NotFoundError:
            info = await self._create(js, name, feed)
        first = self._check(info, feed.epoch)
        state = info.state
        # A stream that has had nothing yet begins with its first sequence, and says so.
        last = max(state.last_seq, first - 1)
        # Where somebody has set a limit, the oldest are gone by intent.
        limited = any(it and it > 0 for it in (info.config.max_age, info.config.max_bytes, info.config.max_msgs))
        missing = last - (max(first, state.first_seq) if limited else first) + 1 - state.messages
        if last < first:
            return Place(last, 0, "")
        try:
            message = await asked(js.get_msg(name, last))
        except NotFoundError:
            return Place(last, 0, "", missing)
        headers = message.headers or {}
        return Place(last, int(headers.get(f"{PREFIX}tandemmark", "0")), headers.get(RELAY_HEADER, ""), missing)

    async def _create(self, js: JetStreamContext, name: str, feed: Origin) -> StreamInfo:
        config = StreamConfig(
            name=name,
            description="The events of a feed; a message's sequence is the event's position",
            subjects=[f"{self._settings.stream}.{feed.epoch.hex}.>"],
            storage=StorageType.FILE,
            retention=RetentionPolicy.LIMITS,
            discard=DiscardPolicy.NEW,
            num_replicas=self._settings.replicas,
            first_seq=self._first,
            deny_delete=True,
            deny_purge=True,
            metadata={
                EPOCH: str(feed.epoch),
                FIRST: str(self._first),
                PERSONAL_DATA: self._personal_data,
                HEAD: str(feed.head),
                ENDED: " ".join(sorted(map(str, feed.ended))),
            },
        )
        try:
            info = await js.add_stream(config)
        except APIError as error:
            if error.err_code == _NAME_IN_USE:
                # Another relay made it meanwhile, when the feed was elsewhere.
                return await asked(js.stream_info(name))
            raise SinkAway(f"the stream {name} cannot be made: {said(error)}") from error
        except (OSError, TimeoutError, nats.errors.Error) as error:
            raise SinkAway(f"the stream {name} cannot be made: {said(error)}") from error
        log.info("a stream was made", stream=name, first=self._first, replicas=self._settings.replicas)
        return info

    def _check(self, info: StreamInfo, epoch: uuid.UUID) -> int:
        """The position that the stream begins with. Raises SinkRefused."""
        config = info.config
        metadata = config.metadata or {}
        if metadata.get(EPOCH) != str(epoch):
            raise SinkRefused(
                f"the stream {config.name} is not of the feed {epoch}: its metadata says {metadata.get(EPOCH)}. Give"
                " it another name, or this relay another NATS__STREAM"
            )
        if metadata.get(PERSONAL_DATA) != self._personal_data:
            raise SinkRefused(
                f"the stream {config.name} is for personal data {metadata.get(PERSONAL_DATA)}, and the setting is"
                f" {self._personal_data}: delete the stream, and the relay fills it anew, or set it back"
            )
        return int(metadata.get(FIRST, "1"))

    async def publish(self, epoch: uuid.UUID, events: Sequence[CloudEvent]) -> None:
        try:
            await self._publish(epoch, events)
        except SinkAway:
            self._connection.note_silence()
            raise

    async def _publish(self, epoch: uuid.UUID, events: Sequence[CloudEvent]) -> None:
        acks = await self._connection.acks()
        stream = stream_of(self._settings.stream, epoch)
        subjects = f"{self._settings.stream}.{epoch.hex}"
        awaited: list[asyncio.Future[int]] = []
        seconds = self._settings.ack_seconds
        try:
            for event in events:
                if awaited and _is_refused(awaited[-1]):
                    break
                headers = event.headers(PREFIX)
                headers[Header.MSG_ID] = headers[f"{PREFIX}id"]
                headers[Header.EXPECTED_LAST_SEQUENCE] = str(event.position - 1)
                headers[Header.EXPECTED_STREAM] = stream
                headers[RELAY_HEADER] = self._relay
                subject = f"{subjects}.{event.kind}.{_token(event.key)}"
                awaited.append(await acks.publish(subject, event.data, headers, seconds))
            await asyncio.wait(awaited, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
            for event, answer in zip(events, awaited, strict=False):
                # The first that is not: those before are stored.
                if not answer.done():
                    raise SinkAway(f"JetStream has not acknowledged event {event.position} within {seconds:g} s")
                if (sequence := answer.result()) != event.position:
                    # It was sent before, to where it does not belong.
                    raise PlaceTaken(f"event {event.position} is at sequence {sequence} of {stream}")
        except APIError as error:
            if error.err_code == _WRONG_LAST_SEQUENCE:
                raise PlaceTaken(said(error)) from error
            raise SinkAway(f"JetStream does not take an event: {said(error)}") from error
        except (OSError, TimeoutError, nats.errors.Error) as error:
            raise SinkAway(f"JetStream does not take an event: {said(error)}") from error
        finally:
            for answer in awaited:
                if not answer.cancel() and not answer.cancelled():
                    # So that nobody misses it.
                    answer.exception()

    async def close(self) -> None:
        await self._connection.close()


def _is_refused(answer: "asyncio.Future[int]") -> bool:
    return answer.done() and (answer.cancelled() or answer.exception() is not None)


def _token(key: str) -> str:
    """A part of a subject: it has no dot, no blank and none of `*` and `>`, and is not empty."""
    return quote(key, safe="").replace(".", "%2E").replace("~", "%7E") or "-"
