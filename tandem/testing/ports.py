"""Ports for what a test starts."""

import secrets

from tandem.cli.child import port_in_use

QUIET_PORTS = range(15_000, 32_000)
"""What `free_port` chooses from. Linux takes the ports of outgoing connections from 32768 on, unless told otherwise."""
_given: set[int] = set()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now, another one each time.

    Below the range that the kernel takes the ports of outgoing connections from: one of those could have taken it by
    the time that the server listens.
    """
    while True:
        port = secrets.choice(QUIET_PORTS)
        if port not in _given and not port_in_use(port):
            _given.add(port)
            return port
