import json
from collections.abc import Callable
from pathlib import Path

import grpc
import grpc_testing
import pytest
import yaml
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2
from rich.console import Console

from commerce.projection.v1 import projection_service_pb2 as projections
from tandem.cli import status
from tests.support.fake_channel import Answer, FakeService, fake_channel

ROOT = Path(__file__).parents[3]
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
PROJECTION = projections.DESCRIPTOR.services_by_name["ProjectionService"]
SERVING = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
NOT_SERVING = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING)
REFUSED = (grpc.StatusCode.UNAVAILABLE, "Connection refused")
VIEWS = projections.ListProjectionsResponse(
    feed_head=1234,
    projections=[
        projections.Projection(
            view="order_details",
            state=projections.PROJECTION_STATE_RUNNING,
            position=1230,
            lag_events=4,
            lag=Duration(nanos=250_000_000),
        )
    ],
)


def always(answer: Answer) -> Callable[[object], Answer]:
    return lambda _: answer


def ask(health: dict[str, Answer], views: Answer | None = VIEWS) -> status.Report:
    channels: dict[str, tuple[str, grpc_testing.Channel]] = {}
    for number, (name, answer) in enumerate(health.items()):
        channel = fake_channel([HEALTH, PROJECTION])
        FakeService(channel, HEALTH.methods_by_name["Check"], always(answer))
        if name == "projector" and views is not None:
            FakeService(channel, PROJECTION.methods_by_name["ListProjections"], always(views))
        channels[name] = (f"127.0.0.1:{number}", channel)
    return status.ask(channels, "projector", PROJECTION)


ALL_SERVE: dict[str, Answer] = {"command_server": SERVING, "query_server": SERVING, "projector": SERVING}


def behind(seconds: int, state: projections.ProjectionState.ValueType) -> status.Report:
    [view] = VIEWS.projections
    late = projections.Projection(view=view.view, state=state, lag_events=1, lag=Duration(seconds=seconds))
    return ask(ALL_SERVE, views=projections.ListProjectionsResponse(feed_head=1, projections=[late]))


def ask_with_cache(answer: Answer) -> status.Report:
    channel = fake_channel([PROJECTION])
    FakeService(channel, PROJECTION.methods_by_name["ListCacheNodes"], always(answer))
    return status.with_cache(ask(ALL_SERVE), {"projector": ("127.0.0.1:2", channel)}, "projector", PROJECTION)


def shown(report: status.Report) -> str:
    console = Console(width=120, no_color=True)
    with console.capture() as capture:
        console.print(status.as_tables(report))
    return capture.get()


def test_services_that_serve_and_views_that_run_are_well() -> None:
    report = ask(ALL_SERVE)
    assert report.well
    assert status.problems(report) == []


def test_the_tables_show_services_views_and_the_feed_head() -> None:
    lines = shown(ask(ALL_SERVE)).splitlines()
    assert lines[1].split() == ["command_server", "127.0.0.1:0", "serving"]
    shown_as = ["order_details", "running", "1,230", "4", "0.250", "0", "0", "not", "yet"]
    assert shown_as in [line.split() for line in lines]
    assert lines[-1] == "feed head: 1,234"


def test_the_json_says_the_same_to_programs() -> None:
    content = json.loads(json.dumps(status.as_fields(ask(ALL_SERVE))))
    assert content["well"] is True
    assert content["feed_head"] == 1234
    assert content["views"] == [
        {
            "name": "order_details",
            "state": "running",
            "position": 1230,
            "lag_events": 4,
            "lag_seconds": 0.25,
            "parked_keys": 0,
            "error": "",
            "differences": 0,
            "audited_seconds": None,
        }
    ]
    assert content["services"][2] == {
        "name": "projector",
        "address": "127.0.0.1:2",
        "health": "serving",
        "problem": "",
    }


@pytest.mark.parametrize("name", ["command_server", "query_server"])
def test_a_service_that_cannot_be_reached_is_named_with_its_address(name: str) -> None:
    report = ask(ALL_SERVE | {name: REFUSED})
    assert not report.well
    [problem] = status.problems(report)
    assert problem.startswith(f"{name} cannot be reached at 127.0.0.1:")
    assert "Connection refused" in problem
    assert report.feed_head == 1234, "the projector still tells"


def test_without_the_projector_the_services_are_shown_alone() -> None:
    report = ask(ALL_SERVE | {"projector": REFUSED}, views=None)
    assert not report.well
    assert report.views == ()
    assert "unreachable" in shown(report)
    assert "feed head" not in shown(report)


def test_a_service_that_does_not_serve_is_not_well() -> None:
    report = ask(ALL_SERVE | {"query_server": NOT_SERVING})
    assert not report.well
    assert status.problems(report) == [
        "query_server does not serve: a store of its is away or not migrated; its log says more."
    ]


