"""What the cache needs of a node, of each kind that there is."""

import secrets
import ssl
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from pydantic import SecretStr, ValidationError

from tandem.projection.cache_writer import CacheWriter
from tandem.projection.settings import CacheSettings
from tandem.read_store.cache import key_prefix, new_epoch
from tandem.read_store.node import NEVER, LoginSettings, NodeClient, NodeError, NodeTlsSettings, parse_node
from tandem.read_store.nodes import node_client
from tandem.testing.ports import free_port
from tandem.testing.stack import end_node, kill, pause, resume, wait_until
from tests.support.caches import EVICTS_NOTHING, KEEPS_WHAT_IT_HAS, KINDS, Node, RedisNode, new_node, require, socket_of
from tests.support.metrics import sample

FAILURES = (OSError, NodeError)
NOT_STORED = "tandem_cache_values_not_stored_total"
REDIS_KINDS = [it for it in KINDS if it != "memcached"]
# What docs/security.md says that Redis' user needs.
RIGHTS = [
    "resetkeys",
    "~*",
    "-@all",
    "+hello",
    "+info",
    "+client|tracking",
    "+mget",
    "+get",
    "+set",
    "+eval",
    "+del",
    "+dbsize",
]


@pytest.fixture(scope="module")
def nodes_of() -> Iterator[Callable[[str], Node]]:
    """One of each kind, for the tests that leave it as it was."""
    started: dict[str, Node] = {}

    def of(kind: str) -> Node:
        if kind not in started:
            require(kind)
            started[kind] = new_node(kind, EVICTS_NOTHING)
            started[kind].start()
        return started[kind]

    yield of
    for it in started.values():
        end_node(it)


@pytest.fixture(params=KINDS)
def node(request: pytest.FixtureRequest, nodes_of: Callable[[str], Node]) -> Node:
    return nodes_of(request.param)


@pytest.fixture
def client(node: Node) -> Iterator[NodeClient]:
    client = node_client(node.address, timeout=5)
    yield client
    client.close()


def keys_of(client: NodeClient, count: int) -> list[str]:
    """Of an epoch that nobody had before."""
    prefix = key_prefix("view", new_epoch(client.identity))
    return [f"{prefix}{number:032x}" for number in range(count)]


def found(client: NodeClient, *keys: str) -> list[bytes | None]:
    entries = client.ask(keys).answer()
    return [entries.get(it) for it in keys]


ENTRIES = [b"", b"\0", b"\0" * 20, b"\r\nEND\r\n", b"$-1\r\n", b"\xff", b"x" * 200_000, b"x" * 1_000_000]


def test_entries_of_all_bytes_and_sizes_come_back(client: NodeClient) -> None:
    keys = keys_of(client, len(ENTRIES) + 1)
    client.store(dict(zip(keys, ENTRIES, strict=False)), 60)
    assert found(client, *keys) == [*ENTRIES, None]
    assert client.remove(keys) == [True] * len(ENTRIES) + [False]
    assert found(client, *keys) == [None] * len(keys)
    client.store({}, 60)
    assert client.add_missing({}, 60) == set()
    assert client.remove([]) == []


def test_more_entries_than_are_sent_together_are_stored_and_removed(client: NodeClient) -> None:
    keys = keys_of(client, 2_500)
    entries = {key: secrets.token_bytes(500) for key in keys}
    client.store(entries, 60)
    assert client.ask(keys).answer() == entries
    assert client.remove(keys) == [True] * len(keys)


def test_answers_come_in_the_order_of_what_was_asked_for(client: NodeClient) -> None:
    keys = keys_of(client, 4)
    client.store(dict(zip(keys, ENTRIES, strict=False)), 60)
    for it in keys:
        client.ask([it])
    assert [client.answer() for _ in keys] == [{key: entry} for key, entry in zip(keys, ENTRIES, strict=False)]
    assert not client.was_closed()


def test_an_entry_is_added_where_there_is_none(client: NodeClient) -> None:
    first, second = keys_of(client, 2)
    client.store({first: b"there"}, 60)
    assert client.add_missing({first: b"", second: b""}, 60) == {second}
    assert found(client, first, second) == [b"there", b""]


