"""An issuer of tokens, and an authority of certificates."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Literal

import grpc
import jwt
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import NameOID
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

ISSUER, AUDIENCE = "https://issuer.test", "tandem"


class Issuer:
    """Signs with its newest key; RS256 with 2048 bits. `keys()` is its JSON Web Key Set."""

    def __init__(self, algorithm: Literal["ES256", "RS256"] = "ES256") -> None:
        self._algorithm = algorithm
        self._keys: dict[str, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey] = {}
        self.rotate()

    def rotate(self, *, keep: bool = True) -> None:
        """A new key, beside those before or in their place."""
        number = len(self._keys) + 1 if keep else 100
        kept = self._keys if keep else {}
        elliptic = self._algorithm == "ES256"
        key = ec.generate_private_key(ec.SECP256R1()) if elliptic else rsa.generate_private_key(65537, 2048)
        self._keys = {**kept, f"key-{number}": key}

    def keys(self) -> str:
        public = [
            {**_public(key), "kid": name, "alg": self._algorithm, "use": "sig"} for name, key in self._keys.items()
        ]
        return json.dumps({"keys": public})

    def token(self, subject: str = "user-1", *, seconds: float = 300.0, **claims: Any) -> str:
        name, key = list(self._keys.items())[-1]
        said = {"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "exp": time.time() + seconds, **claims}
        return jwt.encode(said, key, algorithm=self._algorithm, headers={"kid": name})


def _public(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> dict[str, Any]:
    if isinstance(key, rsa.RSAPrivateKey):
        return dict(RSAAlgorithm.to_jwk(key.public_key(), as_dict=True))
    return dict(ECAlgorithm.to_jwk(key.public_key(), as_dict=True))


EVERYBODY = Path(__file__).parent / "everybody.toml"
"""A policy: who is known may call everything."""


def settings_of(keys: Path | str, *, policy: Path = EVERYBODY, **others: Any) -> dict[str, Any]:
    """For ServerSettings: believe tokens of the issuer whose keys are in a file, or at a URL."""
    where = {"keys_file": keys} if isinstance(keys, Path) else {"keys_url": keys}
    token = {"issuer": ISSUER, "audience": AUDIENCE, **where, **others}
    return {"authentication": {"token": token}, "policy_file": policy}


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """The metadata of a call."""
    return (("authorization", f"Bearer {token}"),)


def claims_of(token: str, owner_claim: str = "sub") -> str:
    """What Envoy says of a token that it has verified, as shop/envoy.yaml has it."""
    claims = jwt.decode(token, options={"verify_signature": False})
    claimed = [claims.get(it, "") for it in ("exp", "iss", "aud", "roles", owner_claim, "sub")]
    return "^".join(it if isinstance(it, str) else json.dumps(it, separators=(",", ":")) for it in claimed)


@contextmanager
def served(keys: Callable[[], str]) -> Iterator[str]:
    """The URL where keys are served, as they are when somebody asks."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(keys().encode())

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/keys"
        finally:
            server.shutdown()
            thread.join()


def moved_in(file: Path, content: bytes) -> None:
    """A file is replaced as those should be that others read: nobody sees half of it."""
    beside = file.with_suffix(".new")
    beside.write_bytes(content)
    beside.rename(file)


class Certificates:
    """A certificate authority, a server's certificate of it, and a client's."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self._folder = folder
        self.client = self.authority.issue_cert("client@tandem.internal", common_name="client")
        self.replace_server("127.0.0.1")
        self.authority.cert_pem.write_to_path(folder / "ca.pem")
        self.settings = {"certificate_file": folder / "server.pem", "key_file": folder / "server.key"}
        self.client_ca_file = folder / "ca.pem"
        self.authenticating: dict[str, Any] = {
            "tls": {**self.settings, "client_ca_file": self.client_ca_file},
            "policy_file": EVERYBODY,
        }
        """For ServerSettings: clients show a certificate."""

    def replace_server(self, name: str) -> None:
        """The server has another certificate, for this name."""
        server = self.authority.issue_cert(name)
        chain = b"".join(blob.bytes() for blob in server.cert_chain_pems)
        for file, content in (("server.key", server.private_key_pem.bytes()), ("server.pem", chain)):
            moved_in(self._folder / file, content)

    def credentials(self, *, with_certificate: bool = False) -> grpc.ChannelCredentials:
        root = self.authority.cert_pem.bytes()
        if not with_certificate:
            return grpc.ssl_channel_credentials(root)
        chain = b"".join(blob.bytes() for blob in self.client.cert_chain_pems)
        return grpc.ssl_channel_credentials(root, self.client.private_key_pem.bytes(), chain)

    def credentials_of(self, uri: str, signed_by: trustme.CA | None = None) -> grpc.ChannelCredentials:
        """Of a client whose certificate has a SPIFFE id, and is of this authority unless of another one."""
        key = ec.generate_private_key(ec.SECP256R1())
        signer = signed_by or self.authority
        authority = x509.load_pem_x509_certificate(signer.cert_pem.bytes())
        signing = load_pem_private_key(signer.private_key_pem.bytes(), None)
        assert isinstance(signing, ec.EllipticCurvePrivateKey)
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "workload")]))
            .issuer_name(authority.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
            .sign(signing, hashes.SHA256())
        )
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        chain = certificate.public_bytes(Encoding.PEM)
        return grpc.ssl_channel_credentials(self.authority.cert_pem.bytes(), private, chain)
