"""The Go twin of the cached read, as a child process: built from go/main.go with Debian's Go and Debian's grpc-go.

What it must know of Tandem's cache it is told at its start: what the keys begin with, and the token that answers have.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import psycopg

from benchmarks.load.compiled import NotInstalled
from tandem.cli.child import Child
from tandem.read_store.announcement import Announcement
from tandem.read_store.cache import key_prefix
from tandem.read_store.tables import CHANNEL
from tandem.testing.ports import free_port

STOCK, POOL, TOGETHER = "stock", "pool", "together"
PACKAGES = "golang-go golang-google-grpc-dev golang-google-protobuf-dev golang-github-bradfitz-gomemcache-dev"

_SOURCE = Path(__file__).parent / "go" / "main.go"
# Where Debian's packages put Go's source code.
_GOCODE = Path("/usr/share/gocode")
# Of those that take all calls that wait: one for each processor of the machine of README.md.
_FEW_CONNECTIONS = 2
_ANNOUNCED_SECONDS = 10.0


@cache
def built() -> Path:
    """The program, compiled when it is first needed. Raises NotInstalled."""
    compiler = shutil.which("go")
    if compiler is None or not (_GOCODE / "src/google.golang.org/grpc").exists():
        raise NotInstalled(f"no Go, or no grpc-go; on Debian: apt-get install {PACKAGES}")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tandem-bench"
    program = home / f"go-twin-{hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:16]}"
    if not program.exists():
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as folder:
            made = Path(folder) / program.name
            environment = {**os.environ, "GO111MODULE": "off", "GOPATH": f"{folder}:{_GOCODE}", "GOFLAGS": ""}
            command = [compiler, "build", "-o", str(made), str(_SOURCE)]
            result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if result.returncode != 0:
                raise NotInstalled(f"{_SOURCE.name} does not compile:\n{result.stderr.strip()}")
            # Moved to its place when it is whole: another run may look for it meanwhile.
            made.rename(program)
    return program


class GoTwin(Child):
    """store: how it asks memcached. prefix, as_of: what it is told of the cache."""

    def __init__(self, folder: Path, *, store: str, memcached: str, prefix: str, as_of: str) -> None:
        """Raises NotInstalled."""
        port = free_port()
        super().__init__(f"go-{store}", port, folder / f"go-{store}-{port}.log")
        self._command = [str(built()), "--port", str(port), "--store", store, "--memcached", memcached]
        self._command += ["--prefix", prefix, "--as-of", as_of]
        if store == TOGETHER:
            self._command += ["--connections", str(_FEW_CONNECTIONS)]

    def launch(self) -> None:
        self._spawn(self._command)


def announced_prefix(read_url: str, view: str, node: str) -> str:
    """What the keys of a view's entries begin with at a node, as the projector announces it every second."""
    with psycopg.connect(read_url, autocommit=True) as connection:
        connection.execute(f"LISTEN {CHANNEL}")
        for notification in connection.notifies(timeout=_ANNOUNCED_SECONDS):
            epoch = Announcement.decode(notification.payload).cache_epochs.get(view, {}).get(node)
            if epoch is not None:
                return key_prefix(view, epoch)
    raise TimeoutError(f"no epoch of {view} at {node} was announced within {_ANNOUNCED_SECONDS:g} s")


if __name__ == "__main__":
    # `python -m benchmarks.contenders.go_twin`: builds it, before anything is measured.
    try:
        built()
    except NotInstalled as error:
        sys.exit(str(error))