@pytest.mark.parametrize("before", [b"", b"an entry"])
@pytest.mark.parametrize("meanwhile", ["nothing", "stored", "removed", "evicted and placed again"])
def test_an_entry_is_replaced_unless_anything_happened_to_it(
    client: NodeClient, node: Node, before: bytes, meanwhile: str
) -> None:
    [key] = keys_of(client, 1)
    other = node_client(node.address, timeout=5)
    client.add_missing({key: before}, 60)
    (entry, cas) = client.ask_with_cas([key])[key]
    assert entry == before
    match meanwhile:
        case "stored":
            other.store({key: b"newer"}, 60)
        case "removed":
            other.remove([key])
        case "evicted and placed again":
            # By another reader, whose placeholder is its own.
            other.remove([key])
            other.add_missing({key: b""}, 60)
    other.close()
    client.replace_unchanged({key: (b"read", cas)}, 60)
    expected = {"nothing": b"read", "stored": b"newer", "removed": None, "evicted and placed again": b""}
    assert found(client, key) == [expected[meanwhile]]


def test_entries_expire_and_what_is_for_ever_does_not(client: NodeClient) -> None:
    first, second, third, fourth = keys_of(client, 4)
    client.store({first: b"stored"}, 1)
    client.add_missing({second: b"", third: b""}, 1)
    client.replace_unchanged({third: (b"replaced", client.ask_with_cas([third])[third][1])}, 1)
    client.store({fourth: b""}, NEVER)
    wait_until(lambda: found(client, first, second, third) == [None] * 3, "they have expired")
    assert found(client, fourth) == [b""]


@pytest.mark.parametrize("node_kind", KINDS)
def test_a_node_without_room_keeps_no_old_entry_and_says_so(cache_nodes: Callable[..., list[Node]]) -> None:
    [node] = cache_nodes(1, EVICTS_NOTHING)
    client = node_client(node.address, timeout=5)
    old, placed, new = keys_of(client, 3)
    client.store({old: b"old"}, 60)
    client.add_missing({placed: b""}, 60)
    cas = client.ask_with_cas([placed])[placed][1]
    node.fill()
    client.store({old: b"x" * 20_000}, 60)
    assert client.add_missing({new: b"x" * 20_000}, 60) == set()
    client.replace_unchanged({placed: (b"x" * 20_000, cas)}, 60)
    assert found(client, old, new) == [None, None]
    assert found(client, placed) in ([b""], [None])
    assert sample(NOT_STORED, node=node.address) == 2
    client.close()


def test_a_node_says_what_it_holds(client: NodeClient) -> None:
    [key] = keys_of(client, 1)
    client.store({key: b"x" * 1000}, 60)
    client.ping()
    said = client.stats()
    assert said.entries >= 1
    assert said.bytes > 1000
    assert said.max_bytes == 8 * 2**20
    assert said.evictions >= 0


@pytest.mark.parametrize(
    "use", [lambda it: it.ask(keys_of(it, 1)).answer(), lambda it: it.store({"key": b""}, 60), lambda it: it.ping()]
)
def test_a_node_that_stands_still_is_given_up(node: Node, use: Callable[[NodeClient], object]) -> None:
    client = node_client(node.address, timeout=1.0)
    client.ping()
    pause(node)
    try:
        with pytest.raises(FAILURES):
            use(client)
    finally:
        resume(node)
    with pytest.raises(AssertionError, match="not connected"):
        socket_of(client)


def test_a_server_of_another_kind_is_no_node(nodes_of: Callable[[str], Node], node: Node) -> None:
    other = nodes_of("valkey" if node.name == "memcached" else "memcached")
    where = f"127.0.0.1:{other.port}"
    client = node_client(where if node.name == "memcached" else f"redis://{where}", timeout=0.5)
    with pytest.raises(FAILURES):
        client.ask(["view:epoch:row"]).answer()
    with pytest.raises(FAILURES):
        client.ping()
    client.close()


# Redis and Valkey alone.


@pytest.fixture(params=REDIS_KINDS)
def new_redis(request: pytest.FixtureRequest) -> Iterator[Callable[..., RedisNode]]:
    """Starts one with more options of its command line."""
    require(request.param)
    started: list[RedisNode] = []

    def start(*options: str, scheme: str = "redis") -> RedisNode:
        node = RedisNode(request.param, free_port(), options, scheme=scheme)
        node.start()
        started.append(node)
        return node

    yield start
    for it in started:
        end_node(it)


def replicates(node: RedisNode, other: RedisNode) -> None:
    node.says("REPLICAOF", "127.0.0.1", str(other.port))
    wait_until(lambda: b"master_link_status:up" in bytes(str(node.says("INFO", "replication")), "ascii"), "it follows")


