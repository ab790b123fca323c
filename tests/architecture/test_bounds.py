"""The versions that the package allows are those that its generated code takes and that were tested."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tools.pythons import interpreter, named_versions

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
STUBS = [
    path
    for folder in ("gen", "tandem/internal", "tandem/services", "tandem/type")
    for path in (ROOT / folder).rglob("*_pb2*.py")
]
SHIPPED = [
    requirement
    for text in (
        *PROJECT["dependencies"],
        *(
            it
            for extra in ("client", "server", "kafka", "eventbridge", "redis", "search", "embedded", "mesh")
            for it in EXTRAS[extra]
        ),
    )
    if (requirement := Requirement(text)).name != PROJECT["name"]
]
LOCKED = dict(re.findall(r"^([\w-]+)==([^ ;\\]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))


def bounds(requirement: Requirement) -> dict[str, Version]:
    """By operator."""
    return {it.operator: Version(it.version) for it in requirement.specifier}


def demanded(pattern: str) -> set[Version]:
    """The versions that the stubs ask for when they are imported. pattern: has the digits in groups."""
    found = [match.groups() for path in STUBS for match in re.finditer(pattern, path.read_text())]
    return {Version(".".join(it)) for it in found}


def test_protobuf_and_grpcio_are_such_as_the_stubs_take() -> None:
    [grpcio] = demanded(r"GRPC_GENERATED_VERSION = '(\d+)\.(\d+)\.(\d+)'")
    [protobuf] = demanded(r"ValidateProtobufRuntimeVersion\(\s+\S+,\s+(\d+),\s+(\d+),\s+(\d+),")
    by_name = {it.name: bounds(it) for it in map(Requirement, PROJECT["dependencies"])}
    assert by_name["grpcio"] == {">=": grpcio}
    assert by_name["protobuf"] == {">=": protobuf, "<": Version(str(protobuf.major + 1))}


@pytest.mark.parametrize("requirement", SHIPPED, ids=lambda it: str(it.name))
def test_what_is_shipped_has_a_lower_bound_that_was_tested_and_no_needless_upper_one(requirement: Requirement) -> None:
    assert set(bounds(requirement)) == ({">=", "<"} if requirement.name == "protobuf" else {">="})
    assert requirement.specifier.contains(LOCKED[canonicalize_name(requirement.name)])


def test_the_pythons_that_are_named_begin_with_the_one_that_is_required() -> None:
    versions = named_versions()
    assert PROJECT["requires-python"] == f">={versions[0]}"
    first = int(versions[0].removeprefix("3."))
    assert versions == [f"3.{minor}" for minor in range(first, first + len(versions))], "without a gap"


def test_a_python_that_does_not_run_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert interpreter("3.99") is None
    shim = tmp_path / "python3.99"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    assert interpreter("3.99") is None
    shim.write_text("#!/bin/sh\nexit 0\n")
    assert interpreter("3.99") == str(shim)


def test_the_tools_name_what_the_extras_bring() -> None:
    """pip-compile reads no extra that names this package, so their packages are pinned by dev."""
    read = {Requirement(it).name for it in (*EXTRAS["dev"], *EXTRAS["server"], *PROJECT["dependencies"])}
    assert {it.name for it in SHIPPED} <= read
