"""Environments that have what an extra of the package requires, and nothing else."""

import os
import subprocess
import sys
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from importlib.metadata import distributions
from importlib.util import cache_from_source
from pathlib import Path

from tools.dependencies import needed
from tools.package_sbom import metadata_of

ROOT = Path(__file__).parents[2]
# Set by `make package`: environments are made by pip, with the newest packages that the bounds allow.
WITH_PIP = os.environ.get("PACKAGE_WITH_PIP") == "1"


def build_wheel(folder: Path) -> Path:
    """The package's wheel, built by its own backend, without a network."""
    code = f"from hatchling.build import build_wheel; build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    return wheel


def requires_of(wheel: Path) -> list[str]:
    return metadata_of(wheel).get_all("Requires-Dist") or []


@cache
def _unpacked(wheel: Path) -> Path:
    """A folder beside the wheel with its files: of all environments, so that what one has compiled the others have."""
    folder = wheel.with_suffix("")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@cache
def _packages_by_folder() -> dict[str, set[str]]:
    """Who brings something of a file or folder of site-packages, of all that is installed."""
    found: dict[str, set[str]] = defaultdict(set)
    for it in distributions():
        name = it.name  # read from METADATA each time
        for file in it.files or ():
            found[file.parts[0]].add(name)
    return found


class Environment:
    """A virtual environment with the wheel and what some of its extras require, as a person's would be.

    extras: as pip takes them, with commas between. also: further packages. What is required is found by the metadata,
    and linked from the environment that runs the tests: a package that the metadata does not name is not there. pip
    would need a network.
    """

    def __init__(self, folder: Path, wheel: Path, extras: str, also: Sequence[str] = ()) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        self.bin = folder / "bin"
        [self._site] = folder.glob("lib/python3.*/site-packages")
        if WITH_PIP:
            pip = [sys.executable, "-m", "pip", "--python", str(self.bin / "python")]
            subprocess.run([*pip, "install", "--quiet", f"{wheel}[{extras}]", *also], check=True)
        else:
            self._link([*requires_of(wheel), *also], extras.split(","))
            for part in _unpacked(wheel).iterdir():
                (self._site / part.name).symlink_to(part)
            script = self.bin / "tandem"
            script.write_text(f"#!{self.bin / 'python'}\nimport sys\nfrom shop.program import main\nsys.exit(main())\n")
            script.chmod(0o755)

    def _link(self, requires: Sequence[str], extras: Sequence[str]) -> None:
        for it in needed(requires, extras).values():
            files = [file for file in it.distribution.files or () if ".." not in file.parts]  # ".." leads to scripts
            for file in files:
                # Of a folder that several packages bring files of, such as google, its own alone.
                shared = len(_packages_by_folder()[file.parts[0]]) > 1
                parts = [Path(str(file)) if shared else Path(file.parts[0])]
                if shared and file.suffix == ".py":
                    parts.append(Path(cache_from_source(str(file))))
                for part in parts:
                    source, target = Path(str(it.distribution.locate_file(part))), self._site / part
                    if source.exists() and not target.exists():
                        target.parent.mkdir(parents=True, exist_ok=True)
                        target.symlink_to(source)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a program of it to its end, without what PYTHONPATH and the current folder would add."""
        return subprocess.run(
            [self.bin / command[0], *command[1:]],
            cwd=self.bin,
            env=self.variables,
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables of what runs in it."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TANDEM_"))}
        return kept | {"PATH": os.pathsep.join((str(self.bin), kept.get("PATH", os.defpath)))}