def test_a_node_that_comes_back_with_old_data_is_not_read(new_redis: Callable[..., RedisNode]) -> None:
    node = new_redis(*KEEPS_WHAT_IT_HAS["redis"])
    client = node_client(node.address, timeout=5)
    [key] = keys_of(client, 1)
    client.store({key: b"old"}, 60)
    node.save()
    client.store({key: b"new"}, 60)
    kill(node)
    node.start()
    assert node.says("GET", key) == b"old", "it has kept it"
    with pytest.raises(FAILURES):
        client.ask([key]).answer()
    after = node_client(node.address, timeout=5)
    for use in (after.ask, after.ask_with_cas):
        with pytest.raises(NodeError, match="not what it was when the epoch began"):
            use([key])
    after.close()


def test_a_primary_whose_data_were_replaced_by_older_ones_is_not_read(new_redis: Callable[..., RedisNode]) -> None:
    """It was another one's replica for a moment, as after a failover and back; no connection to it was closed."""
    node, other = new_redis(), new_redis()
    writer, reader = (node_client(node.address, timeout=5) for _ in range(2))
    [key] = keys_of(writer, 1)
    writer.store({key: b"old"}, 60)
    assert found(reader, key) == [b"old"]
    replicates(other, node)
    other.says("REPLICAOF", "NO", "ONE")
    # What the other one has not.
    writer.store({key: b"new"}, 60)
    assert found(reader, key) == [b"new"]
    replicates(node, other)
    fresh = node_client(node.address, timeout=5)
    with pytest.raises(NodeError, match="it is a replica"):
        fresh.ping()
    node.says("REPLICAOF", "NO", "ONE")
    assert node.says("GET", key) == b"old"
    for it in (reader, writer):
        with pytest.raises(NodeError, match="its data were replaced"):
            it.ask([key]).answer()
    with pytest.raises(NodeError, match="not what it was when the epoch began"):
        fresh.ask([key])
    for it in (reader, writer, fresh):
        it.close()


def test_a_replica_that_became_the_node_is_fenced_and_gets_a_new_epoch(new_redis: Callable[..., RedisNode]) -> None:
    node, other = new_redis(), new_redis()
    replicates(other, node)
    settings = CacheSettings(probe_seconds=0.05)
    writer = CacheWriter((node.address,), settings)
    writer.start()
    writer.begin("view", None)
    change: dict[str, dict[bytes, bytes | None]] = {"view": {bytes(16): b"value"}}
    writer.write(change)
    before = dict(writer.epochs["view"])
    # It is there where the node was, with all that it had, the writer's mark too.
    wait_until(lambda: other.says("DBSIZE") == node.says("DBSIZE"), "the replica has all")
    kill(node)
    other.says("REPLICAOF", "NO", "ONE")
    other.says("CONFIG", "SET", "port", str(node.port))
    wait_until(writer.revive, "the writer notices, without a write")
    assert writer.epochs["view"] == {node.address: None}
    wait_until(writer.revive, "it is back")
    after = writer.epochs["view"]
    assert after[node.address] not in (None, before[node.address])
    assert writer.read("view", [bytes(16)]) == {}
    writer.write(change)
    assert writer.read("view", [bytes(16)]) == {bytes(16): b"value"}
    # A clean stop leaves the epoch to who finds the same node.
    left = writer.end("view")
    assert writer.begin("view", left)
    assert writer.epochs["view"] == after
    writer.stop()


def test_a_first_replica_that_attaches_ends_the_epoch_once(new_redis: Callable[..., RedisNode]) -> None:
    """The node's history has another name then, so new connections would take it for another one."""
    node, other = new_redis(), new_redis()
    writer = CacheWriter((node.address,), CacheSettings(probe_seconds=0.05))
    writer.start()
    writer.begin("view", None)
    before = dict(writer.epochs["view"])
    replicates(other, node)
    wait_until(writer.revive, "the writer notices")
    wait_until(lambda: writer.epochs["view"][node.address] is not None or writer.revive(), "it is back")
    assert writer.epochs["view"] != before
    writer.write({"view": {bytes(16): b"value"}})
    reader = node_client(node.address, timeout=5)
    assert str(writer.epochs["view"][node.address]).endswith(reader.identity)
    reader.close()
    writer.stop()


