"""Ports, reflection and TLS: how a server is reached."""

import asyncio
import os
import ssl
import stat
import tempfile
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from tandem.runtime.server import PortInUse, RunningApplication, transport_of
from tandem.runtime.settings import ServerSettings, SettingsError, TlsSettings
from tests.contract.transport.conftest import PATIENCE, SERVICE, Serve, Transport, answer, application, raw, worker
from tests.support.issuer import Certificates

OK, NOT_FOUND = (it.value[0] for it in (grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND))


async def test_a_port_in_use_is_named(serve: Serve, transport: Transport) -> None:
    port = (await serve()).running.port
    second = RunningApplication(application(worker(answer), ServerSettings(port=port, transport=transport)))
    with pytest.raises(PortInUse, match=f"127.0.0.1:{port}"):
        await second.start()


async def test_a_metrics_port_in_use_is_named_and_the_server_does_not_serve(serve: Serve, transport: Transport) -> None:
    taken = (await serve()).running.port
    settings = ServerSettings(port=0, metrics_port=taken, transport=transport)
    second = RunningApplication(application(worker(answer), settings))
    with pytest.raises(PortInUse, match=f"metrics on 127.0.0.1:{taken}"):
        await second.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{second.port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await raw(channel)(b"", timeout=1)


async def test_the_same_port_can_be_taken_right_after_a_stop(serve: Serve, transport: Transport) -> None:
    first = await serve()
    assert (await first.call()).feed_head == 7
    await first.running.stop()
    again = await serve(port=first.running.port)
    assert (await again.call()).feed_head == 7


async def test_an_ipv6_address_is_listened_on(serve: Serve) -> None:
    served = await serve(host="::1")
    async with grpc.aio.insecure_channel(f"[::1]:{served.running.port}") as channel:
        assert (await raw(channel)(b"", timeout=PATIENCE)).feed_head == 7


def reflected(port: int) -> tuple[set[str], set[str]]:
    """The services that reflection lists, and the methods of ours."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        services = set(database.get_services())
        found = DescriptorPool(database).FindServiceByName(SERVICE.full_name)
        return services, {method.name for method in found.methods}


async def test_reflection_lists_the_services_and_describes_ours(serve: Serve) -> None:
    served = await serve()
    services, methods = await asyncio.to_thread(reflected, served.running.port)
    assert services >= {SERVICE.full_name, "grpc.health.v1.Health"}
    assert methods == {it.name for it in SERVICE.methods}


@pytest.mark.parametrize(
    ("symbol", "code"),
    [
        (f"{SERVICE.full_name}.ListProjections", OK),
        ("commerce.projection.v1.ProjectionState", OK),
        ("commerce.projection.v1.ProjectionState.PROJECTION_STATE_FAILED", OK),
        ("commerce.projection.v1.PROJECTION_STATE_FAILED", OK),
        ("commerce.projection.v1.Projection.view", OK),
        ("grpc.health.v1.HealthCheckResponse.ServingStatus.SERVING", OK),
        (f"{SERVICE.full_name}.Nothing", NOT_FOUND),
        ("commerce.projection.v1.ProjectionState.NOTHING", NOT_FOUND),
        ("nothing.at.all", NOT_FOUND),
        ("", NOT_FOUND),
    ],
)
async def test_reflection_finds_whatever_has_a_name(serve: Serve, symbol: str, code: int) -> None:
    stream = ServerReflectionStub((await serve()).channel).ServerReflectionInfo(timeout=PATIENCE)
    await stream.write(ServerReflectionRequest(file_containing_symbol=symbol))
    answered = await stream.read()
    assert answered.error_response.error_code == code
    assert bool(answered.file_descriptor_response.file_descriptor_proto) == (code == OK)
    stream.cancel()


async def test_reflection_can_be_off(serve: Serve) -> None:
    served = await serve(reflection=False)
    with pytest.raises(grpc.RpcError) as raised:
        await asyncio.to_thread(reflected, served.running.port)
    assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_auto_is_native_unless_this_process_must_speak_tls(tmp_path: Path) -> None:
    tls = TlsSettings(certificate_file=tmp_path / "a", key_file=tmp_path / "b")
    assert transport_of(ServerSettings(port=0)) == "native"
    assert transport_of(ServerSettings(port=0, tls=tls)) == "grpcio"
    assert transport_of(ServerSettings(port=0, transport="grpcio")) == "grpcio"
    assert transport_of(ServerSettings(port=0, host="::1")) == "native"
    assert transport_of(ServerSettings(port=0, host="unix:/run/tandem.sock")) == "native"


def test_auto_is_grpcio_for_a_network() -> None:
    """native has no defence against callers that nobody has looked at."""
    assert transport_of(ServerSettings(port=0, host="0.0.0.0", insecure=True)) == "grpcio"


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


async def outcome(channel: grpc.aio.Channel) -> grpc.StatusCode:
    try:
        await raw(channel)(b"", timeout=PATIENCE)
    except grpc.aio.AioRpcError as error:
        return error.code()
    finally:
        await channel.close()
    return grpc.StatusCode.OK


@pytest.mark.parametrize("transport", ["auto", "grpcio"])
async def test_tls_is_spoken_and_nothing_else(serve: Serve, certificates: Certificates) -> None:
    served = await serve(tls=certificates.settings)
    address = f"127.0.0.1:{served.running.port}"
    assert await outcome(grpc.aio.secure_channel(address, certificates.credentials())) == grpc.StatusCode.OK
    assert await outcome(grpc.aio.insecure_channel(address)) == grpc.StatusCode.UNAVAILABLE
    _, writer = await asyncio.open_connection("127.0.0.1", served.running.port, ssl=_alpn(certificates))
    assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
    writer.close()


def _alpn(certificates: Certificates) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=certificates.authority.cert_pem.bytes().decode())
    context.set_alpn_protocols(["h2"])
    return context


@pytest.mark.parametrize("transport", ["auto"])
async def test_a_client_authority_asks_clients_for_a_certificate(serve: Serve, certificates: Certificates) -> None:
    served = await serve(**certificates.authenticating)
    address = f"127.0.0.1:{served.running.port}"
    known = grpc.aio.secure_channel(address, certificates.credentials(with_certificate=True))
    unknown = grpc.aio.secure_channel(address, certificates.credentials())
    assert await outcome(known) == grpc.StatusCode.OK
    assert await outcome(unknown) == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("transport", ["auto"])
async def test_a_certificate_that_cannot_be_read_is_a_wrong_setting(serve: Serve, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"server\.key"):
        await serve(tls={"certificate_file": tmp_path / "server.pem", "key_file": tmp_path / "server.key"})


@pytest.mark.parametrize("transport", ["auto"])
@pytest.mark.parametrize("name", ["server.pem", "server.key", "ca.pem"])
async def test_a_file_that_holds_no_certificate_is_a_wrong_setting(
    serve: Serve, certificates: Certificates, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("not PEM")
    with pytest.raises(SettingsError, match=name.replace(".", r"\.")):
        await serve(**certificates.authenticating)


async def test_a_unix_socket_is_its_users_and_its_groups(serve: Serve) -> None:
    with tempfile.TemporaryDirectory(prefix="tandem-") as folder:
        socket = Path(folder) / "query.sock"
        before = os.umask(0)
        try:
            served = await serve(host=f"unix:{socket}")
            assert os.umask(0) == 0, "as it was"
        finally:
            os.umask(before)
        assert stat.S_IMODE(socket.stat().st_mode) == 0o770
        await served.running.stop()
