"""A process that has no descriptor left, for a while, is well again afterwards: no thread of it has died."""

import asyncio
import contextlib
import re
import resource
from collections.abc import Callable

import psutil
import psycopg

from tests.faults.test_silence import until_read
from tests.support.shop import open_shop
from tests.support.stack import Stack, wait_until

_LISTENS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'tandem-query-listen'"
_END_LISTENER = f"SELECT pg_terminate_backend(pid) FROM ({_LISTENS}) AS it"
_MET = re.compile("thread.{1,4}announcements")


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
            listens = connection.execute(_LISTENS).fetchone() is not None
            process.rlimit(resource.RLIMIT_NOFILE, (process.num_fds() + (0 if listens else 1), usual[1]))
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
