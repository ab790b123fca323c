"""G1, G3, G14 behind a mesh: Envoy in front of the servers, as docs/mesh.md sets it up."""

import contextlib
import http.client
import itertools
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import psycopg
import pytest
import trustme

from commerce.command.v1.command_service_pb2 import CancelOrderRequest
from commerce.command.v1.command_service_pb2_grpc import CommandServiceStub
from commerce.event.v1.event_pb2 import Event
from commerce.projection.v1.projection_service_pb2 import ListProjectionsRequest
from commerce.projection.v1.projection_service_pb2_grpc import ProjectionServiceStub
from commerce.query.v1.query_service_pb2 import (
    GetOrderDetailsRequest,
    GetProductRequest,
    GetProductResponse,
    ListRecentOrdersRequest,
    WatchOrderDetailsRequest,
    WatchOrderDetailsResponse,
)
from commerce.query.v1.query_service_pb2_grpc import QueryServiceStub
from commerce.type.v1.order_status_pb2 import ORDER_STATUS_CANCELLED, ORDER_STATUS_PLACED
from shop.client import Client, Session
from tandem.cli.mesh import MISSING, envoy_path
from tandem.cli.services import Service
from tandem.client.errors import RowsBusy
from tandem.client.streams import resuming
from tandem.internal.v1.stored_pb2 import Envelope
from tandem.testing.stack import pause, resume, wait_until
from tests.support.builders import add_product, identity, register_customer
from tests.support.issuer import AUDIENCE, ISSUER, bearer, moved_in
from tests.support.mesh import WORKLOAD, Mesh, running_mesh
from tests.support.shop import CUSTOMERS, PRODUCTS, an_order
from tests.support.stack import Databases

pytestmark = pytest.mark.skipif(envoy_path() is None, reason=MISSING)

UNAUTHENTICATED, UNIMPLEMENTED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED
PRODUCT = GetProductRequest(product_id=identity("product", 1))
GET_PRODUCT = "/commerce.query.v1.QueryService/GetProduct"
WATCH_ORDER = "/commerce.query.v1.QueryService/WatchOrderDetails"
ORIGIN = "https://shop.example"


