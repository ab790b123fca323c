"""A node of the cache, whatever it runs: the one seam that memcached and Redis are behind."""

import socket
import ssl
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from prometheus_client import Counter
from pydantic import Field, SecretStr, model_validator

from tandem.runtime.settings import UNIX_SOCKET, Block

NOT_STORED = Counter(
    "tandem_cache_values_not_stored_total", "Values that a cache node had no room for, or found too large", ["node"]
)

NEVER = 0
"""As a time after which an entry expires."""

MAX_VALUE_BYTES = 1 << 20
"""Above the largest value that a projector stores."""

COMMANDS_TOGETHER = 1_000
"""Their answers must fit the connection's buffers: nobody takes them until all are sent."""

RECEIVE_BYTES = 65_536
"""A batch of usual entries in one piece."""

IDLE_SECONDS = 0.5
"""After it a connection is looked at before it is used. A node's time-out of idle ones is in whole seconds."""


class NodeError(Exception):
    """A node did not do what it was asked for, or is not the one that it was; the connection to it is closed."""


class NodeStats(NamedTuple):
    """What a node says of itself. max_bytes: 0 for no limit."""

    entries: int
    bytes: int
    max_bytes: int
    evictions: int


class NodeClient(Protocol):
    """A connection to one node, made when it is needed first; for one thread.

    Each method raises OSError or NodeError and has closed the connection then: nobody knows what else it would say.
    Who uses it after that has another connection. Keys are `key_prefix` and the row; they are ASCII.
    """

    @property
    def identity(self) -> str:
        """What the epochs of this node end with.

        It is another word after all that may have brought old entries back: a start with data from a disk, a replica
        that became the node. Empty for a node that can do no such thing, since it begins empty.
        """
        ...

    def close(self) -> None: ...

    def was_closed(self) -> bool:
        """Whether the node has ended the connection while it was asked nothing, as it does with one that is idle.

        All that was sent before was answered. Looks after a pause alone.
        """
        ...

    def ask(self, keys: Iterable[str]) -> Self:
        """Asks for entries, of at least one key, all of one epoch; returns itself. It may ask again before it reads an
        answer, and do nothing else. Raises NodeError too where the node is another than when the epoch began.
        """
        ...

    def answer(self) -> dict[str, bytes]:
        """The entries that are there, by key: of what was asked for first of all that is not answered."""
        ...

    def ask_with_cas(self, keys: Iterable[str]) -> dict[str, tuple[bytes, bytes]]:
        """As `ask` and `answer`, each with that by which `replace_unchanged` knows that it is still there."""
        ...

    def store(self, entries: Mapping[str, bytes], expire: int) -> None:
        """Stores all entries, by key, for so many seconds. Those that the node does not take are deleted instead."""
        ...

    def add_missing(self, entries: Mapping[str, bytes], expire: int) -> set[str]:
        """Stores those entries whose keys have none; returns their keys."""
        ...

    def replace_unchanged(self, entries: Mapping[str, tuple[bytes, bytes]], expire: int) -> None:
        """Stores those entries whose keys have what `ask_with_cas` found there. entries: each with that."""
        ...

    def remove(self, keys: Sequence[str]) -> list[bool]:
        """Deletes entries; says for each key whether there was one."""
        ...

    def stats(self) -> NodeStats: ...

    def ping(self) -> None:
        """Raises NodeError too where the node is another than when the connection was made."""
        ...


class NodeTlsSettings(Block):
    """TLS to the cache's nodes. The files are read again for each connection."""

    ca_file: Path = Field(
        description="PEM file with the authority of the nodes' certificates, which must name their hosts"
    )
    certificate_file: Path | None = Field(None, description="PEM file with a certificate to show to the nodes")
    key_file: Path | None = Field(None, description="PEM file with its private key")

    @model_validator(mode="after")
    def _can_be_used(self) -> Self:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("set certificate_file and key_file, or neither")
        try:
            self.context()
        except OSError as error:
            files = ", ".join(str(it) for it in (self.ca_file, self.certificate_file, self.key_file) if it)
            raise ValueError(f"{files} cannot be used: {error}") from None
        return self

    def context(self) -> ssl.SSLContext:
        """Takes nobody but who shows a certificate of the authority, for the host that is connected to. Raises OSError.

        A Unix socket is not asked.
        """
        context = ssl.create_default_context(cafile=self.ca_file)
        if self.certificate_file is not None:
            # Without the password OpenSSL would ask the terminal for one.
            context.load_cert_chain(self.certificate_file, self.key_file, password=lambda: "")
        return context


class LoginSettings(Block):
    """Who connects to Redis nodes that ask. The file is read again for each connection."""

    user: str = Field("default", min_length=1, description="The user, of Redis's ACL")
    password: SecretStr | None = Field(None, description="Its password")
    password_file: Path | None = Field(None, description="A file that holds the password, instead of it")

    @model_validator(mode="after")
    def _has_one_password(self) -> Self:
        if (self.password is None) == (self.password_file is None):
            raise ValueError("set one of password and password_file")
        try:
            self.read()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"password_file {self.password_file} cannot be used: {error}") from None
        return self

    def read(self) -> tuple[str, str]:
        """User and password. Raises OSError, and UnicodeDecodeError."""
        if self.password_file is not None:
            return self.user, self.password_file.read_text(encoding="utf-8").strip()
        assert self.password is not None
        return self.user, self.password.get_secret_value()


class NodeAddress(NamedTuple):
    """Where a node is. kind: "memcached" or "redis". host and port, or the path of a Unix socket."""

    kind: str
    host: str = ""
    port: int = 0
    path: str = ""
    tls: bool = False

    @property
    def longest_identity(self) -> str:
        """As long as any that the node can have."""
        return "" if self.kind == "memcached" else f"-{0:016x}"


_REDIS, _REDIS_TLS, _REDIS_SOCKET = "redis://", "rediss://", "redis+unix:"


def parse_node(node: str) -> NodeAddress:
    """Of "host:port" or "unix:/path" for memcached, "redis://host:port", "rediss://host:port" or "redis+unix:/path".

    Raises ValueError.
    """
    if "@" in node:
        # The rest of it is not said.
        raise ValueError("a node's name is announced and logged, so it holds no password: set CACHE__LOGIN__…")
    for prefix, kind in ((UNIX_SOCKET, "memcached"), (_REDIS_SOCKET, "redis")):
        if node.startswith(prefix):
            path = node.removeprefix(prefix)
            if not path.startswith("/"):
                raise ValueError(f"{node!r} is not {prefix}/path")
            return NodeAddress(kind, path=path)
    is_redis = node.startswith((_REDIS, _REDIS_TLS))
    host, separator, port = node.removeprefix(_REDIS).removeprefix(_REDIS_TLS).rpartition(":")
    if not separator or not host or "/" in host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{node!r} is not host:port, nor unix:/path, nor redis://host:port")
    return NodeAddress(
        "redis" if is_redis else "memcached", host.strip("[]"), int(port), tls=node.startswith(_REDIS_TLS)
    )


def leave_time_outs_to_kernel(connection: socket.socket, seconds: float) -> None:
    """Of each `send` and `recv`. Python's own have a system call before each.

    Not with TLS: it would begin again what the kernel has given up.
    """
    limit = struct.pack("@ll", int(seconds), int(seconds % 1 * 1_000_000))
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
