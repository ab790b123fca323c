"""Envoy's configuration, where it is started by `tandem`."""

from pathlib import Path

import pytest

from shop.cli import ENVOY, SHOP
from tandem.cli import local_stack
from tandem.cli.child import StackError
from tandem.cli.local_stack import LocalStack
from tandem.cli.mesh import MISSING, MeshConfig, envoy_path


def test_a_mesh_without_envoy_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(local_stack, "envoy_path", lambda: None)
    with pytest.raises(StackError, match="pip install"):
        LocalStack(tmp_path, {}, SHOP.modules, envoy=SHOP.mesh, mesh=True)


@pytest.mark.skipif(envoy_path() is None, reason=MISSING)
def test_a_local_mesh_listens_on_this_machine_alone_and_asks_nobody_who_he_is() -> None:
    servers = {"command": ["127.0.0.1:1", "127.0.0.1:2"], "query": ["unix:query-1.sock"]}
    config = MeshConfig(ENVOY, port=50050, servers=servers)
    assert "envoy.filters.http.jwt_authn" in config.filters
    config.without_identity()
    assert not {"envoy.filters.http.jwt_authn", "envoy.filters.http.rbac"} & config.filters.keys()
    assert "tandem-claims" not in str(config.document)
    [listener] = config.document["static_resources"]["listeners"]
    assert listener["address"] == {"socket_address": {"address": "127.0.0.1", "port_value": 50050}}
    assert "transport_socket" not in listener["filter_chains"][0]
    [_, query] = config.document["static_resources"]["clusters"]
    assert query["load_assignment"]["endpoints"] == [
        {"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": "query-1.sock"}}}}]}
    ]


@pytest.mark.skipif(envoy_path() is None, reason=MISSING)
def test_what_operators_ask_is_reached_where_they_are_let_in_alone() -> None:
    servers = {"command": ["127.0.0.1:1"], "query": ["127.0.0.1:2"]}
    config = MeshConfig(ENVOY, port=50050, servers=servers)
    listener = config.document["static_resources"]["listeners"][0]
    routing = listener["filter_chains"][0]["filters"][0]["typed_config"]["route_config"]
    [host] = routing["virtual_hosts"]
    assert "rojection" not in str(host["routes"])
    config.without_identity().with_operators(["127.0.0.1:3"], projections="x.Projections", receipts="x.Receipts")
    ways = [(it["match"], it["route"]["cluster"]) for it in host["routes"][:4]]
    assert [(match["prefix"], cluster) for match, cluster in ways] == [
        ("/x.Projections/", "projector"),
        ("/x.Receipts/", "command"),
        ("/grpc.health.v1.Health/", "command"),
        ("/grpc.health.v1.Health/", "projector"),
    ]
    [*_, projector] = config.document["static_resources"]["clusters"]
    assert (projector["name"], projector["load_assignment"]["cluster_name"]) == ("projector", "projector")


@pytest.mark.skipif(envoy_path() is None, reason=MISSING)
def test_pages_are_answered_first_with_headers_that_let_them_do_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    for name in ("index.html", "console.html", "assets/index.js", "notes.txt"):
        (tmp_path / name).write_text(f"this is {name}")
    servers = {"command": ["127.0.0.1:1"], "query": ["127.0.0.1:2"]}
    config = MeshConfig(ENVOY, port=50050, servers=servers)
    listener = config.document["static_resources"]["listeners"][0]
    routing = listener["filter_chains"][0]["filters"][0]["typed_config"]["route_config"]
    [host] = routing["virtual_hosts"]
    before = list(host["routes"])
    config.with_pages(tmp_path)
    pages = {it["match"]["path"]: it for it in host["routes"][: -len(before)]}
    assert host["routes"][-len(before) :] == before
    assert pages.keys() == {"/", "/console", "/assets/index.js"}
    assert pages["/"]["direct_response"]["body"] == {"filename": str(tmp_path / "index.html")}
    headers = {it["header"]["key"]: it["header"]["value"] for it in pages["/"]["response_headers_to_add"]}
    assert headers["content-type"] == "text/html; charset=utf-8"
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert [it for it in ("unsafe", "data:", "http", "*", "nonce") if it in policy] == []
    assert routing["max_direct_response_body_size_bytes"] == len("this is assets/index.js")


def test_a_stack_without_envoy_or_without_built_pages_says_why_it_has_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stack(pages: Path | None) -> LocalStack:
        return LocalStack(tmp_path, {}, SHOP.modules, envoy=SHOP.mesh, pages=pages)

    assert (stack(None).without_pages, stack(None).pages()) == ("", {})
    monkeypatch.setattr(local_stack, "envoy_path", lambda: tmp_path)
    assert stack(tmp_path / "nothing").without_pages == "they are not built: make pages"
    (tmp_path / "index.html").write_text("<title>Tea &amp; more</title>")
    served = stack(tmp_path)
    assert served.without_pages == ""
    assert list(served.pages().values()) == ["Tea & more"]
    monkeypatch.setattr(local_stack, "envoy_path", lambda: None)
    assert stack(tmp_path).without_pages == "they need Envoy: pip install 'tandem-cqrs[mesh]'"
    assert stack(tmp_path).envoy is None
