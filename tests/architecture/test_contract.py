"""What the contract promises is there: every RPC, every event, every error; and the stubs fit what is installed."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import google.protobuf
import grpc
from pydantic import SecretStr

import command_server.app
import command_server.settings
import projector.app
import projector.settings
import query_server.app
import query_server.settings
from shop.events import EVENTS
from shop.views import VIEWS
from tandem.runtime import errors
from tandem.runtime.server import Application
from tandem.runtime.settings import DatabaseSettings, ServerSettings
from tools.descriptors import load_contract, short

ROOT = Path(__file__).parents[2]
GEN = ROOT / "gen"

PROJECTIONS = projector.app.VIEWS.projections


def applications() -> list[Application]:
    """Each service as it is wired: an RPC that nobody answers is an error then. Nothing connects."""
    nowhere = DatabaseSettings(url=SecretStr("postgresql://nobody@127.0.0.1:1/nothing"))
    server = ServerSettings(port=0)
    return [
        command_server.app.build(command_server.settings.Settings(database=nowhere, server=server)),
        projector.app.build(projector.settings.Settings(feed_database=nowhere, read_database=nowhere, server=server)),
        query_server.app.build(query_server.settings.Settings(database=nowhere, server=server)),
    ]


IGNORED_EVENTS: dict[str, str] = {}
"""Events that no view takes, by kind, and why."""


def test_every_service_of_the_contract_is_served() -> None:
    in_contract = set()
    for path in (ROOT / "proto/commerce").rglob("*.proto"):
        text = path.read_text()
        package = re.search(r"^package ([\w.]+);", text, re.MULTILINE)
        assert package, f"{path} names no package"
        in_contract |= {f"{package[1]}.{name}" for name in re.findall(r"^service (\w+)", text, re.MULTILINE)}
    assert in_contract == {service.descriptor.full_name for it in applications() for service in it.services}


def test_every_event_changes_a_view_or_is_listed_as_ignored() -> None:
    projected = {kind for projection in PROJECTIONS.values() for kind in projection.rules}
    unknown = projected - set(EVENTS.kinds)
    assert unknown == set(), "rules in projector/ for events that are not in commerce/event/v1/event.proto"
    left = set(EVENTS.kinds) - projected - set(IGNORED_EVENTS)
    assert left == set(), "events that no view takes: add a rule in projector/, or say why in IGNORED_EVENTS"
    assert set(IGNORED_EVENTS) - set(EVENTS.kinds) | set(IGNORED_EVENTS) & projected == set(), (
        "ignored without a reason"
    )


def test_every_views_table_is_made_by_a_migration() -> None:
    """By name. That the tables are the same as the described ones, a test compares in PostgreSQL."""
    made = "".join(path.read_text() for path in (ROOT / "projector" / "migrations" / "versions").glob("*.py"))
    without = {view for view in VIEWS if not re.search(rf"\b{view}\b", made)}
    assert not without, f"no migration makes their tables: run make migration NAME={' '.join(sorted(without))}"


def test_every_command_and_every_view_is_named_by_a_test() -> None:
    of_features = words_of(ROOT / "tests" / "unit" / "shop")
    rules = of_features | words_of(ROOT / "tests" / "unit" / "command_server")
    commands = {it.DESCRIPTOR.name.removesuffix("Request") for it in command_server.app.DOMAIN.kinds}
    untested = {it for it in commands if not {f"{it}Request", snake_case(it)} & rules}
    assert untested == set(), "commands whose rule no test in tests/unit/shop or tests/unit/command_server takes"
    untested = set(VIEWS) - words_of(ROOT / "tests" / "unit") - words_of(ROOT / "tests" / "integration")
    assert untested == set(), "views whose rules no test in tests/unit/shop or tests/unit/projector takes"


def words_of(folder: Path) -> set[str]:
    """All words of the tests in a folder; a module's path counts word by word."""
    return {word for path in folder.rglob("test_*.py") for word in re.findall(r"\w+", path.read_text())}


def snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def kinds_of(error: type[errors.TandemError]) -> set[type[errors.TandemError]]:
    """Those below it."""
    return {one for it in error.__subclasses__() for one in ({it} | kinds_of(it))}


def test_every_kind_of_error_has_a_status_code() -> None:
    # That one has the code of what was told before.
    kinds = kinds_of(errors.TandemError) - {errors.RefusedBefore}
    assert kinds
    without = {kind.__name__ for kind in kinds if kind not in errors._CODES}
    assert not without
    drawn = set(re.findall(r"[├└]── (\w+) +[A-Z_]+ ", errors.__doc__ or ""))
    assert drawn == {kind.__name__ for kind in kinds}, "the tree in the module's docstring"


def versions(pattern: str, files: str) -> set[str]:
    """What the generated files of a glob say of themselves."""
    found = {match[1] for path in GEN.rglob(files) if (match := re.search(pattern, path.read_text()))}
    assert found, f"no {files} says a version"
    return found


def test_the_stubs_were_made_by_the_grpcio_that_is_installed() -> None:
    assert versions(r"GRPC_GENERATED_VERSION = '([\d.]+)'", "*_pb2_grpc.py") == {grpc.__version__}
    assert version("grpcio-tools") == grpc.__version__


def test_the_messages_were_made_for_the_protobuf_that_is_installed() -> None:
    [made_for] = versions(r"# Protobuf Python Version: ([\d.]+)", "*_pb2.py")
    installed = google.protobuf.__version__
    assert made_for.split(".")[0] == installed.split(".")[0], "another major: the pair is not supported"
    assert [*map(int, made_for.split("."))] <= [*map(int, installed.split("."))], "newer than the runtime"


def test_every_rpc_is_in_the_shops_policy_and_has_a_row_in_its_test() -> None:
    # Here: where the contract lacks a message, the other rules are to say so.
    from tests.support.access import RPCS

    rpcs = {(service.name, rpc.name) for service in load_contract().services for rpc in service.rpcs}
    policy = tomllib.loads((ROOT / "deploy" / "policy.toml").read_text())["rpcs"]
    unnamed = sorted(name for service, name in rpcs if not policy.get(service, {}).keys() & {name, "*"})
    assert not unnamed, f"nobody may call {', '.join(unnamed)}: deploy/policy.toml says who may"
    assert {f"{short(service)}/{name}" for service, name in rpcs} == RPCS.keys(), "tests/support/access.py has others"
