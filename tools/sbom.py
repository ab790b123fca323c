"""Prints what is in an image as CycloneDX 1.5, from inside it: Debian's packages, and this environment's of Python.

For inside an image, so the standard library is enough; tools/package_sbom.py makes the package's with the same parts.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution, distributions
from typing import Any

Component = dict[str, Any]

# What packages write where an SPDX expression belongs, and means one.
_SPDX = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "Dual License": "Apache-2.0 OR BSD-3-Clause",  # python-dateutil's
    "ISC License": "ISC",
    "MIT License": "MIT",
}


def bill_of_materials(subject: Component, components: Iterable[Component]) -> dict[str, Any]:
    """Of a subject that is made of these. The same parts give the same text: no time, no serial number."""
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": subject},
        "components": sorted(components, key=lambda it: str(it["purl"])),
    }


def debian_components(listed: str) -> list[Component]:
    """listed: lines of "name version architecture"."""
    found = (line.split() for line in listed.splitlines())
    return [_component(name, version, f"pkg:deb/debian/{name}@{version}?arch={arch}") for name, version, arch in found]


def python_component(it: Distribution) -> Component:
    name = it.metadata["Name"]
    found = _component(name, it.version, f"pkg:pypi/{name.lower().replace('_', '-')}@{it.version}")
    licence = licence_of(it.metadata)
    if licence:
        is_expression = re.fullmatch(r"[A-Za-z0-9.+-]+( (AND|OR|WITH) [A-Za-z0-9.+-]+)*", licence)
        found["licenses"] = [{"expression": licence} if is_expression else {"license": {"name": licence}}]
    return found


def licence_of(metadata: Any) -> str:
    """An SPDX expression where the package has one, else its own words, or nothing. metadata: the distribution's."""
    classifiers = metadata.get_all("Classifier") or []
    said = [
        metadata.get("License-Expression"),
        metadata.get("License"),
        *(it.rpartition(" :: ")[2] for it in classifiers if it.startswith("License :: OSI Approved ::")),
    ]
    # Some write the whole text where its name belongs.
    named = [it for it in said if it and "\n" not in it]
    return _SPDX.get(named[0], named[0]) if named else ""


def _component(name: str, version: str, purl: str) -> Component:
    purl = purl.replace("+", "%2B")
    return {"type": "library", "name": name, "version": version, "purl": purl, "bom-ref": purl}


def print_bill(bill: Mapping[str, Any]) -> None:
    json.dump(bill, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    installed = subprocess.run(
        ["/usr/bin/dpkg-query", "--show", "--showformat", "${Package} ${Version} ${Architecture}\n"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    image = {"type": "container", "name": "tandem", "bom-ref": "tandem"}
    components = [*debian_components(installed), *map(python_component, distributions())]
    print_bill(bill_of_materials(image, components))