def test_a_projector_that_cannot_tell_is_a_problem() -> None:
    report = ask(ALL_SERVE, views=(grpc.StatusCode.UNAVAILABLE, "the read database is away"))
    assert not report.well
    assert status.problems(report) == [
        "the projector does not tell how far the views are: UNAVAILABLE: the read database is away"
    ]


def test_a_projector_of_another_domain_is_taken_for_a_server_of_another_program() -> None:
    report = ask(ALL_SERVE, views=(grpc.StatusCode.UNIMPLEMENTED, "this server has no …/ListProjections"))
    assert not report.well
    [problem] = status.problems(report)
    assert problem.endswith("(is a server of another program, or of another release, at this address?)")


def test_a_store_that_does_not_answer_the_projector_is_named() -> None:
    silent = projections.UnreachableStore(store="read database", problem="the read database has not answered in time")
    views = projections.ListProjectionsResponse()
    views.CopyFrom(VIEWS)
    views.unreachable.append(silent)
    report = ask(ALL_SERVE, views=views)
    assert not report.well
    assert "1,230" in shown(report)
    assert status.problems(report) == [
        "the views are as the projector last saw them: the read database has not answered in time"
    ]
    assert status.as_fields(report)["unreachable"] == {silent.store: silent.problem}


def test_a_view_that_cannot_go_on_says_why() -> None:
    failed = projections.ListProjectionsResponse(
        feed_head=9,
        projections=[
            projections.Projection(
                view="product_card", state=projections.PROJECTION_STATE_FAILED, error="event 7: unknown product"
            )
        ],
    )
    report = ask(ALL_SERVE, views=failed)
    assert not report.well
    assert status.problems(report) == ["product_card cannot go on: event 7: unknown product"]


def test_a_standby_says_what_stops_a_view_of_another_projector() -> None:
    failed = projections.ListProjectionsResponse(
        feed_head=9,
        projections=[
            projections.Projection(
                view="product_card", state=projections.PROJECTION_STATE_STANDBY, error="HISTORY_CHANGED: …"
            )
        ],
    )
    report = ask(ALL_SERVE, views=failed)
    assert not report.well
    assert status.problems(report) == ["product_card cannot go on: HISTORY_CHANGED: …"]


def test_nodes_of_the_cache_that_do_not_answer_or_are_fenced_are_named() -> None:
    nodes = projections.ListCacheNodesResponse(
        nodes=[
            projections.CacheNode(node="a:1", state=projections.CACHE_NODE_STATE_SERVING, entries=1),
            projections.CacheNode(node="b:1", state=projections.CACHE_NODE_STATE_SERVING, problem="refused"),
            projections.CacheNode(node="c:1", state=projections.CACHE_NODE_STATE_FENCED),
            projections.CacheNode(node="d:1", state=projections.CACHE_NODE_STATE_STANDBY),
        ]
    )
    report = ask_with_cache(nodes)
    assert not report.well
    assert status.problems(report) == ["the cache's node b:1 (no answer): refused", "the cache's node c:1 (fenced)"]
    assert [it["problem"] for it in json.loads(json.dumps(status.as_fields(report)))["cache"]] == [
        "",
        "refused",
        "",
        "",
    ]
    del nodes.nodes[1:3]
    assert ask_with_cache(nodes).well


def test_a_projector_of_a_release_before_tells_nothing_of_the_cache() -> None:
    assert ask_with_cache((grpc.StatusCode.UNIMPLEMENTED, "this server has no …")).well
    refused = ask_with_cache((grpc.StatusCode.PERMISSION_DENIED, "no"))
    assert status.problems(refused) == ["the projector does not tell how the cache is: PERMISSION_DENIED: no"]


def test_a_view_that_is_more_than_a_minute_behind_is_not_well() -> None:
    report = behind(61, projections.PROJECTION_STATE_RUNNING)
    assert not report.well
    assert status.problems(report) == ["order_details is 61 s behind, by 1 events"]
    assert behind(60, projections.PROJECTION_STATE_RUNNING).well


def test_a_view_that_nobody_follows_is_not_well() -> None:
    report = behind(92, projections.PROJECTION_STATE_STANDBY)
    assert not report.well
    [problem] = status.problems(report)
    assert problem.endswith("the projector that was asked is on standby for it: does another one follow it?")
    assert behind(0, projections.PROJECTION_STATE_STANDBY).well, "another projector follows it"


def test_a_view_is_late_when_the_alert_says_so() -> None:
    rules = yaml.safe_load((ROOT / "deploy/prometheus/tandem.rules.yml").read_text())["groups"][0]["rules"]
    [alert] = [it for it in rules if it.get("alert") == "TandemViewBehind"]
    assert alert["expr"].endswith(f"> {status.LATE_SECONDS:.0f}")