def test_a_part_of_a_cluster_is_refused_in_words(new_redis: Callable[..., RedisNode]) -> None:
    # Its own choice for what nodes say to each other is its port and 10,000, which somebody may have.
    node = new_redis("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    client = node_client(node.address, timeout=5)
    with pytest.raises(NodeError, match="runs as cluster, which is not supported"):
        client.ping()
    writer = CacheWriter((node.address,), CacheSettings())
    writer.begin("view", None)
    assert writer.epochs["view"] == {node.address: None}
    [now] = writer.look_at_nodes()
    assert "cluster" in now.problem
    writer.stop()


def test_a_user_with_these_rights_alone_is_enough_and_no_other_gets_in(
    new_redis: Callable[..., RedisNode], tmp_path: Path
) -> None:
    node = new_redis()
    password, file = secrets.token_hex(16), tmp_path / "password"
    file.write_text(f"{password}\n")
    node.says("ACL", "SETUSER", "tandem", "on", f">{password}", *RIGHTS)
    node.says("ACL", "SETUSER", "default", "off")
    login = LoginSettings(user="tandem", password_file=file)
    client = node_client(node.address, timeout=5, login=login)
    [key] = keys_of(client, 1)
    client.add_missing({key: b""}, 60)
    client.replace_unchanged({key: (b"entry", client.ask_with_cas([key])[key][1])}, 60)
    client.store({key: b"another"}, 60)
    assert found(client, key) == [b"another"]
    client.ping()
    assert client.stats().entries == 1
    assert client.remove([key]) == [True]
    client.close()
    for wrong in (None, LoginSettings(user="tandem", password=SecretStr("wrong" * 5))):
        client = node_client(node.address, timeout=5, login=wrong)
        with pytest.raises(NodeError, match="it refuses who connects") as error:
            client.ping()
        assert "wrong" * 5 not in f"{error.value!r} {wrong!r}"
    assert password not in f"{login!r}"


@pytest.mark.parametrize("new_redis", ["redis"], indirect=True)  # the wheel's Valkey speaks no TLS
def test_a_node_is_reached_by_tls_and_who_is_not_it_is_refused(new_redis: Callable[..., RedisNode]) -> None:
    with tempfile.TemporaryDirectory(prefix="tandem-test-") as name:
        folder = Path(name)
        authority = trustme.CA()
        authority.cert_pem.write_to_path(folder / "ca.pem")
        shown = authority.issue_cert("127.0.0.1")
        shown.cert_chain_pems[0].write_to_path(folder / "node.pem")
        shown.private_key_pem.write_to_path(folder / "node.key")
        port = free_port()
        files = ("--tls-cert-file", f"{folder}/node.pem", "--tls-key-file", f"{folder}/node.key")
        node = new_redis(
            "--tls-port", str(port), *files, "--tls-ca-cert-file", f"{folder}/ca.pem", "--tls-auth-clients", "no"
        )
        tls = NodeTlsSettings(ca_file=folder / "ca.pem")
        client = node_client(f"rediss://127.0.0.1:{port}", timeout=5, tls=tls)
        [key] = keys_of(client, 1)
        client.store({key: b"x" * 100_000}, 60)
        assert found(client, key) == [b"x" * 100_000]
        assert not client.was_closed()
        node.says("FLUSHALL")
        wait_until(client.was_closed, "it says that all is gone")
        client.close()
        for where, trusted in ((f"localhost:{port}", tls), (f"127.0.0.1:{port}", None)):
            with pytest.raises(ssl.SSLCertVerificationError):
                node_client(f"rediss://{where}", timeout=5, tls=trusted).ping()


def test_without_its_library_a_redis_node_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tandem.read_store.redis", None)
    monkeypatch.setitem(__import__("sys").modules, "hiredis", None)
    with pytest.raises(NodeError, match=r"pip install 'tandem-cqrs\[redis\]'"):
        node_client("redis://127.0.0.1:6379", timeout=1)


@pytest.mark.parametrize(
    "address", ["redis://host", "redis://host:0", "redis://host:6379/2", "redis+unix:path", "unix:path", "http://a:1/"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        parse_node(address)


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="CACHE__LOGIN") as error:
        parse_node("redis://tandem:of-nobody@host:6379")
    assert "of-nobody" not in str(error.value)


def test_a_login_has_one_password() -> None:
    for wrong in ({}, {"password": SecretStr("a"), "password_file": Path("a")}, {"password_file": Path("/absent")}):
        with pytest.raises(ValidationError):
            LoginSettings(**wrong)


def test_addresses_of_each_kind() -> None:
    assert [(it.kind, it.host, it.port, it.path, it.tls) for it in map(parse_node, ADDRESSES)] == [
        ("memcached", "a", 11211, "", False),
        ("memcached", "", 0, "/a", False),
        ("redis", "::1", 6379, "", False),
        ("redis", "a", 6379, "", True),
        ("redis", "", 0, "/a", False),
    ]


ADDRESSES = ("a:11211", "unix:/a", "redis://[::1]:6379", "rediss://a:6379", "redis+unix:/a")
