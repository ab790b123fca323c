"""Which library speaks to a node: its address says it."""

from tandem.read_store.memcached import memcached_client
from tandem.read_store.node import LoginSettings, NodeClient, NodeError, NodeTlsSettings, parse_node


def node_client(
    node: str, *, timeout: float, tls: NodeTlsSettings | None = None, login: LoginSettings | None = None
) -> NodeClient:
    """A connection to one node, for one thread. `timeout` in seconds, for connecting and for each answer.

    Who is not who the certificates of `tls` say is a node that fails, as one that is away. Raises NodeError where the
    node's library is not installed.
    """
    address = parse_node(node)
    if address.kind == "memcached":
        return memcached_client(node, address, timeout, tls)
    try:
        from tandem.read_store.redis import RedisClient  # noqa: PLC0415 - its package is in an extra
    except ModuleNotFoundError as error:
        raise NodeError(f"{error.name} is missing: pip install 'tandem-cqrs[redis]'") from error
    return RedisClient(node, address, timeout=timeout, tls=tls, login=login)
