"""Posts what reactions have written down to a receiver, signed as https://www.standardwebhooks.com has it.

    webhook-id         of the message, the same at each attempt: the receiver tells a repetition by it
    webhook-timestamp  of the attempt, in seconds since the Unix epoch
    webhook-signature  v1, and base64 of HMAC-SHA256 of `id.timestamp.body`; one for each secret, with blanks between

A message comes at least once. It is done when the receiver answers 2xx. Anything else is tried again, later and later,
whatever process is alive then; after the last attempt, and on 410 Gone, it is parked: a dead letter.
"""

import base64
import hashlib
import hmac
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from datetime import timedelta
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import quote, urlsplit

from sqlalchemy import Engine

from tandem.reactions.doing import note_settled
from tandem.reactions.reaction import Reaction
from tandem.reactions.settings import WebhookSettings
from tandem.reactions.tasks import Claimed, Due, Kind, Settled, claim, settle
from tandem.runtime.settings import SettingsError
from tandem.runtime.telemetry import log

_OK = range(200, 300)
_GONE = 410
_USER_AGENT = "tandem-webhooks"
_NO_ANSWER = "there was no answer in time"
# Of a URL's path and query, which say themselves what is escaped.
_SAFE = "/%?&=+,;:@!$'()*~"


def sign(message_id: str, timestamp: int, body: bytes, secrets: Sequence[bytes]) -> str:
    """The value of `webhook-signature`."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    macs = [hmac.digest(secret, signed, hashlib.sha256) for secret in secrets]
    return " ".join(f"v1,{base64.b64encode(it).decode()}" for it in macs)


class _Receiver:
    """Where webhooks are posted to. Each attempt is one request, on a connection of its own."""

    def __init__(self, settings: WebhookSettings) -> None:
        """Raises SettingsError."""
        url = urlsplit(settings.url)
        self._host = url.hostname or ""
        self._context = _context(settings) if url.scheme == "https" else None
        self._port = url.port or (443 if self._context else 80)
        self._target = quote((url.path or "/") + (f"?{url.query}" if url.query else ""), safe=_SAFE)
        self._seconds = settings.timeout_seconds

    def post(self, body: bytes, headers: dict[str, str], holds: Callable[[socket.socket], None]) -> int:
        """The status of the answer; what else it says is not read, however much it is.

        holds: gets the connection, before anything goes over it. Raises OSError and HTTPException.
        """
        connection = self._connection()
        try:
            connected = socket.create_connection((self._host, self._port), self._seconds)
            connection.sock = connected
            holds(connected)
            if self._context is not None:
                connection.sock = self._context.wrap_socket(connected, server_hostname=self._host)
            connection.request("POST", self._target, body, headers)
            with connection.getresponse() as answer:
                return answer.status
        finally:
            connection.close()

    def _connection(self) -> HTTPConnection:
        if self._context is None:
            return HTTPConnection(self._host, self._port)
        return HTTPSConnection(self._host, self._port, context=self._context)


def _context(settings: WebhookSettings) -> ssl.SSLContext:
    """Raises SettingsError."""
    try:
        return ssl.create_default_context(cafile=settings.ca_file)
    except OSError as error:
        raise SettingsError(f"webhook ca_file: {error}") from error


class _Attempt(threading.Thread):
    """To post a message, until it ends or is given up. No name server and no receiver can hold up who began it."""

    def __init__(self, claimed: Claimed, run: "_Run", ended: "queue.SimpleQueue[_Ended]") -> None:
        super().__init__(name="webhook", daemon=True)
        self.claimed = claimed
        self._run_it = run
        self._ended = ended
        self._lock = threading.Lock()
        self._is_over = False
        self._connection: socket.socket | None = None

    def run(self) -> None:
        settled = self._run_it(self)
        with self._lock:
            self._is_over = True
            if self._connection is not None:
                self._connection.close()
        self._ended.put((self, settled))

    def holds(self, connection: socket.socket) -> None:
        """The connection that it waits on. Raises TimeoutError where it was given up."""
        with self._lock:
            if self._is_over:
                raise TimeoutError(_NO_ANSWER)
            # Another name of the same connection: TLS takes the first away.
            self._connection = connection.dup()

    def give_up(self) -> None:
        """Whatever it reads or writes ends."""
        with self._lock:
            if self._connection is not None and not self._is_over:
                with suppress(OSError):
                    self._connection.shutdown(socket.SHUT_RDWR)
            self._is_over = True


_Ended = tuple[_Attempt, Settled]
_Run = Callable[[_Attempt], Settled]


class Webhooks:
    """For one thread, which has several post at once."""

    def __init__(self, engine: Engine, reactions: Sequence[Reaction], settings: WebhookSettings) -> None:
        """Raises SettingsError where the messages cannot be signed."""
        settings.secrets()
        self._engine = engine
        self._due = [Due(it.name, Kind.POST, it.version) for it in reactions]
        self._settings = settings
        self._receiver = _Receiver(settings)
        self._attempts: list[_Attempt] = []

    def post_due(self) -> bool:
        """Posts those whose time has come; whether there may be more. Raises SQLAlchemyError.

        It takes no longer than `timeout_seconds` for each reaction that has some.
        """
        settings = self._settings
        # Those that were given up end as soon as they notice it.
        self._attempts = [it for it in self._attempts if it.is_alive()]
        at_once = settings.at_once - len(self._attempts)
        if at_once <= 0:
            return False
        # Longer than an attempt takes, so that nobody else posts it meanwhile.
        lease = timedelta(seconds=(1 + len(self._due)) * settings.timeout_seconds + 10)
        with self._engine.begin() as connection:
            claimed = claim(connection, self._due, lease=lease, most=at_once)
        if not claimed:
            return False
        try:
            secrets = settings.secrets()
        except SettingsError as error:
            log.error("webhooks cannot be signed", error=str(error))
            for it in claimed:
                self._settle(self._later(it, str(error)))
            return True
        for first in range(0, len(claimed), at_once):
            with closing(self._post_all(claimed[first : first + at_once], secrets)) as ended:
                for settled in ended:
                    self._settle(settled)
        return True

    def _post_all(self, claimed: Sequence[Claimed], secrets: Sequence[bytes]) -> Generator[Settled, None, None]:
        """What becomes of each, as soon as it is known; after `timeout_seconds` it is no answer."""
        ended: queue.SimpleQueue[_Ended] = queue.SimpleQueue()
        under_way = {_Attempt(it, partial(self._post, secrets=secrets), ended) for it in claimed}
        self._attempts += under_way
        until = time.monotonic() + self._settings.timeout_seconds
        try:
            for it in under_way:
                it.start()
            while under_way:
                try:
                    attempt, settled = ended.get(timeout=max(0.0, until - time.monotonic()))
                except queue.Empty:
                    break
                under_way.remove(attempt)
                yield settled
        finally:
            # Also where nobody waits for the others, since what became of one cannot be written down.
            for it in under_way:
                it.give_up()
        for it in under_way:
            yield self._later(it.claimed, _NO_ANSWER)

    def _settle(self, settled: Settled) -> None:
        with self._engine.begin() as connection:
            settle(connection, [settled])
        note_settled(settled)
        if not settled.outcome:
            it = settled.claimed
            log.warning(
                "a webhook was not taken", reaction=it.reaction, attempts=it.attempts, error=settled.error[:500]
            )

    def _post(self, attempt: _Attempt, secrets: Sequence[bytes]) -> Settled:
        it = attempt.claimed
        message_id, timestamp = f"msg_{it.request_id.hex}", int(time.time())
        headers = {
            "content-type": "application/json",
            "user-agent": _USER_AGENT,
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(message_id, timestamp, it.payload, secrets),
        }
        try:
            status = self._receiver.post(it.payload, headers, attempt.holds)
        except (HTTPException, OSError) as error:
            return self._later(it, f"{type(error).__name__}: {error}")
        except Exception as error:  # whatever it is, it concerns this message alone
            log.exception("a webhook failed", reaction=it.reaction, id=message_id)
            return self._later(it, repr(error))
        if status in _OK:
            return Settled(it, outcome=f"done: HTTP {status}")
        if status == _GONE:
            return Settled(it, error=f"HTTP {status}: the receiver wants no more")
        return self._later(it, f"HTTP {status}")

    def _later(self, it: Claimed, error: str) -> Settled:
        settings = self._settings
        if it.attempts >= settings.max_attempts:
            return Settled(it, error=error)
        pause = settings.first_retry_seconds * 3.0 ** min(it.attempts - 1, 50)
        return Settled(it, error=error, again_in=min(pause, settings.longest_retry_seconds))
