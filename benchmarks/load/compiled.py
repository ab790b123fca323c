"""bodies.c, compiled when it is first needed, and h2load."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

_SOURCE = Path(__file__).with_name("bodies.c")


class NotInstalled(Exception):
    """A program is missing that a package has; the message says which."""


@cache
def h2load() -> str:
    """Its path. Raises NotInstalled."""
    program = shutil.which("h2load")
    if program is None:
        raise NotInstalled("h2load is not on the PATH; on Debian: apt-get install nghttp2-client")
    return program


@cache
def bodies_library() -> Path:
    """The library for LD_PRELOAD. Raises NotInstalled when it has to be compiled and cannot."""
    name = f"bodies-{hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:16]}.so"
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    library = Path(home) / "tandem-bench" / name
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            # Moved to its place when it is whole: another run may look for it meanwhile.
            _compile(Path(folder) / name).rename(library)
    return library


def _compile(library: Path) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise NotInstalled("there is no C compiler; on Debian: apt-get install gcc libc6-dev")
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(_SOURCE), "-ldl", "-lpthread"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise NotInstalled(
            f"{_SOURCE.name} does not compile; on Debian: apt-get install gcc libc6-dev\n{result.stderr.strip()}"
        )
    return library


def installed() -> bool:
    """Whether all is there; says on standard error what is missing."""
    try:
        h2load()
        bodies_library()
    except NotInstalled as error:
        sys.stderr.write(f"{error}\n")
        return False
    return True


if __name__ == "__main__":
    # `python -m benchmarks.load.compiled`
    sys.exit(not installed())
