"""Waiting for a NOTIFY of PostgreSQL."""

import time

from psycopg import sql

from tandem.runtime.database import Driver, connection_arguments, listen_url, set_session
from tandem.runtime.settings import DatabaseSettings

# After so long without a notification the server is asked whether it is there: who only listens sends nothing, and does
# not notice that the other end, or what stands between, has gone.
_SILENCE_SECONDS = 2.0


class Listener:
    """Waits for a NOTIFY on a channel, on a connection of its own. For one thread.

    Notifications that come while nobody waits are kept by the connection, so none between two waits is lost; those
    that come while the connection is down are, which is why callers poll too. A server that is silent is noticed: by an
    answer that does not come within `connect_timeout`.
    """

    def __init__(self, settings: DatabaseSettings, channel: str, name: str) -> None:
        self._settings = settings
        self._channel = channel
        self._name = name
        self._connection: Driver | None = None
        self._answered_at = 0.0

    def wait(self, seconds: float) -> list[str]:
        """The payloads that have come, as soon as there is one, or an empty list after `seconds`.

        Raises psycopg.Error when the database is away; the next call connects again.
        """
        try:
            connection = self._connected()
            payloads = [notify.payload for notify in connection.notifies(timeout=seconds, stop_after=1)]
            if payloads:
                self._answered_at = time.monotonic()
            elif time.monotonic() - self._answered_at >= _SILENCE_SECONDS:
                # What is notified meanwhile is kept for the next wait.
                connection.execute("SELECT 1")
                self._answered_at = time.monotonic()
            return payloads
        except BaseException:
            self.close()
            raise

    def _connected(self) -> Driver:
        if self._connection is None:
            arguments = connection_arguments(self._settings, self._name)
            self._connection = Driver.connect(listen_url(self._settings), autocommit=True, **arguments)
            self._connection.longest_wait = self._settings.connect_timeout
            set_session(self._connection, self._settings)
            self._connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._channel)))
            self._answered_at = time.monotonic()
        return self._connection

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
