"""Who calls: proved by a token, a certificate or a sidecar, on whichever transport serves."""

import asyncio
import contextlib
import hashlib
import os
import socket
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
import trustme
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub
from structlog.testing import capture_logs
from typer.testing import CliRunner

from commerce.projection.v1 import projection_service_pb2 as projection
from commerce.projection.v1.projection_service_pb2_grpc import ProjectionServiceStub
from shop.cli import app
from tandem.client import aio, sync
from tandem.client.channel import CallDefaults, token_of
from tandem.client.errors import TokenExpired, Unauthenticated
from tandem.runtime import tokens
from tandem.runtime.call import Call, StreamCall
from tandem.runtime.forwarded import subject_of
from tandem.runtime.identity import Identity
from tandem.runtime.server import Application, RunningApplication, Service
from tandem.runtime.settings import ServerSettings
from tandem.testing.stack import until
from tests.contract.transport.conftest import (
    ANSWER,
    PATIENCE,
    SERVICE,
    STREAMING,
    UNARY,
    Serve,
    Served,
    Transport,
    detail,
    raw,
    worker,
)
from tests.support.issuer import AUDIENCE, EVERYBODY, ISSUER, Certificates, Issuer, bearer, served, settings_of
from tests.support.metrics import sample

HEALTHY = 1


class Seen:
    """A handler that answers, and notes who called."""

    def __init__(self) -> None:
        self.identities: list[Identity | None] = []

    def __call__(self, calls: Sequence[Call]) -> None:
        for call in calls:
            self.identities.append(call.identity)
            call.reply(ANSWER)

    @property
    def last(self) -> Identity:
        identity = self.identities[-1]
        assert identity is not None
        return identity


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture
def keys(issuer: Issuer, tmp_path: Path) -> Path:
    file = tmp_path / "keys.json"
    file.write_text(issuer.keys())
    return file


async def refused(server: Served, metadata: tuple[tuple[str, str], ...]) -> tuple[grpc.StatusCode, str]:
    """The code and the reason."""
    error = await server.refusal(metadata=metadata)
    return error.code(), str(detail(error, error_details_pb2.ErrorInfo).reason)


