"""The cache's keys, entries and nodes, as projector and query_server both see them.

A key names the view, the node's epoch and the row. An epoch is a random word that belongs to one writer at one node for
as long as that writer has missed nothing: when a write fails, or another projector takes the view over without a clean
hand-over, the epoch ends, and what was stored under it can never be read again, whoever writes it, and however late.
So an older entry cannot replace a newer one: within an epoch there is one writer, on one connection, in order.

An entry is signed together with its key: what a node has there that was not stored there is no entry.
"""

import secrets
from collections.abc import Mapping
from zlib import crc32

from google.protobuf.message import DecodeError
from pydantic import Field, SecretStr
from pymemcache.client.rendezvous import RendezvousHash

from tandem.internal.v1.stored_pb2 import CacheEntry
from tandem.read_store.node import LoginSettings, NodeClient, NodeTlsSettings
from tandem.read_store.nodes import node_client
from tandem.runtime.signing import SecretSettings, mac_of

CacheEpochs = dict[str, str | None]
"""Node, as the setting names it, to its epoch; None while the node is fenced off. In the setting's order."""

PLACEHOLDER: bytes = CacheEntry().SerializeToString()
"""What a reader stores while it fills a missing entry: an entry without a value."""

# CacheEntry's field `value`: its number, and that bytes follow behind their length.
_VALUE_TAG = (CacheEntry.DESCRIPTOR.fields_by_name["value"].number << 3) | 2

# The same of its field `mac`, a fixed64, and the bytes of both.
_MAC_TAG = bytes(((CacheEntry.DESCRIPTOR.fields_by_name["mac"].number << 3) | 1,))
_MAC_BYTES = 8
_SIGNED_BYTES = len(_MAC_TAG) + _MAC_BYTES

LEASE_SECONDS = 3
"""How long a placeholder lives: longer than a read of the database takes, short enough that a reader that died costs
little."""


def new_epoch(identity: str = "") -> str:
    """A word that no earlier epoch had, also when the read database was restored from a backup: 64 random bits, and
    the identity of the node.
    """
    return secrets.token_hex(8) + identity


def key_prefix(view: str, epoch: str) -> str:
    """What keys begin with; the row's id in 32 hexadecimal digits follows: at most 97 bytes in all."""
    return f"{view}:{epoch}:"


def encode_entry(value: bytes) -> bytes:
    """A CacheEntry with this value. Most are written by hand: a message of one field takes several times as long."""
    size = len(value)
    if size < 1 << 7:
        return bytes((_VALUE_TAG, size)) + value
    if size < 1 << 14:
        return bytes((_VALUE_TAG, (size & 0x7F) | 0x80, size >> 7)) + value
    return CacheEntry(value=value).SerializeToString()


def decode_entry(raw: bytes) -> bytes | None:
    """The view's bytes; None for a placeholder, and what is not one of ours."""
    try:
        entry = CacheEntry.FromString(raw)
    except DecodeError:
        return None
    return entry.value if entry.HasField("value") else None


class SharedCacheSettings(SecretSettings):
    """What projector and query servers say alike of the cache."""

    timeout: float = Field(0.25, gt=0, le=10, description="Seconds for connecting to a node and for each answer")
    tls: NodeTlsSettings | None = Field(
        None, description="Speak TLS to the nodes; without it to those at rediss:// alone, as the system trusts"
    )
    login: LoginSettings | None = Field(None, description="Who connects to Redis nodes")
    secret: SecretStr | None = Field(
        None,
        min_length=16,
        description="Signs the cache's entries, at the projector and at the query servers alike: what others write"
        " there is not read. Without one, what was changed by accident is still found",
    )

    def connection(self, node: str) -> NodeClient:
        """A new one. Raises NodeError where the node's library is not installed."""
        return node_client(node, timeout=self.timeout, tls=self.tls, login=self.login)

    def signer(self) -> "Signer":
        """Raises SettingsError when the secret's file cannot be used."""
        return Signer(*self.read("cache"))


class Signer:
    """Signs entries, and knows those that were signed for their keys with one of its secrets. For any thread.

    It cannot know an entry that was there before, under the same epoch, from the one that is to be there now.
    """

    def __init__(self, *secrets: str) -> None:
        """The first one signs."""
        self._mac, *self._others = [mac_of(it, _MAC_BYTES) for it in secrets] or [_checksum]

    def sign(self, key: str, entry: bytes) -> bytes:
        return entry + _MAC_TAG + self._mac(key.encode("ascii") + entry)

    def unsigned(self, signed: Mapping[str, bytes], rows: Mapping[str, str]) -> dict[str, bytes]:
        """The entries of those that were signed for these keys, by the keys' rows. Raises KeyError for a key of no row.

        Each takes 0.5 µs, with a secret 1 µs.
        """
        mac, others = self._mac, self._others
        found = {}
        for key, it in signed.items():
            row, entry = rows[key], it[:-_SIGNED_BYTES]
            if it.endswith(mac(key.encode("ascii") + entry)) or (
                others and any(it.endswith(other(key.encode("ascii") + entry)) for other in others)
            ):
                found[row] = entry
        return found


def _checksum(signed: bytes) -> bytes:
    return crc32(signed).to_bytes(_MAC_BYTES, "little")


class Ring:
    """Which node a key belongs to, over all configured nodes, whether they are up or not.

    A key never moves because its node is away: moving it back later would bring old values back to life.
    """

    def __init__(self, nodes: list[str]) -> None:
        self.nodes = nodes
        self._hash = RendezvousHash(nodes)

    def node_of(self, digits: str) -> str:
        """digits: the row's id in 32 hexadecimal digits."""
        if len(self.nodes) == 1:
            return self.nodes[0]
        node: str = self._hash.get_node(digits)
        return node
