"""A stack behind the Envoy of docs/mesh.md, as a deployment has it: Unix sockets, certificates, tokens."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from shop.cli import ENVOY
from shop.client import Client
from tandem.cli.mesh import Envoy, MeshConfig
from tandem.cli.services import Service
from tandem.testing.ports import free_port
from tests.support.issuer import AUDIENCE, EVERYBODY, ISSUER, Certificates, Issuer
from tests.support.stack import Databases, Stack

SECRETS = [Path(__file__).parents[2] / "deploy" / "envoy" / name for name in ("server.yaml", "callers.yaml")]
WORKLOAD = "spiffe://tandem.test/shop"
# Beside what everybody may: lists take a role, or are of one's own.
_POLICY = EVERYBODY.read_text().replace(
    '[rpcs."commerce.query.v1.QueryService"]\n',
    '[rpcs."commerce.query.v1.QueryService"]\nListRecentOrders = ["clerk", "customer:own"]\n',
)


@dataclass
class Mesh:
    """Two command servers and one query server are up; `late` is the second query server, not started."""

    stack: Stack
    envoy: Envoy
    folder: Path
    certificates: Certificates
    issuer: Issuer
    second_command: Service
    late: Service

    @property
    def port(self) -> int:
        return self.envoy.port

    def started_late(self) -> Service:
        """The second query server, up."""
        if self.late.exit_code() is not None:
            self.late.start()
        return self.late

    def client(self) -> Client:
        """Of a service that shows its certificate; with a connection of its own."""
        return Client(
            commands=self.envoy.address,
            queries=self.envoy.address,
            credentials=self.certificates.credentials_of(WORKLOAD),
            options=[("grpc.use_local_subchannel_pool", 1)],
        )

    def channel(self, credentials: grpc.ChannelCredentials | None = None, **options: Any) -> grpc.Channel:
        """A new connection, without a certificate unless `credentials` have one."""
        chosen = [("grpc.use_local_subchannel_pool", 1), *((f"grpc.{key}", value) for key, value in options.items())]
        return grpc.secure_channel(self.envoy.address, credentials or self.certificates.credentials(), chosen)


@contextmanager
def running_mesh(databases: Databases, logs: Path) -> Iterator[Mesh]:
    # A socket's path may have 107 characters, which pytest's folders come near to.
    with tempfile.TemporaryDirectory(prefix="tandem-mesh-") as name:
        folder = Path(name)
        certificates, issuer = Certificates(folder), Issuer()
        (folder / "keys.json").write_text(issuer.keys())
        (folder / "policy.toml").write_text(_POLICY)
        for secret in SECRETS:
            shutil.copy(secret, folder)
        token = {"ISSUER": ISSUER, "AUDIENCE": AUDIENCE, "VERIFIED_BY_SIDECAR": "true"}
        asking = {f"SERVER__AUTHENTICATION__TOKEN__{key}": value for key, value in token.items()}
        asking |= {
            "SERVER__AUTHENTICATION__FORWARDED_CERTIFICATE": "true",
            "SERVER__POLICY_FILE": str(folder / "policy.toml"),
            # Envoy asks every second.
            "SERVER__DRAIN_DELAY_SECONDS": "2",
        }
        sockets = {
            section: [f"unix:{folder}/{section}-{number}.sock" for number in (1, 2)] for section in ("command", "query")
        }
        settings = {section.upper(): {**asking, "SERVER__HOST": sockets[section][0]} for section in sockets}
        # How long PostgreSQL leaves rows to a session that hangs is four times this.
        settings["COMMAND"]["DATABASE__STATEMENT_TIMEOUT"] = "1"
        stack = Stack(databases, logs, settings=settings)
        second_command = stack.new_command_server(SERVER__HOST=sockets["command"][1])
        late = stack.new_query_server(SERVER__HOST=sockets["query"][1])
        port = free_port()
        config = MeshConfig(ENVOY, port=port, servers=sockets)
        config.filters["envoy.filters.http.jwt_authn"]["providers"]["issuer"] |= {
            "issuer": ISSUER,
            "audiences": [AUDIENCE],
        }
        envoy = Envoy(config, port, folder, logs / "envoy.log")
        try:
            second_command.launch()
            stack.start()
            second_command.wait_until_serving()
            envoy.start()
            yield Mesh(stack, envoy, folder, certificates, issuer, second_command, late)
        finally:
            envoy.stop()
            stack.stop()
