"""A process that has no descriptor left, for a while, is well again afterwards: no thread of it has died."""

import asyncio
import contextlib
import itertools
import os
import re
import resource
from collections.abc import Callable

import psutil
import psycopg

from tandem.testing.stack import wait_until
from tests.faults.test_silence import until_read
from tests.support.shop import open_shop
from tests.support.stack import Stack

_LISTENS = "SELECT pid, client_port FROM pg_stat_activity WHERE application_name = 'tandem-query-listen'"
_END_LISTENER = f"SELECT pg_terminate_backend(pid) FROM ({_LISTENS}) AS it"
_MET = re.compile("thread.{1,4}announcements")


def _limit_with_one_free(process: psutil.Process, port: int | None) -> int:
    """A limit below which one number is free once the connection from this port is closed.

    Of the numbers that a process uses some may be missing: one that was forked has closed what it does not need.
    """
    used = {int(it) for it in os.listdir(f"/proc/{process.pid}/fd")}
    free = next(number for number in itertools.count() if number not in used)
    is_below = any(it.fd < free for it in process.net_connections() if it.laddr and it.laddr.port == port)
    return free if is_below else free + 1


def test_a_server_without_descriptors_is_not_blind_afterwards(new_stack: Callable[..., Stack]) -> None:
    stack = new_stack()
    query = stack.query_server
    asyncio.run(_open_and_read(stack))
    process = psutil.Process(query.pid)
    usual = process.rlimit(resource.RLIMIT_NOFILE)
    # The descriptor of the connection that is ended is free: it is enough for a socket, and not for what waits on it.
    # As many as there are all the time: connections come and go, and a thread that looks at them has one for a moment.
    wait_until(lambda: len({process.num_fds() for _ in range(200)}) == 1, "nothing is opened or closed")
    with psycopg.connect(stack.read_url, autocommit=True) as connection:

        def has_met_it() -> bool:
            """Another thread may be given the descriptor that is free: then there is to be one more, and so on."""
            listens = connection.execute(_LISTENS).fetchone()
            limit = _limit_with_one_free(process, None if listens is None else listens[1])
            process.rlimit(resource.RLIMIT_NOFILE, (limit, usual[1]))
            connection.execute(_END_LISTENER)
            with contextlib.suppress(AssertionError):
                wait_until(lambda: _MET.search(query.log.read_text()), "the listening thread has met it", 2.0)
                return True
            return False

        wait_until(has_met_it, "the listening thread has met it")
    process.rlimit(resource.RLIMIT_NOFILE, usual)
    wait_until(lambda: query.metric("tandem_freshness_blind") == 0, "no view is blind")
    assert query.metric("tandem_thread_restarts_total", thread="announcements") > 0
    wait_until(query.serves, "it is ready")


async def _open_and_read(stack: Stack) -> None:
    async with stack.async_stubs() as stubs:
        await until_read(stubs, await open_shop(stubs.commands))
