"""PgBouncer as a child process, in front of one PostgreSQL server."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from tandem.cli.child import HOST, Child
from tandem.cli.embedded import Postgres, postgres_user
from tandem.testing.ports import free_port


def pgbouncer_path() -> str | None:
    """Its program; None where it is not installed."""
    return shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")


class PgBouncer(Child):
    """For all databases of the server. mode: session or transaction. settings: more of its configuration's."""

    def __init__(self, server: Postgres, mode: str, folder: Path, settings: Mapping[str, str]) -> None:
        """folder: new, where the user of PostgreSQL comes."""
        super().__init__(f"PgBouncer by {mode}", free_port(), folder.with_suffix(".log"))
        self._folder = folder
        options = {
            "listen_addr": HOST,
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            # It trusts whoever reaches its port, as the servers of tests do.
            "auth_type": "any",
            "pool_mode": mode,
            "max_client_conn": "500",
            "default_pool_size": "40",
            **settings,
        }
        lines = [f"{key} = {value}" for key, value in options.items()]
        self._text = f"[databases]\n* = host={HOST} port={server.port} user=postgres\n[pgbouncer]\n" + "\n".join(lines)

    def launch(self) -> None:
        program, user = pgbouncer_path(), postgres_user()
        assert program is not None, "it is installed"
        self._folder.mkdir(mode=0o700, exist_ok=True)
        file = self._folder / "pgbouncer.ini"
        file.write_text(self._text + "\n", encoding="utf-8")
        if user is not None:
            shutil.chown(self._folder, user)
            shutil.chown(file, user)
        self._spawn([program, str(file)], user=user, folder=self._folder)
