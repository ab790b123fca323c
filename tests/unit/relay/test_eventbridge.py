"""A sink for EventBridge on a server that keeps connections open between two questions, as AWS does.

The emulator of the other tests closes each. This one says that nothing is there, enough for who asks for a place.
"""

import os
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from commerce.event.v1.event_pb2 import Event
from tandem.relay.eventbridge import EventBridgeSink
from tandem.relay.settings import EventBridgeSettings
from tandem.relay.sink import Origin, Place
from tandem.testing.stack import until

OPEN: set[threading.Thread] = set()


class Empty(BaseHTTPRequestHandler):
    """It has nothing. Each connection has a thread."""

    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        OPEN.add(threading.current_thread())
        super().handle()
        OPEN.discard(threading.current_thread())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "application/x-amz-json-1.0")
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Nowhere."""


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Empty)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_REGION": "eu-central-1",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }.items():
        monkeypatch.setenv(name, value)
    yield
    server.shutdown()
    serving.join()
    server.server_close()


@pytest.mark.usefixtures("aws")
async def test_a_sink_that_is_closed_leaves_no_connection() -> None:
    settings = EventBridgeSettings(bus="bus", ack_seconds=10)
    sink = EventBridgeSink(settings, Event, relay="one", source="/shop", first_position=1, personal_data="sealed")
    assert await sink.place(Origin(uuid.uuid4(), 1000)) == Place(0, 0, "")
    assert len(OPEN) == 2, "one for events, and one for the place"
    await sink.close()

    async def are_closed() -> bool:
        return not OPEN

    await until(are_closed, "both are closed", 20)
