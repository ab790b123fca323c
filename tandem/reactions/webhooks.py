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
import ssl
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from sqlalchemy import Engine

from tandem.reactions.doing import note_settled
from tandem.reactions.reaction import Reaction
from tandem.reactions.settings import WebhookSettings
from tandem.reactions.tasks import Claimed, Kind, Settled, claim, settle
from tandem.runtime.settings import SettingsError
from tandem.runtime.telemetry import log

if TYPE_CHECKING:
    from urllib3 import PoolManager

_OK = range(200, 300)
_GONE = 410
_USER_AGENT = "tandem-webhooks"


def sign(message_id: str, timestamp: int, body: bytes, secrets: Sequence[bytes]) -> str:
    """The value of `webhook-signature`."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    macs = [hmac.digest(secret, signed, hashlib.sha256) for secret in secrets]
    return " ".join(f"v1,{base64.b64encode(it).decode()}" for it in macs)


class Webhooks:
    """For one thread, which has several post at once."""

    def __init__(self, engine: Engine, reactions: Sequence[Reaction], settings: WebhookSettings) -> None:
        """Raises SettingsError where the messages cannot be signed."""
        settings.secrets()
        self._engine = engine
        self._due: dict[tuple[str, Kind], datetime | None] = {(it.name, Kind.POST): None for it in reactions}
        self._settings = settings
        self._http, self._failures = _client(settings)
        self._threads = ThreadPoolExecutor(settings.at_once, "webhook")

    def post_due(self) -> bool:
        """Posts those whose time has come; whether there may be more. Raises SQLAlchemyError."""
        settings = self._settings
        # Longer than an attempt takes, so that nobody else posts it meanwhile.
        lease = timedelta(seconds=(1 + len(self._due)) * settings.timeout_seconds + 10)
        with self._engine.begin() as connection:
            claimed = claim(connection, self._due, lease=lease, most=settings.at_once)
        if not claimed:
            return False
        try:
            secrets = settings.secrets()
        except SettingsError as error:
            log.error("webhooks cannot be signed", error=str(error))
            settled = [self._later(it, str(error)) for it in claimed]
        else:
            settled = list(self._threads.map(lambda it: self._post(it, secrets), claimed))
        with self._engine.begin() as connection:
            settle(connection, settled)
        for it in settled:
            note_settled(it)
        return True

    def close(self) -> None:
        self._threads.shutdown()
        self._http.clear()

    def _post(self, it: Claimed, secrets: Sequence[bytes]) -> Settled:
        message_id, timestamp = f"msg_{it.request_id.hex}", int(time.time())
        headers = {
            "content-type": "application/json",
            "user-agent": _USER_AGENT,
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(message_id, timestamp, it.payload, secrets),
        }
        try:
            answer = self._http.request(
                "POST", self._settings.url, body=it.payload, headers=headers, redirect=False, preload_content=False
            )
            status = answer.status
            # What it says is not read, however much it is.
            answer.close()
        except self._failures as error:
            return self._later(it, f"{type(error).__name__}: {error}")
        if status in _OK:
            return Settled(it, outcome=f"done: HTTP {status}")
        if status == _GONE:
            log.error("a webhook is parked: its receiver has gone", reaction=it.reaction, id=message_id)
            return Settled(it, error=f"HTTP {status}: the receiver wants no more")
        return self._later(it, f"HTTP {status}")

    def _later(self, it: Claimed, error: str) -> Settled:
        settings = self._settings
        log.warning("a webhook was not taken", reaction=it.reaction, attempts=it.attempts, error=error[:500])
        if it.attempts >= settings.max_attempts:
            return Settled(it, error=error)
        pause = settings.first_retry_seconds * 3.0 ** min(it.attempts - 1, 50)
        return Settled(it, error=error, again_in=min(pause, settings.longest_retry_seconds))


def _client(settings: WebhookSettings) -> "tuple[PoolManager, tuple[type[Exception], ...]]":
    """And what it raises where there is no answer. Raises SettingsError."""
    # Here: it tries a socket out when it is imported, and to import does nothing.
    from urllib3 import PoolManager  # noqa: PLC0415
    from urllib3.exceptions import HTTPError  # noqa: PLC0415
    from urllib3.util import Timeout  # noqa: PLC0415
    from urllib3.util.ssl_ import create_urllib3_context  # noqa: PLC0415

    context: ssl.SSLContext | None = None
    if settings.url.startswith("https:"):
        context = create_urllib3_context()
        try:
            if settings.ca_file is not None:
                context.load_verify_locations(settings.ca_file)
            else:
                context.load_default_certs()
        except OSError as error:
            raise SettingsError(f"webhook ca_file: {error}") from error
    # No redirects and no attempts of its own: each attempt is one request to the URL of the settings.
    pools = PoolManager(
        maxsize=settings.at_once,
        retries=False,
        timeout=Timeout(total=settings.timeout_seconds),
        ssl_context=context,
    )
    return pools, (HTTPError, OSError)
