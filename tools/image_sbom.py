"""Prints what is in an image as CycloneDX 1.5, from inside it: Debian's packages, and this environment's of Python."""

import json
import subprocess
import sys
from importlib.metadata import distributions
from typing import Any


def bill_of_materials(debian: str, python: list[tuple[str, str]]) -> dict[str, Any]:
    """debian: lines of "name version architecture". python: names and versions."""
    systems = [line.split() for line in debian.splitlines()]
    components = [
        *(_component(name, version, f"pkg:deb/debian/{name}@{version}?arch={arch}") for name, version, arch in systems),
        *(
            _component(name, version, f"pkg:pypi/{name.lower().replace('_', '-')}@{version}")
            for name, version in python
        ),
    ]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": "tandem", "bom-ref": "tandem"}},
        "components": sorted(components, key=lambda it: it["purl"]),
    }


def _component(name: str, version: str, purl: str) -> dict[str, str]:
    purl = purl.replace("+", "%2B")
    return {"type": "library", "name": name, "version": version, "purl": purl, "bom-ref": purl}


if __name__ == "__main__":
    installed = subprocess.run(
        ["/usr/bin/dpkg-query", "--show", "--showformat", "${Package} ${Version} ${Architecture}\n"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    found = [(it.metadata["Name"], it.version) for it in distributions()]
    json.dump(bill_of_materials(installed, found), sys.stdout, indent=1)