REQUIRED = (grpc.StatusCode.UNAUTHENTICATED, "IDENTITY_REQUIRED")
INVALID = (grpc.StatusCode.UNAUTHENTICATED, "IDENTITY_INVALID")
EXPIRED = (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED")
FETCHING = (grpc.StatusCode.UNAVAILABLE, "KEYS_UNAVAILABLE")


async def test_who_calls_is_what_the_token_says(serve: Serve, seen: Seen, issuer: Issuer, keys: Path) -> None:
    server = await serve(seen, **settings_of(keys, roles_claim="realm.roles", owner_claim="customer"))
    token = issuer.token("user-7", realm={"roles": ["support", 5]}, customer="ABC")
    for _ in range(2):
        await server.call(metadata=bearer(token))
    assert seen.identities[0] is seen.identities[1], "verified once"
    who = seen.last
    assert vars(who) == vars(Identity("user-7", "token", frozenset({"support"}), "abc", who.expires_at))
    await server.call(metadata=(("authorization", f"bearer {issuer.token('user-8', scope='a b')}"),))
    assert (seen.last.subject, seen.last.roles, seen.last.owner) == ("user-8", frozenset(), "")


async def test_whoever_says_nothing_or_something_wrong_is_refused(
    serve: Serve, seen: Seen, issuer: Issuer, keys: Path
) -> None:
    server = await serve(seen, **settings_of(keys, leeway_seconds=0))
    good = issuer.token()
    public = jwt.PyJWKSet.from_json(issuer.keys()).keys[0]
    header, payload, signature = good.split(".")
    unsigned = jwt.encode({"sub": "user-1"}, "", algorithm="none")
    forged = jwt.encode(
        jwt.decode(good, options={"verify_signature": False}),
        hashlib.sha256(str(public.key).encode()).digest(),
        algorithm="HS256",
        headers={"kid": "key-1"},
    )
    cases: dict[str, tuple[tuple[tuple[str, str], ...], tuple[grpc.StatusCode, str]]] = {
        "nothing": ((), REQUIRED),
        "expired": (bearer(issuer.token(seconds=-1)), EXPIRED),
        "not yet": (bearer(issuer.token(nbf=2**33)), INVALID),
        "another audience": (bearer(issuer.token(aud="others")), INVALID),
        "another issuer": (bearer(issuer.token(iss="https://elsewhere.test")), INVALID),
        "no subject": (bearer(issuer.token(subject="")), INVALID),
        "another key of the same name": (bearer(Issuer().token()), INVALID),
        "no signature": (bearer(unsigned), INVALID),
        "signed with what is public": (bearer(forged), INVALID),
        "changed": (bearer(f"{header}.{payload[:-4]}AAAA.{signature}"), INVALID),
        "long": (bearer(issuer.token(padding="x" * 4700)), INVALID),
        "no token": (bearer("x"), INVALID),
        "not Bearer": ((("authorization", "Basic dXNlcjpwYXNz"),), INVALID),
        "twice": ((*bearer(good), *bearer(good)), INVALID),
    }
    assert {name: await refused(server, metadata) for name, (metadata, _) in cases.items()} == {
        name: expected for name, (_, expected) in cases.items()
    }
    assert not seen.identities


async def test_health_is_answered_to_everybody_and_nothing_else_is(
    serve: Serve, seen: Seen, issuer: Issuer, keys: Path
) -> None:
    server = await serve(seen, **settings_of(keys), reflection=True)
    assert await server.health_of() == HEALTHY

    async def reflect(metadata: tuple[tuple[str, str], ...]) -> None:
        stub = ServerReflectionStub(server.channel)
        call = stub.ServerReflectionInfo(metadata=metadata, timeout=PATIENCE)
        # A refusal may come while the client still sends, which grpcio then calls an error of its own.
        if metadata:
            await call.write(ServerReflectionRequest(list_services=""))
        async for _ in call:
            return

    async def ask_for_nothing(metadata: tuple[tuple[str, str], ...]) -> None:
        await raw(server.channel, "/no/Such")(b"", metadata=metadata, timeout=PATIENCE)

    for ask, known in ((reflect, None), (ask_for_nothing, grpc.StatusCode.UNIMPLEMENTED)):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await ask(())
        assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
        if known is None:
            await ask(bearer(issuer.token()))
        else:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await ask(bearer(issuer.token()))
            assert raised.value.code() is known


async def test_reflection_is_off_unless_it_is_asked_for(serve: Serve, seen: Seen, issuer: Issuer, keys: Path) -> None:
    server = await serve(seen, **settings_of(keys))
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async for _ in ServerReflectionStub(server.channel).ServerReflectionInfo(
            iter([ServerReflectionRequest(list_services="")]), metadata=bearer(issuer.token()), timeout=PATIENCE
        ):
            pass
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_refusal_is_logged_with_who_and_why(serve: Serve, seen: Seen, issuer: Issuer, keys: Path) -> None:
    server = await serve(seen, **settings_of(keys, leeway_seconds=0))
    with capture_logs() as logged:
        await refused(server, (*bearer(issuer.token(seconds=-1)), ("x-request-id", "the-call")))
    [line] = [it for it in logged if it["event"] == "audit: refused"]
    assert line["rpc"] == f"/{SERVICE.full_name}/ListProjections"
    assert (line["reason"], line["reference"], line["log_level"]) == ("TOKEN_EXPIRED", "the-call", "warning")


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of keys is looked at all the time, and an unknown key has them fetched at once."""
    monkeypatch.setattr(tokens, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(tokens, "_PAUSE_SECONDS", 0.0)


@pytest.mark.usefixtures("often")
async def test_keys_of_a_file_are_rotated(serve: Serve, seen: Seen, issuer: Issuer, keys: Path, tmp_path: Path) -> None:
    server = await serve(seen, **settings_of(keys))
    old = bearer(issuer.token())
    await server.call(metadata=old)
    issuer.rotate()
    (tmp_path / "new.json").write_text("{}")
    os.replace(tmp_path / "new.json", keys)
    await server.call(metadata=old)  # keys that cannot be read change nothing

    async def comes_through() -> bool:
        try:
            await server.call(metadata=bearer(issuer.token()))
        except grpc.aio.AioRpcError as error:
            # Worth repeating.
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False
        return True

    (tmp_path / "new.json").write_text(issuer.keys())
    os.replace(tmp_path / "new.json", keys)
    await until(comes_through, "the new key is known")
    await server.call(metadata=old)
    issuer.rotate(keep=False)
    (tmp_path / "new.json").write_text(issuer.keys())
    os.replace(tmp_path / "new.json", keys)

    async def old_is_refused() -> bool:
        return await seen_refusal(server, old) in (INVALID, FETCHING)

    await until(old_is_refused, "what was verified with a key that is gone is not remembered")


async def seen_refusal(server: Served, metadata: tuple[tuple[str, str], ...]) -> tuple[grpc.StatusCode, str]:
    try:
        await server.call(metadata=metadata)
    except grpc.aio.AioRpcError as error:
        return error.code(), str(detail(error, error_details_pb2.ErrorInfo).reason)
    return grpc.StatusCode.OK, ""


async def test_keys_of_a_url_are_fetched_when_a_token_names_one_that_is_not_known(
    serve: Serve, seen: Seen, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = True

    def answer() -> str:
        return "not yet" if away else issuer.keys()

    monkeypatch.setattr(tokens, "_LOOK_SECONDS", 0.02)
    with served(answer) as url:
        server = await serve(seen, **settings_of(url))
        assert await server.health_of() != HEALTHY
        assert await refused(server, bearer(issuer.token())) == FETCHING
        away = False

        async def is_known() -> bool:
            return (await seen_refusal(server, bearer(issuer.token())))[0] is grpc.StatusCode.OK

        await until(is_known, "the keys are fetched")
        issuer.rotate()
        assert await refused(server, bearer(issuer.token())) == INVALID, "not asked for again so soon"
        monkeypatch.setattr(tokens, "_PAUSE_SECONDS", 0.0)
        assert await refused(server, bearer(issuer.token())) == FETCHING
        await until(is_known, "the new key is fetched")
        await server.running.stop()


async def test_who_cannot_be_found_out_fails_alone_and_at_once(
    serve: Serve, seen: Seen, issuer: Issuer, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug, of a library or of ours. Calls come in batches: it is one call's."""
    server = await serve(seen, **settings_of(keys))
    monkeypatch.setattr(tokens, "_claim", [].index)
    assert (await refused(server, bearer(issuer.token())))[0] is grpc.StatusCode.INTERNAL
    monkeypatch.undo()
    await server.call(metadata=bearer(issuer.token()))


async def test_an_issuer_that_does_not_speak_http_changes_nothing(serve: Serve, seen: Seen) -> None:
    def failed() -> float:
        return sample("tandem_token_keys_fetches_total", outcome="failed") or 0.0

    def answer(listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                with listening.accept()[0] as caller:
                    caller.recv(4096)
                    caller.sendall(b"\x15\x03\x03 a TLS alert, say\r\n\r\n")

    before = failed()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=answer, args=[listening])
        thread.start()
        await serve(seen, **settings_of(f"http://127.0.0.1:{listening.getsockname()[1]}/keys"))

        async def has_failed() -> bool:
            return failed() > before

        await until(has_failed, "it is counted, and the thread goes on")
        listening.shutdown(socket.SHUT_RDWR)
    thread.join()


@pytest.mark.parametrize("verified", ["here", "by the sidecar"])
async def test_a_stream_is_refused_and_ends_with_its_token(
    transport: Transport, issuer: Issuer, keys: Path, monkeypatch: pytest.MonkeyPatch, verified: str
) -> None:
    here = verified == "here"
    settings = settings_of(keys, leeway_seconds=0) if here else by_claims(leeway_seconds=0)
    metadata = bearer(issuer.token(seconds=1000)) if here else claims(seconds=1000)
    go_on = asyncio.Event()

    async def messages(_request: Any, call: StreamCall) -> AsyncGenerator[Any, None]:
        assert call.identity is not None
        yield projection.GetHistoryResponse(position=1)
        await go_on.wait()
        yield projection.GetHistoryResponse(position=2)

    async def ready() -> bool:
        return True

    made = worker(Seen())
    application = Application(
        "test_server",
        ServerSettings(port=0, transport=transport, drain_seconds=0, **settings),
        (Service(SERVICE, dict.fromkeys(UNARY, made), dict.fromkeys(STREAMING, messages)),),
        ready,
        (made,),
    )
    running = RunningApplication(application)
    await running.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
            call = channel.unary_stream(
                f"/{SERVICE.full_name}/{STREAMING[0]}",
                request_serializer=bytes,
                response_deserializer=projection.GetHistoryResponse.FromString,
            )
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call(b"", timeout=PATIENCE).read()
            assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
            stream: Any = call(b"", timeout=PATIENCE, metadata=metadata)
            assert (await stream.read()).position == 1
            monkeypatch.setattr("time.time", lambda: 2.0**33)
            go_on.set()
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stream.read()
            assert detail(raised.value, error_details_pb2.ErrorInfo).reason == "TOKEN_EXPIRED"
    finally:
        await running.stop()


@pytest.mark.parametrize("transport", ["auto"])
async def test_who_calls_is_what_the_certificate_says(serve: Serve, seen: Seen, tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    server = await serve(seen, **certificates.authenticating)
    address = f"127.0.0.1:{server.running.port}"
    spiffe = certificates.credentials_of("spiffe://tandem.test/shop")
    for credentials in (certificates.credentials(with_certificate=True), spiffe):
        own = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.secure_channel(address, credentials, options=own) as channel:
            await raw(channel)(b"", timeout=PATIENCE)
    first, second = seen.identities
    assert first is not None
    assert second is not None
    assert first.subject.startswith("CN=client,")
    assert (second.subject, second.proof) == ("spiffe://tandem.test/shop", "certificate")


@pytest.mark.parametrize("transport", ["auto"])
async def test_a_token_goes_before_the_certificate(
    serve: Serve, seen: Seen, issuer: Issuer, keys: Path, tmp_path: Path
) -> None:
    certificates = Certificates(tmp_path)
    server = await serve(seen, tls=certificates.authenticating["tls"], **settings_of(keys, leeway_seconds=0))
    address = f"127.0.0.1:{server.running.port}"
    async with grpc.aio.secure_channel(address, certificates.credentials(with_certificate=True)) as channel:
        await raw(channel)(b"", timeout=PATIENCE)
        await raw(channel)(b"", timeout=PATIENCE, metadata=bearer(issuer.token()))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await raw(channel)(b"", timeout=PATIENCE, metadata=bearer(issuer.token(seconds=-1)))
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED, "and not the certificate's identity"
    assert [it.proof for it in seen.identities if it] == ["certificate", "token"]


@pytest.mark.parametrize("transport", ["auto"])
async def test_certificates_are_read_again_when_their_files_change(serve: Serve, seen: Seen, tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    server = await serve(seen, **certificates.authenticating)
    address = f"127.0.0.1:{server.running.port}"

    async def reaches(name: str, credentials: grpc.ChannelCredentials) -> bool:
        options = [("grpc.ssl_target_name_override", name), ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
            try:
                await raw(channel)(b"", timeout=PATIENCE)
            except grpc.aio.AioRpcError as error:
                return error.code() is not grpc.StatusCode.UNAVAILABLE
            return True

    known = certificates.credentials(with_certificate=True)
    assert await reaches("127.0.0.1", known)
    (tmp_path / "server.key").write_text("half of the files are replaced")
    assert await reaches("127.0.0.1", known), "those before stay in force"
    certificates.replace_server("new.test")
    assert await reaches("new.test", known)
    assert not await reaches("127.0.0.1", known)
    other = trustme.CA()
    other.cert_pem.write_to_path(tmp_path / "ca.pem")
    assert not await reaches("new.test", known), "of an authority that is not believed any more"


def claims(subject: str = "user-1", *, seconds: float = 300.0, **others: str) -> tuple[tuple[str, str], ...]:
    """The metadata of a call, as Envoy writes it of a token. others: of the fields, as the text that stands there."""
    said = {"exp": str(time.time() + seconds), "iss": ISSUER, "aud": AUDIENCE, "roles": "", "owner": "", "sub": subject}
    return (("tandem-claims", "^".join((said | others).values())),)


def by_claims(**others: Any) -> dict[str, Any]:
    """Settings: a sidecar has verified tokens and certificates."""
    token = {"issuer": ISSUER, "audience": AUDIENCE, "verified_by_sidecar": True, **others}
    return {"authentication": {"token": token, "forwarded_certificate": True}, "policy_file": EVERYBODY}


HASH = "Hash=" + "0a" * 32
CERTIFICATE = (("x-forwarded-client-cert", f"{HASH};URI=spiffe://tandem.test/shop"),)


async def test_a_sidecar_says_what_the_token_claims(serve: Serve, seen: Seen) -> None:
    server = await serve(seen, **by_claims())
    said = claims("user-7", roles='["support","a b",5]', owner="ABC", aud='["others","tandem"]')
    for _ in range(2):
        await server.call(metadata=(*said, *CERTIFICATE))
    assert seen.identities[0] is seen.identities[1], "read once"
    who = seen.last
    assert vars(who) == vars(Identity("user-7", "token", frozenset({"support", "a b"}), "abc", who.expires_at))
    await server.call(metadata=claims("user-8", roles="clerk support"))
    assert (seen.last.roles, seen.last.owner) == (frozenset({"clerk", "support"}), "")
    await server.call(metadata=claims("user-9", roles='{"shop": {"title": "a clerk here"}}', owner='{"id": "abc"}'))
    assert (seen.last.roles, seen.last.owner) == (frozenset(), ""), "an object is neither, as in a token"
    await server.call(metadata=(("tandem-claims", "^^^^^"), *CERTIFICATE))
    assert (seen.last.subject, seen.last.proof) == ("spiffe://tandem.test/shop", "sidecar")


async def test_what_a_sidecar_says_of_a_token_is_read_strictly(serve: Serve, seen: Seen, issuer: Issuer) -> None:
    server = await serve(seen, **by_claims(leeway_seconds=0))
    cases: dict[str, tuple[tuple[tuple[str, str], ...], tuple[grpc.StatusCode, str]]] = {
        "nothing": ((), REQUIRED),
        "a token alone": (bearer(issuer.token()), REQUIRED),
        "nothing of a token": (CERTIFICATE, REQUIRED),
        "that there is none": ((("tandem-claims", "^^^^^"),), REQUIRED),
        "expired": (claims(seconds=-1), EXPIRED),
        "never expires": (claims(exp="nan"), INVALID),
        "no expiry": (claims(exp=""), INVALID),
        "another audience": (claims(aud="others"), INVALID),
        "other audiences": (claims(aud='["others"]'), INVALID),
        "another issuer": (claims(iss="https://elsewhere.test"), INVALID),
        "no subject": (claims(subject=""), INVALID),
        "half a list": (claims(roles='["clerk"'), INVALID),
        "lists in lists": (claims(roles="[" * 5000), INVALID),
        "a field too many": (claims(subject='x^["clerk"]'), INVALID),
        "a field too few": ((("tandem-claims", "1^2^3^4^5"),), INVALID),
        "twice": (claims() + claims(), INVALID),
    }
    assert {name: await refused(server, metadata) for name, (metadata, _) in cases.items()} == {
        name: expected for name, (_, expected) in cases.items()
    }
    # A certificate makes up for nothing of it.
    for metadata in (claims(aud="others"), (("tandem-claims", "^^^^^"), *bearer("not taken for a token"))):
        assert await refused(server, (*metadata, *CERTIFICATE)) == INVALID
    assert not seen.identities


async def test_a_sidecar_says_who_calls(serve: Serve, seen: Seen, tmp_path: Path) -> None:
    server = await serve(
        seen, host=f"unix:{tmp_path}/tandem.sock", authentication={"forwarded_certificate": True}, policy_file=EVERYBODY
    )
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/tandem.sock") as channel:
        forwarded = f'By=spiffe://tandem.test/q;{HASH};Subject="CN=\\"a\\",O=b, c";URI=spiffe://tandem.test/shop'
        await raw(channel)(b"", timeout=PATIENCE, metadata=(("x-forwarded-client-cert", forwarded),))
        for metadata in ((), (("x-forwarded-client-cert", "URI=spiffe://tandem.test/shop"),)):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await raw(channel)(b"", timeout=PATIENCE, metadata=metadata)
            assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert (seen.last.subject, seen.last.proof) == ("spiffe://tandem.test/shop", "sidecar")
    await server.running.stop()


async def test_nobody_says_who_calls_where_no_setting_believes_it(serve: Serve, seen: Seen, keys: Path) -> None:
    server = await serve(seen, **settings_of(keys))
    header = ("x-forwarded-client-cert", f"{HASH};URI=spiffe://tandem.test/shop")
    assert await refused(server, (header, *claims())) == REQUIRED


@pytest.mark.parametrize(
    ("header", "subject"),
    [
        (f"{HASH};URI=spiffe://a/b", "spiffe://a/b"),
        (f'By=;{HASH};Subject="CN=x,O=y";URI=', "CN=x,O=y"),
        (f'{HASH};Subject="CN=x";URI=spiffe://a/b;DNS=a.test;DNS=b.test', "spiffe://a/b"),
        (f"{HASH};URI=spiffe://a/b,{HASH};URI=spiffe://c/d", None),
        (f"{HASH};URI=spiffe://a/b;URI=spiffe://c/d", None),
        ("Hash=00;URI=spiffe://a/b", None),
        (f"{HASH};URI=spiffe://a/b;Evil=1", None),
        (f"{HASH};URI=spiffe://a/b;", None),
        (f'{HASH};Subject="CN=x', None),
        (f'{HASH};Subject="";URI=', None),
        (f"{HASH};URI=spiffe://a/\n", None),
        ("", None),
        (b"x", None),
    ],
)
def test_a_forwarded_certificate_is_read_strictly(header: str | bytes, subject: str | None) -> None:
    if subject is not None:
        assert subject_of(header) == subject
    else:
        with pytest.raises(Exception, match="x-forwarded-client-cert"):
            subject_of(header)


def test_an_actor_tells_of_nobody_by_itself() -> None:
    assert Identity("spiffe://tandem.test/shop", "certificate").actor == "spiffe://tandem.test/shop"
    for telling in ("ada@example.org", "CN=Ada Lovelace", "x" * 129):
        actor = Identity(telling, "token").actor
        assert actor.startswith("sha256:")
        assert len(actor) == 39
        assert actor == Identity(telling, "token").actor


class Session(sync.Session):
    projections = sync.Stub(ProjectionServiceStub)


class AsyncSession(aio.Session):
    projections = aio.Stub(ProjectionServiceStub)


async def test_a_client_sends_its_token_with_each_try(
    serve: Serve, seen: Seen, issuer: Issuer, keys: Path, tmp_path: Path
) -> None:
    server = await serve(seen, **settings_of(keys))
    address, file = f"127.0.0.1:{server.running.port}", tmp_path / "token"
    defaults = CallDefaults(token=token_of(file))
    request = projection.ListProjectionsRequest()

    def call() -> None:
        with sync.Client(Session, {"projections": address}, defaults=defaults) as client:
            client.session().projections.ListProjections(request, metadata=(("x-request-id", "1"),))

    file.write_text(issuer.token("first") + "\n")
    await asyncio.to_thread(call)
    assert seen.last.subject == "first"
    async with aio.Client(AsyncSession, {"projections": address}, defaults=defaults) as client:
        projections: Any = client.session().projections
        file.write_text(issuer.token("second"))
        await projections.ListProjections(request)
        assert seen.last.subject == "second"
        file.write_text(issuer.token(seconds=-300))
        with pytest.raises(TokenExpired):
            await projections.ListProjections(request)
        file.write_text("x")
        with pytest.raises(Unauthenticated):
            await projections.ListProjections(request)


@pytest.mark.parametrize(("transport", "inline"), [("grpcio", False)], indirect=["transport"])
async def test_the_command_line_shows_a_certificate_and_a_token(
    serve: Serve, issuer: Issuer, keys: Path, tmp_path: Path
) -> None:
    certificates = Certificates(tmp_path)
    seen: list[Identity | None] = []

    def empty(calls: Sequence[Call]) -> None:
        for call in calls:
            seen.append(call.identity)
            call.reply(b"")

    server = await serve(empty, tls=certificates.authenticating["tls"], **settings_of(keys))
    certificates.client.private_key_pem.write_to_path(tmp_path / "client.key")
    (tmp_path / "client.pem").write_bytes(b"".join(blob.bytes() for blob in certificates.client.cert_chain_pems))
    (tmp_path / "token").write_text(issuer.token("ops-7"))
    files = {it: str(tmp_path / it) for it in ("ca.pem", "client.pem", "client.key", "token")}
    tls_options = ["--tls-ca", files["ca.pem"], "--cert", files["client.pem"], "--key", files["client.key"]]
    address = f"127.0.0.1:{server.running.port}"

    async def tandem(*options: str, **environment: str) -> tuple[int, str]:
        words = [*options, "parked", "list", "--projector-address", address]
        done = await asyncio.to_thread(CliRunner().invoke, app, words, env={"COLUMNS": "300", **environment})
        return done.exit_code, done.output

    assert (await tandem(*tls_options, "--token-file", files["token"]))[0] == 0
    assert (await tandem(*tls_options, TANDEM_CLI_TOKEN_FILE=""))[0] == 0
    assert [(it.subject[:9], it.proof) for it in seen if it] == [("ops-7", "token"), ("CN=client", "certificate")]
    code, output = await tandem()
    assert code == 1
    assert "UNAVAILABLE" in output
    for options, problem in {
        ("--cert", files["client.pem"]): "belong together",
        ("--cert", files["client.pem"], "--key", files["client.key"]): "give --tls-ca too",
        ("--tls-ca", f"{tmp_path}/none"): "No such file",
        ("--token-file", f"{tmp_path}/none"): "No such file",
    }.items():
        code, output = await tandem(*options)
        assert code == 2
        assert problem in output.replace("\n", " ")