@pytest.fixture(scope="module")
def mesh(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with running_mesh(databases, tmp_path_factory.mktemp("mesh")) as mesh:
        with mesh.client() as client:
            session = client.session()
            for number in range(1, CUSTOMERS + 1):
                session.commands.RegisterCustomer(register_customer(number))
            for number in range(1, PRODUCTS + 1):
                session.commands.AddProduct(add_product(number, stock=1_000_000))
            session.queries.GetProduct(PRODUCT)
        yield mesh


def outcome(call: Callable[..., Any], request: Any, **options: Any) -> grpc.StatusCode:
    try:
        call(request, timeout=20, **options)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_nobody_without_an_identity_comes_past_it_and_nobody_says_that_he_is_another(mesh: Mesh) -> None:
    good = bearer(mesh.issuer.token("user-1"))
    expired = bearer(mesh.issuer.token("user-1", seconds=-100))
    basic = (("authorization", "Basic dXNlcjpwYXNz"),)
    forged = (
        ("x-forwarded-client-cert", f"Hash={'0a' * 32};URI={WORKLOAD}"),
        ("tandem-claims", f"33333333333^{ISSUER}^{AUDIENCE}^^^somebody-else"),
        ("tandem-claims", f"33333333333^{ISSUER}^{AUDIENCE}^^^somebody-else"),
    )
    with mesh.channel() as plain, mesh.channel(mesh.certificates.credentials_of(WORKLOAD)) as shown:
        without, with_certificate = QueryServiceStub(plain).GetProduct, QueryServiceStub(shown).GetProduct
        assert {
            "nobody": outcome(without, PRODUCT),
            "forged": outcome(without, PRODUCT, metadata=forged),
            "expired": outcome(without, PRODUCT, metadata=expired),
            "expired, with a certificate": outcome(with_certificate, PRODUCT, metadata=expired),
            "no token, with a certificate": outcome(with_certificate, PRODUCT, metadata=basic),
            "two": outcome(without, PRODUCT, metadata=(*good, *bearer(mesh.issuer.token("user-2")))),
        } == dict.fromkeys(
            (
                "nobody",
                "forged",
                "expired",
                "expired, with a certificate",
                "no token, with a certificate",
                "two",
            ),
            UNAUTHENTICATED,
        )
        assert outcome(without, PRODUCT, metadata=good) is grpc.StatusCode.OK
        assert outcome(with_certificate, PRODUCT) is grpc.StatusCode.OK
        # What is for operators is not reached from here.
        projections = ProjectionServiceStub(shown).ListProjections
        assert outcome(projections, ListProjectionsRequest()) is UNIMPLEMENTED
        by_token, by_certificate = register_customer(101), register_customer(102)
        CommandServiceStub(plain).RegisterCustomer(by_token, metadata=(*good, *forged))
        CommandServiceStub(shown).RegisterCustomer(by_certificate, metadata=forged)
    assert actors(mesh)[by_token.request_id] == "user-1"
    assert actors(mesh)[by_certificate.request_id] == WORKLOAD


def test_the_servers_are_told_what_a_token_claims_and_nothing_that_a_caller_says_of_it(mesh: Mesh) -> None:
    mine, others = (ListRecentOrdersRequest(customer_id=identity("customer", it)) for it in (1, 2))
    clerk = (("tandem-claims", f"33333333333^{ISSUER}^{AUDIENCE}^clerk^^user-1"),)
    with mesh.channel() as plain, mesh.channel(mesh.certificates.credentials_of(WORKLOAD)) as shown:

        def outcomes(**claims: Any) -> list[grpc.StatusCode]:
            metadata = (*clerk, *bearer(mesh.issuer.token("user-1", **claims)))
            return [outcome(QueryServiceStub(plain).ListRecentOrders, it, metadata=metadata) for it in (mine, others)]

        ok, denied = grpc.StatusCode.OK, grpc.StatusCode.PERMISSION_DENIED
        own = {"customer_id": mine.customer_id, "aud": ["elsewhere", AUDIENCE]}
        assert outcomes() == [denied, denied]
        assert outcomes(roles=["support", "clerk"]) == [ok, ok]
        assert outcomes(roles="support clerk") == [ok, ok]
        assert outcomes(roles=["customer"], **own) == [ok, grpc.StatusCode.NOT_FOUND]
        # What a claim says is that claim alone, whatever is in it.
        assert outcomes(customer_id='x^["clerk"]', roles=[]) == [UNAUTHENTICATED, UNAUTHENTICATED]
        assert outcome(QueryServiceStub(plain).ListRecentOrders, mine, metadata=clerk) is UNAUTHENTICATED
        assert outcome(QueryServiceStub(shown).ListRecentOrders, mine, metadata=clerk) is denied


def test_what_the_native_transport_cannot_take_does_not_come_to_it(mesh: Mesh) -> None:
    credentials = mesh.certificates.credentials_of(WORKLOAD)
    with mesh.channel(credentials, max_metadata_size=64 * 1024) as channel, mesh.client() as other:
        get = QueryServiceStub(channel).GetProduct
        assert outcome(get, PRODUCT, compression=grpc.Compression.Gzip) is UNIMPLEMENTED
        for kilobytes in (9, 20):
            assert outcome(get, PRODUCT, metadata=(("x-long", "x" * kilobytes * 1024),)) is not grpc.StatusCode.OK
        # 7 KiB come to the server, with all that Envoy adds.
        assert outcome(get, PRODUCT, metadata=(("x-long", "x" * 7 * 1024),)) is grpc.StatusCode.OK
        assert other.session().queries.GetProduct(PRODUCT).product.name == "Product 1"


def framed(message: bytes) -> bytes:
    return struct.pack(">BI", 0, len(message)) + message


def web_headers(mesh: Mesh) -> dict[str, str]:
    """What a page sends with a call, its user's token among it."""
    [(_, token)] = bearer(mesh.issuer.token("user-1"))
    kind = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1"}
    return {"origin": ORIGIN, "authorization": token, **kind}


def test_a_page_in_a_browser_calls_it(mesh: Mesh) -> None:
    context = ssl.create_default_context(cadata=mesh.certificates.authority.cert_pem.bytes().decode())
    with contextlib.closing(http.client.HTTPSConnection("127.0.0.1", mesh.port, timeout=20, context=context)) as web:
        asks = {"origin": ORIGIN, "access-control-request-method": "POST"}
        web.request(
            "OPTIONS", GET_PRODUCT, headers=asks | {"access-control-request-headers": "authorization,x-grpc-web"}
        )
        allowed = web.getresponse()
        allowed.read()
        assert (allowed.status, allowed.headers["access-control-allow-origin"]) == (200, ORIGIN)
        assert "authorization" in allowed.headers["access-control-allow-headers"]
        web.request("OPTIONS", GET_PRODUCT, headers=asks | {"origin": "https://elsewhere.example"})
        refused = web.getresponse()
        refused.read()
        assert refused.headers["access-control-allow-origin"] is None

        web.request("POST", GET_PRODUCT, body=framed(PRODUCT.SerializeToString()), headers=web_headers(mesh))
        answered = web.getresponse()
        body = answered.read()
    assert answered.headers["access-control-allow-origin"] == ORIGIN
    flag, length = struct.unpack(">BI", body[:5])
    assert flag == 0
    assert GetProductResponse.FromString(body[5 : 5 + length]).product.name == "Product 1"
    assert b"grpc-status:0" in body[5 + length :]


def test_a_page_in_a_browser_watches(mesh: Mesh) -> None:
    with mesh.client() as client:
        session = client.session()
        order_id = session.commands.PlaceOrder(an_order(9001)).order_id
        session.queries.GetOrderDetails(GetOrderDetailsRequest(order_id=order_id))
        message = WatchOrderDetailsRequest(order_id=order_id).SerializeToString()
        context = ssl.create_default_context(cadata=mesh.certificates.authority.cert_pem.bytes().decode())
        web = http.client.HTTPSConnection("127.0.0.1", mesh.port, timeout=20, context=context)
        with contextlib.closing(web):
            web.request("POST", WATCH_ORDER, body=framed(message), headers=web_headers(mesh))
            stream = web.getresponse()

            def status() -> int:
                """Of the next state that is pushed."""
                while True:
                    flag, length = struct.unpack(">BI", stream.read(5))
                    assert flag == 0, "a message"
                    told = WatchOrderDetailsResponse.FromString(stream.read(length))
                    if told.HasField("order_details"):
                        return told.order_details.status

            assert status() == ORDER_STATUS_PLACED
            session.commands.CancelOrder(CancelOrderRequest(order_id=order_id))
            assert status() == ORDER_STATUS_CANCELLED


def test_certificates_that_change_are_read_again_while_callers_go_on(mesh: Mesh) -> None:
    def shown() -> str:
        """The number of the certificate that a new connection is shown."""
        context = ssl.create_default_context(cadata=mesh.certificates.authority.cert_pem.bytes().decode())
        with (
            socket.create_connection(("127.0.0.1", mesh.port), 20) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
        ):
            certificate = secure.getpeercert()
            assert certificate is not None
            return str(certificate["serialNumber"])

    def by(credentials: grpc.ChannelCredentials) -> grpc.StatusCode:
        with mesh.channel(credentials) as channel:
            return outcome(QueryServiceStub(channel).GetProduct, PRODUCT)

    newer = trustme.CA()
    of_the_newer = mesh.certificates.credentials_of(WORKLOAD, newer)
    before = shown()
    with mesh.client() as client:
        get = client.session().queries.GetProduct
        get(PRODUCT)
        assert by(of_the_newer) is grpc.StatusCode.UNAVAILABLE

        mesh.certificates.replace_server("127.0.0.1")
        wait_until(lambda: shown() != before, "the newer certificate is shown")
        both = mesh.certificates.authority.cert_pem.bytes() + newer.cert_pem.bytes()
        moved_in(mesh.folder / "ca.pem", both)
        wait_until(lambda: by(of_the_newer) is grpc.StatusCode.OK, "callers of the newer authority are taken")
        get(PRODUCT)


def test_the_issuers_keys_are_read_again_when_they_change(mesh: Mesh) -> None:
    file = mesh.folder / "keys.json"

    def warnings() -> int:
        return mesh.envoy.log.read_text().count("Jwks async fetching")

    with mesh.channel() as channel:

        def by(token: str) -> grpc.StatusCode:
            return outcome(QueryServiceStub(channel).GetProduct, PRODUCT, metadata=bearer(token))

        old = mesh.issuer.token("user-1")
        mesh.issuer.rotate(keep=False)
        newer = mesh.issuer.token("user-1")
        assert (by(old), by(newer)) == (grpc.StatusCode.OK, UNAUTHENTICATED)
        moved_in(file, mesh.issuer.keys().encode())
        wait_until(lambda: by(newer) is grpc.StatusCode.OK, "the newer key is known")
        assert by(old) is UNAUTHENTICATED

        before = warnings()
        moved_in(file, b"no keys")
        wait_until(lambda: warnings() > before, "Envoy says that these are no keys")
        assert by(newer) is grpc.StatusCode.OK, "those that were known stay"
        moved_in(file, mesh.issuer.keys().encode())


def test_a_server_that_comes_later_gets_its_share_of_what_is_connected(mesh: Mesh) -> None:
    with mesh.client() as client:
        get = client.session().queries.GetProduct
        get(PRODUCT)
        late = mesh.started_late()

        def answers() -> float:
            get(PRODUCT)
            return late.metric("tandem_calls_total", method="GetProduct")

        wait_until(lambda: answers() >= 5, "the second query server answers the connection that was there before it")


@dataclass
class Load:
    """Buyers and readers in threads, each with a connection of its own, until `stop`. What failed is in `failed`."""

    client: Client
    threads: int = 8
    first: int = 1
    placed: list[str] = field(default_factory=list)
    failed: list[Exception] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    stopping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._numbers = itertools.count(self.first)
        self._pool = ThreadPoolExecutor(self.threads + 1)
        self._running = [self._pool.submit(self._buy) for _ in range(self.threads)]

    def _buy(self) -> None:
        session = self.client.session()
        while not self.stopping.is_set():
            order_id = identity("order", number := next(self._numbers))
            try:
                self._place(session, number)
                self.placed.append(order_id)
                # With the token of the order: it is seen, whichever server answers.
                session.queries.GetOrderDetails(GetOrderDetailsRequest(order_id=order_id))
            except Exception as error:
                self.failed.append(error)

    def _place(self, session: Session, number: int) -> None:
        request = an_order(number)
        while True:
            try:
                session.commands.PlaceOrder(request)
                return
            except RowsBusy:
                # Nothing was done: a server that hangs in a batch keeps its rows until PostgreSQL ends its session.
                continue

    def goes_on(self, orders: int = 50) -> None:
        """So many more orders are placed and read."""
        goal = len(self.placed) + orders
        wait_until(lambda: len(self.placed) >= goal or self.failed, "the load goes on", seconds=60)
        assert self.failed == []

    def watch(self, order_id: str) -> None:
        """States of an order as they are pushed, in a thread; `seen` counts them by status."""

        def look() -> None:
            request = WatchOrderDetailsRequest(order_id=order_id)
            for message in resuming(self.client.session().queries.WatchOrderDetails, request):
                self.seen["messages"] += 1
                if message.order_details.HasField("cancelled_at"):
                    return

        self.watching: Future[None] = self._pool.submit(look)

    def stop(self) -> None:
        self.stopping.set()
        for it in self._running:
            it.result(timeout=60)


def gets_its_share(server: Service) -> None:
    """Envoy has found out that it serves again: the next one may be stopped."""
    method = "PlaceOrder" if server.name == "command_server" else "GetOrderDetails"
    before = server.metric("tandem_calls_total", method=method)
    wait_until(lambda: server.metric("tandem_calls_total", method=method) >= before + 5, f"{server.name} gets calls")


def cancel_in_a_burst(mesh: Mesh, calls: int) -> None:
    """So many calls of one connection are begun, and taken back at once."""
    with mesh.channel(mesh.certificates.credentials_of(WORKLOAD)) as channel:
        get = QueryServiceStub(channel).GetProduct
        get(PRODUCT)
        begun = [get.future(PRODUCT) for _ in range(calls)]
        for it in begun:
            it.cancel()


def actors(mesh: Mesh) -> dict[str, str]:
    """Who caused events, by the command's request id."""
    with psycopg.connect(mesh.stack.write_url) as connection:
        rows = connection.execute("SELECT envelope FROM tandem_write.event").fetchall()
    envelopes = [Envelope.FromString(it) for (it,) in rows]
    return {it.request_id: it.actor for it in envelopes}


def feed(mesh: Mesh) -> list[Event]:
    with psycopg.connect(mesh.stack.write_url) as connection:
        rows = connection.execute("SELECT payload FROM tandem_write.event ORDER BY position").fetchall()
    return [Event.FromString(payload) for (payload,) in rows]


def test_no_call_fails_and_no_command_is_doubled_while_servers_restart_and_hang_and_callers_cancel(mesh: Mesh) -> None:
    mesh.started_late()
    before = len(feed(mesh))
    with mesh.client() as client:
        load = Load(client)
        load.goes_on()
        load.watch(load.placed[0])
        wait_until(lambda: load.seen["messages"], "the watch has begun")
        for _ in range(10):
            cancel_in_a_burst(mesh, 100)
        load.goes_on()
        for server in (mesh.late, mesh.second_command):
            server.stop()
            server.start()
            gets_its_share(server)
        for server in (mesh.stack.query_server, mesh.stack.command_server):
            pause(server)
            load.goes_on()
            resume(server)
            gets_its_share(server)
        load.stop()
        assert load.failed == []
        session = client.session()
        session.commands.CancelOrder(CancelOrderRequest(order_id=load.placed[0]))
        load.watching.result(timeout=30)
    placed = Counter(it.order_placed.order_id for it in feed(mesh)[before:] if it.WhichOneof("kind") == "order_placed")
    assert placed == Counter(load.placed), "each that was acknowledged once, and none besides"
