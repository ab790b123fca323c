"""What the contract promises is there: every RPC, every event, every error; and the stubs fit what is installed."""

import inspect
import re
from importlib.metadata import version
from pathlib import Path

import google.protobuf
import grpc
import pytest
from google.protobuf.descriptor import ServiceDescriptor

from command_server.apply import CHANGES
from command_server.catalogue import CATALOGUE
from command_server.servicers import CommandServicer
from commerce.command.v1 import command_service_pb2
from commerce.event.v1.event_pb2 import Event
from commerce.feed.v1 import feed_service_pb2
from commerce.projection.v1 import projection_service_pb2
from projector.feed_service.servicers import FeedServicer
from projector.projections.catalogue import PROJECTIONS
from projector.servicers import ProjectionServicer
from shop.events import EVENTS
from shop.views import CACHED_VIEWS, VIEWS
from tandem.runtime import errors

ROOT = Path(__file__).parents[2]
GEN = ROOT / "gen"

SERVED: dict[str, tuple[ServiceDescriptor, type]] = {
    it[0].full_name: it
    for it in (
        (command_service_pb2.DESCRIPTOR.services_by_name["CommandService"], CommandServicer),
        (projection_service_pb2.DESCRIPTOR.services_by_name["ProjectionService"], ProjectionServicer),
        (feed_service_pb2.DESCRIPTOR.services_by_name["FeedService"], FeedServicer),
    )
}

IGNORED_EVENTS: dict[str, str] = {}
"""Events that no view takes, by kind, and why."""


def test_every_service_of_the_contract_is_served() -> None:
    in_contract = set()
    for path in (ROOT / "proto").rglob("*.proto"):
        text = path.read_text()
        package = re.search(r"^package ([\w.]+);", text, re.MULTILINE)
        assert package, f"{path} names no package"
        in_contract |= {f"{package[1]}.{name}" for name in re.findall(r"^service (\w+)", text, re.MULTILINE)}
    assert in_contract == set(SERVED)


@pytest.mark.parametrize("service", SERVED)
def test_every_rpc_has_a_method_of_its_name_and_no_method_is_without_an_rpc(service: str) -> None:
    descriptor, servicer = SERVED[service]
    methods = {name for name in vars(servicer) if not name.startswith("_")}
    rpcs = {method.name for method in descriptor.methods}
    assert rpcs - methods == set(), f"RPCs without a method: add them to {file_of(servicer)}"
    assert methods - rpcs == set(), f"methods in {file_of(servicer)} without an RPC: add it to {descriptor.file.name}"


def file_of(servicer: type) -> str:
    return str(Path(inspect.getfile(servicer)).relative_to(ROOT))


def test_every_event_changes_a_view_or_is_listed_as_ignored() -> None:
    projected = {kind for projection in PROJECTIONS.values() for kind in projection.rules}
    unknown = projected - set(EVENTS.kinds)
    assert unknown == set(), "rules in projector/projections for events that are not in commerce/event/v1/event.proto"
    left = set(EVENTS.kinds) - projected - set(IGNORED_EVENTS)
    assert left == set(), "events that no view takes: add a rule in projector/projections, or say why in IGNORED_EVENTS"
    assert set(IGNORED_EVENTS) - set(EVENTS.kinds) | set(IGNORED_EVENTS) & projected == set(), (
        "ignored without a reason"
    )


def test_every_event_changes_the_write_model_and_says_how() -> None:
    events = {type(getattr(Event(), kind)) for kind in EVENTS.kinds}
    assert events - set(CHANGES) == set(), "say in command_server/apply.py what these events change, and in its table"
    assert set(CHANGES) - events == set(), "in command_server/apply.py and not in commerce/event/v1/event.proto"


def test_every_command_is_in_the_catalogue() -> None:
    service = command_service_pb2.DESCRIPTOR.services_by_name["CommandService"]
    public = {it.DESCRIPTOR.name for it in CATALOGUE if it.DESCRIPTOR.file.package == "commerce.command.v1"}
    requests = {method.input_type.name for method in service.methods}
    assert requests - public == set(), "commands without a row in command_server/catalogue.py"
    assert public - requests == set(), "rows of command_server/catalogue.py that no RPC takes"


def test_every_view_has_a_table_and_every_table_a_projection() -> None:
    assert set(PROJECTIONS) - set(VIEWS) == set(), "views without a table in VIEWS of shop/views.py"
    assert set(VIEWS) - set(PROJECTIONS) == set(), "tables without a row in projector/projections/catalogue.py"
    assert CACHED_VIEWS - set(VIEWS) == set(), "cached, and no view in shop/views.py"


def test_every_views_table_is_made_by_a_migration() -> None:
    """By name. That the tables are the same as the described ones, a test compares in PostgreSQL."""
    made = "".join(path.read_text() for path in (ROOT / "projector" / "migrations" / "versions").glob("*.py"))
    without = {view for view in VIEWS if not re.search(rf"\b{view}\b", made)}
    assert without == set(), "views whose table no migration in projector/migrations/versions makes"


def test_every_command_and_every_view_is_named_by_a_test() -> None:
    rules = words_of(ROOT / "tests" / "unit" / "command_server")
    commands = {it.DESCRIPTOR.name.removesuffix("Request") for it in CATALOGUE}
    untested = {it for it in commands if not {f"{it}Request", snake_case(it)} & rules}
    assert untested == set(), "commands whose rule no test in tests/unit/command_server takes"
    untested = set(VIEWS) - words_of(ROOT / "tests" / "unit") - words_of(ROOT / "tests" / "integration")
    assert untested == set(), "views whose rules no test in tests/unit/projector takes"


def words_of(folder: Path) -> set[str]:
    """All words of the tests in a folder; a module's path counts word by word."""
    return {word for path in folder.rglob("test_*.py") for word in re.findall(r"\w+", path.read_text())}


def snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def test_every_kind_of_error_has_a_status_code() -> None:
    kinds = set(errors.TandemError.__subclasses__())
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
