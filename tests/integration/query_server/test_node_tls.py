"""TLS to memcached, with its own server's."""

import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme
from pydantic import ValidationError

from commerce.query.v1 import query_service_pb2 as queries
from commerce.query.v1.query_service_pb2_grpc import QueryServiceStub
from tandem.cli.embedded import Memcached, memcached_path
from tandem.cli.services import Service
from tandem.read_store.node import NodeError, NodeTlsSettings
from tandem.read_store.nodes import node_client
from tandem.testing.ports import free_port
from tandem.testing.stack import end_node, pause, resume, wait_until
from tests.support.builders import add_product, identity
from tests.support.stack import Databases, Stack


def speaks_tls() -> bool:
    program = memcached_path()
    if program is None:
        return False
    return "--enable-ssl" in subprocess.run([program, "-h"], capture_output=True, text=True, check=False).stdout


pytestmark = pytest.mark.skipif(
    not speaks_tls(), reason="no memcached that speaks TLS is installed (apt-get install memcached)"
)


class Nodes(NamedTuple):
    """for_all shows a certificate for 127.0.0.1; for_known too, and asks for one."""

    for_all: Memcached
    for_known: Memcached
    folder: Path

    @property
    def tls(self) -> NodeTlsSettings:
        return NodeTlsSettings(ca_file=self.folder / "ca.pem")

    @property
    def known(self) -> NodeTlsSettings:
        return NodeTlsSettings(
            ca_file=self.folder / "ca.pem",
            certificate_file=self.folder / "caller.pem",
            key_file=self.folder / "caller.key",
        )


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    # memcached does not run as root, and reads it.
    with tempfile.TemporaryDirectory(prefix="tandem-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        authority = trustme.CA()
        authority.cert_pem.write_to_path(folder / "ca.pem")
        trustme.CA().cert_pem.write_to_path(folder / "another.pem")
        for what, words in {"node": "127.0.0.1", "caller": "tandem.test"}.items():
            certificate = authority.issue_cert(words)
            certificate.cert_chain_pems[0].write_to_path(folder / f"{what}.pem")
            certificate.private_key_pem.write_to_path(folder / f"{what}.key")
            (folder / f"{what}.key").chmod(0o644)
        own = f"ssl_chain_cert={folder}/node.pem,ssl_key={folder}/node.key"
        asks = f"{own},ssl_verify_mode=2,ssl_ca_cert={folder}/ca.pem"
        for_all, for_known = (Memcached(free_port(), options=["-Z", "-o", it]) for it in (own, asks))
        started = Nodes(for_all, for_known, folder)
        for node in (for_all, for_known):
            node.start()
        yield started
        for node in (for_all, for_known):
            end_node(node)


def keeps(node: str, tls: NodeTlsSettings | None) -> bool:
    """Whether what is stored is there. Raises OSError, NodeError."""
    client = node_client(node, timeout=5, tls=tls)
    entries = {f"key:{number}": bytes(number) for number in range(0, 40_000, 1_000)}
    try:
        client.store(entries, 60)
        return client.ask(entries).answer() == entries and client.remove(list(entries)) == [True] * len(entries)
    finally:
        client.close()


def test_entries_come_back_of_any_size(nodes: Nodes) -> None:
    assert keeps(nodes.for_all.address, nodes.tls)
    assert keeps(nodes.for_known.address, nodes.known)


def test_who_cannot_show_that_it_is_the_node_is_refused(nodes: Nodes) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        keeps(nodes.for_all.address.replace("127.0.0.1", "localhost"), nodes.tls)
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        keeps(nodes.for_all.address, NodeTlsSettings(ca_file=nodes.folder / "another.pem"))
    plain = Memcached(free_port())
    plain.start()
    with pytest.raises(OSError):  # noqa: PT011 - which one is OpenSSL's to say
        keeps(plain.address, nodes.tls)
    end_node(plain)


def test_who_does_not_show_a_certificate_is_refused_by_a_node_that_asks(nodes: Nodes) -> None:
    for tls in (None, nodes.tls):
        with pytest.raises((OSError, NodeError)):
            keeps(nodes.for_known.address, tls)


def test_a_node_that_is_silent_is_given_up(nodes: Nodes) -> None:
    client = node_client(nodes.for_all.address, timeout=1.0, tls=nodes.tls)
    client.store({"key": b"entry"}, 60)
    assert not client.was_closed()
    pause(nodes.for_all)
    try:
        with pytest.raises(TimeoutError):
            client.ask(["key"]).answer()
    finally:
        resume(nodes.for_all)


def test_files_that_cannot_be_used_are_named_at_the_start(nodes: Nodes, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"absent.pem cannot be used: .*No such file"):
        NodeTlsSettings(ca_file=tmp_path / "absent.pem")
    with pytest.raises(ValidationError, match="set certificate_file and key_file, or neither"):
        NodeTlsSettings(ca_file=nodes.folder / "ca.pem", key_file=nodes.folder / "node.key")


def hits(server: Service) -> float:
    return server.metric("tandem_cache_reads_total", result="hit")


def test_reads_come_from_the_cache_and_where_the_node_is_not_known_from_the_database(
    nodes: Nodes, databases: Databases, tmp_path: Path
) -> None:
    tls = {"CACHE__TLS__CA_FILE": str(nodes.folder / "ca.pem")}
    stack = Stack(databases, tmp_path, nodes=[nodes.for_all], settings={"PROJECTOR": tls, "QUERY": tls})
    try:
        stack.start()
        receipt = stack.commands.AddProduct(add_product(1), timeout=20).receipt
        request = queries.GetProductRequest(product_id=identity("product", 1))
        request.consistency.at_least_as_fresh = receipt.consistency_token
        deceived = stack.new_query_server(CACHE__TLS__CA_FILE=str(nodes.folder / "another.pem"))
        deceived.start()

        def read_from(server: Service) -> bool:
            answer = QueryServiceStub(stack.channel(server)).GetProduct(request, timeout=10)
            return answer.product.product_id == request.product_id

        known, failures = stack.query_server, "tandem_cache_node_failures_total"
        wait_until(lambda: read_from(known) and hits(known) > 0, "reads come from the cache")
        wait_until(lambda: read_from(deceived) and deceived.metric(failures) > 0, "the node is asked")
        assert read_from(deceived)
        assert (hits(deceived), known.metric(failures)) == (0, 0)
    finally:
        stack.stop()
