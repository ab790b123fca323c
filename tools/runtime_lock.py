"""Prints the part of requirements.lock that the services need: no tests, no benchmarks, no embedded stack.

pip-compile says of each package who needs it ("# via"): one is needed if pyproject.toml's dependencies or one of EXTRAS
name it, or one that is needed does. For the image (tools/image.sh), so it needs nothing installed.
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRAS = ("server", "kafka", "eventbridge", "redis", "search")
"""What the services need, whatever they are told to do."""


def runtime_lock(lock: str, dependencies: list[str]) -> str:
    """lock: as pip-compile writes it. dependencies: as pyproject.toml has them."""
    blocks = {block.partition("==")[0]: block for block in re.split(r"\n(?=[a-z0-9])", lock) if "==" in block}
    needed_by = {name: set(re.findall(r"[a-z0-9][a-z0-9.-]+", _via(block))) for name, block in blocks.items()}
    needed = {_normal(re.split(r"[^A-Za-z0-9._-]", it)[0]) for it in dependencies}
    missing = needed - blocks.keys()
    if missing:
        raise SystemExit(f"not in requirements.lock: {', '.join(sorted(missing))}: run make lock")
    while more := {name for name, users in needed_by.items() if users & needed} - needed:
        needed |= more
    return "\n".join(blocks[name].rstrip() for name in sorted(needed)) + "\n"


def services_lock() -> str:
    """Of this project."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    dependencies = [*project["dependencies"], *(it for name in EXTRAS for it in extras[name] if not _is_own(it))]
    return runtime_lock((ROOT / "requirements.lock").read_text(), dependencies)


def _is_own(requirement: str) -> bool:
    """Whether it is an extra that has all of another one."""
    return requirement.startswith("tandem-cqrs[")


def _via(block: str) -> str:
    return block.partition("# via")[2]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    print(services_lock(), end="")
