"""Tries each Python that pyproject.toml names: `python -m tools.pythons [--wheels]`.

Of every one: whether all that the services need has a wheel for it, so that nobody needs a compiler; pip finds that out
without the interpreter. Of those that are on the PATH as python3.X: the unit tests, with all of requirements.lock.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools.runtime_lock import services_lock

ROOT = Path(__file__).parents[1]
_FOLDER = ROOT / "build" / "pythons"
_PIP = ["-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--require-hashes"]


def named_versions() -> list[str]:
    """Such as 3.11, as the classifiers say."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = (re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", it) for it in project["classifiers"])
    return [it[1] for it in found if it]


def interpreter(version: str) -> str | None:
    """One on the PATH that runs and can make environments."""
    found = shutil.which(f"python{version}")
    tried = found and subprocess.run([found, "-c", "import ensurepip, venv"], capture_output=True, check=False)
    return found if tried and tried.returncode == 0 else None


def without_wheels(version: str) -> str:
    """What pip says is missing; empty where all wheels are there."""
    with tempfile.TemporaryDirectory() as folder:
        lock = Path(folder) / "services.lock"
        lock.write_text(services_lock())
        options = ["--dry-run", "--ignore-installed", "--no-deps", "--only-binary=:all:", "--target", folder]
        command = [sys.executable, *_PIP, *options, "--python-version", version, "--requirement", str(lock)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if result.returncode == 0 else result.stderr.strip()


def unit_tests_pass(version: str, python: str) -> bool:
    """In an environment of its own, with all that is pinned."""
    folder = _FOLDER / version
    shutil.rmtree(folder, ignore_errors=True)
    own = str(folder / "bin" / "python")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    commands = [
        [python, "-m", "venv", str(folder)],
        [own, *_PIP, "--requirement", "requirements.lock"],
        [own, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", "."],
        [own, "-m", "pytest", "-n", "2", "--dist=worksteal", "tests/unit"],
    ]
    environment["PATH"] = os.pathsep.join((str(folder / "bin"), environment["PATH"]))
    return all(subprocess.run(it, cwd=ROOT, env=environment, check=False).returncode == 0 for it in commands)


def main() -> int:
    """The exit code: 1 where a wheel is missing or a test fails. A Python that is not there is no failure."""
    parser = argparse.ArgumentParser(prog="make pythons", description="Tries each Python that pyproject.toml names.")
    parser.add_argument("--wheels", action="store_true", help="look for wheels alone")
    only_wheels = parser.parse_args().wheels
    versions = named_versions()
    good = True
    with ThreadPoolExecutor() as pool:
        for version, missing in zip(versions, pool.map(without_wheels, versions), strict=True):
            said = [f"WITHOUT WHEELS: {missing}" if missing else "all that the services need has a wheel"]
            python = None if only_wheels else interpreter(version)
            passed = python is None or unit_tests_pass(version, python)
            if python is not None:
                said.append("the unit tests pass" if passed else "THE UNIT TESTS FAIL")
            elif not only_wheels:
                said.append(f"the unit tests are NOT RUN: there is no python{version} on the PATH")
            print(f"Python {version}: {'; '.join(said)}", flush=True)
            good = good and passed and not missing
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
