"""Waiting for a NOTIFY of PostgreSQL."""

import psycopg
from psycopg import sql

from tandem.runtime.database import connection_arguments, listen_url
from tandem.runtime.settings import DatabaseSettings


class Listener:
    """Waits for a NOTIFY on a channel, on a connection of its own. For one thread.

    Notifications that come while nobody waits are kept by the connection, so none between two waits is lost; those
    that come while the connection is down are, which is why callers poll too.
    """

    def __init__(self, settings: DatabaseSettings, channel: str, name: str) -> None:
        self._settings = settings
        self._channel = channel
        self._name = name
        self._connection: psycopg.Connection | None = None

    def wait(self, seconds: float) -> list[str]:
        """The payloads that have come, as soon as there is one, or an empty list after `seconds`.

        Raises psycopg.Error when the database is away; the next call connects again.
        """
        try:
            connection = self._connected()
            return [notify.payload for notify in connection.notifies(timeout=seconds, stop_after=1)]
        except psycopg.Error:
            self.close()
            raise

    def _connected(self) -> psycopg.Connection:
        if self._connection is None:
            arguments = connection_arguments(self._settings, self._name)
            self._connection = psycopg.connect(listen_url(self._settings), autocommit=True, **arguments)  # type: ignore[arg-type]
            self._connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._channel)))
        return self._connection

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
