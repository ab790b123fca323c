"""A small collector of traces: it takes spans as OpenTelemetry's exporters send them, over grpc and over HTTP."""

import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as collector
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service

from tandem.cli.child import HOST


class Span(NamedTuple):
    """links: the ids of spans. began, ended: in nanoseconds."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    links: tuple[str, ...]
    attributes: dict[str, Any]
    began: int
    ended: int
    failed: bool


class Collector(service.TraceServiceServicer):
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[Span] = []
        self._grpc = grpc.server(futures.ThreadPoolExecutor(4))
        service.add_TraceServiceServicer_to_server(self, self._grpc)  # type: ignore[no-untyped-call]
        self.grpc_endpoint = f"http://{HOST}:{self._grpc.add_insecure_port(f'{HOST}:0')}"
        taken = self._take

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                taken(
                    collector.ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
                )
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer((HOST, 0), Handler)
        self.http_endpoint = f"http://{HOST}:{self._http.server_port}/v1/traces"
        self._thread = threading.Thread(target=self._http.serve_forever)

    def start(self) -> None:
        self._grpc.start()
        self._thread.start()

    def stop(self) -> None:
        self._grpc.stop(None).wait()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def Export(self, request: Any, context: object) -> Any:
        self._take(request)
        return collector.ExportTraceServiceResponse()

    def spans(self, trace: str) -> list[Span]:
        with self._lock:
            return [it for it in self._spans if it.trace == trace]

    def named(self, name: str) -> list[Span]:
        """Of all traces."""
        with self._lock:
            return [it for it in self._spans if it.name == name]

    def _take(self, request: Any) -> None:
        with self._lock:
            for resource in request.resource_spans:
                name = {it.key: it.value.string_value for it in resource.resource.attributes}["service.name"]
                for scope in resource.scope_spans:
                    self._spans += [_span(name, it) for it in scope.spans]


def _span(service: str, it: Any) -> Span:
    attributes = {one.key: one.value.string_value or one.value.int_value for one in it.attributes}
    return Span(
        service, it.name, it.trace_id.hex(), it.span_id.hex(), it.parent_span_id.hex(),
        tuple(link.span_id.hex() for link in it.links), attributes, it.start_time_unix_nano, it.end_time_unix_nano,
        it.status.code == it.status.STATUS_CODE_ERROR,
    )  # fmt: skip
