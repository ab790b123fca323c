"""PyPI's `protean` on the same PostgreSQL, in an environment of its own: its pins are not ours. It runs protean_shop.

`python -m benchmarks.contenders.protean` makes the environment; a run does that too where it is missing.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.load.compiled import NotInstalled

REQUIREMENT = "protean[postgresql]==0.18.0"

_PROGRAM = Path(__file__).parent / "protean_shop" / "shop.py"
_PATIENCE = 300.0


@cache
def environment() -> Path:
    """Its Python, installed when it is first needed. Raises NotInstalled."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tandem-bench"
    folder = home / f"{REQUIREMENT.replace('[postgresql]==', '-')}-{sys.version_info.major}.{sys.version_info.minor}"
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        home.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", REQUIREMENT]
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
        except subprocess.TimeoutExpired:
            raise NotInstalled(f"pip does not install {REQUIREMENT} within {_PATIENCE:g} s") from None
        if result.returncode != 0:
            last = result.stderr.strip().rpartition("\n")[2]
            raise NotInstalled(f"{REQUIREMENT} cannot be installed: {last}")
        (folder / "installed").touch()
    return python


def place_orders(url: str, *, threads: int, seconds: float) -> dict[str, Any]:
    """In the empty database at `url`; what shop.py prints. Raises NotInstalled, or CalledProcessError.

    It may not import what is ours.
    """
    options = ["--threads", str(threads), "--seconds", str(seconds)]
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with tempfile.TemporaryFile() as errors:
        command = [str(environment()), str(_PROGRAM), url, *options]
        result = subprocess.run(command, env=own, stdout=subprocess.PIPE, stderr=errors, check=False)
        if result.returncode != 0:
            errors.seek(0)
            raise subprocess.CalledProcessError(result.returncode, _PROGRAM.name, stderr=errors.read()[-2000:])
    done: dict[str, Any] = json.loads(result.stdout)
    return done


if __name__ == "__main__":
    try:
        environment()
    except NotInstalled as error:
        sys.exit(str(error))
