"""Prints what a wheel of Tandem brings with it, as CycloneDX 1.5: `python -m tools.package_sbom WHEEL`.

Of each package that its extras for users require: the version that is installed here, which is the tested one, its
licence, what it requires itself, and which extra needs it. The same wheel and requirements.lock give the same text.
"""

import hashlib
import sys
import zipfile
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.dependencies import needed
from tools.sbom import Component, bill_of_materials, licence_of, print_bill, python_component

EXTRAS = ("server", "kafka", "eventbridge", "redis", "search", "embedded", "mesh")
"""Those that users install; each one has all of the first."""


def package_bill(wheel: Path) -> dict[str, Any]:
    """Of a wheel, with the environment that this runs in."""
    metadata = metadata_of(wheel)
    requires = metadata.get_all("Requires-Dist") or []
    of_all = needed(requires, EXTRAS)
    components = {name: python_component(it.distribution) for name, it in of_all.items()}
    first = {name: extra for extra in reversed(EXTRAS) for name in needed(requires, [extra])}
    always = needed(requires)
    for name, component in components.items():
        component["scope"] = "required" if name in always else "optional"
        if name not in always:
            component["properties"] = [{"name": "tandem:extra", "value": first[name]}]
    subject: Component = {
        "type": "library",
        "name": metadata["Name"],
        "version": metadata["Version"],
        "purl": (purl := f"pkg:pypi/{metadata['Name']}@{metadata['Version']}"),
        "bom-ref": purl,
        "licenses": [{"expression": licence_of(metadata)}],
        "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(wheel.read_bytes()).hexdigest()}],
    }
    references = {name: it["bom-ref"] for name, it in components.items()}
    direct = frozenset(canonicalize_name(Requirement(it).name) for it in requires) & components.keys()
    required = {references[name]: it.needs for name, it in of_all.items()} | {purl: direct}
    return bill_of_materials(subject, components.values()) | {
        "dependencies": [
            {"ref": reference, "dependsOn": sorted(references[name] for name in names)}
            for reference, names in sorted(required.items())
        ]
    }


def metadata_of(wheel: Path) -> Message:
    """Its METADATA."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [it for it in archive.namelist() if it.endswith(".dist-info/METADATA")]
        return HeaderParser().parsestr(archive.read(name).decode())


if __name__ == "__main__":
    print_bill(package_bill(Path(sys.argv[1])))
