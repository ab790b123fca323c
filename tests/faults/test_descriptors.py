"""A process that has no descriptor left, for a while, is well again afterwards: no thread of it has died."""

import asyncio
import re
import resource
from collections.abc import Callable

import psutil
import psycopg

from tests.faults.test_silence import until_read
from tests.support.shop import open_shop
from tests.support.stack import Stack, wait_until

_END_LISTENER = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tandem-query-listen'"


def test_a_server_without_descriptors_is_not_blind_afterwards(new_stack: Callable[..., Stack]) -> None:
    stack = new_stack()
    query = stack.query_server
    asyncio.run(_open_and_read(stack))
    process = psutil.Process(query.pid)
    usual = process.rlimit(resource.RLIMIT_NOFILE)
    # The descriptor of the connection that is ended is free: it is enough for a socket, and not for what waits on it.
    # As many as there are all the time: connections come and go, and a thread that looks at them has one for a moment.
    wait_until(lambda: len({process.num_fds() for _ in range(200)}) == 1, "nothing is opened or closed")
    process.rlimit(resource.RLIMIT_NOFILE, (process.num_fds(), usual[1]))
    with psycopg.connect(stack.read_url, autocommit=True) as connection:
        connection.execute(_END_LISTENER)
    wait_until(lambda: re.search("thread.{1,4}announcements", query.log.read_text()), "the listening thread has met it")
    process.rlimit(resource.RLIMIT_NOFILE, usual)
    wait_until(lambda: query.metric("tandem_freshness_blind") == 0, "no view is blind")
    assert query.metric("tandem_thread_restarts_total", thread="announcements") > 0
    wait_until(query.serves, "it is ready")


async def _open_and_read(stack: Stack) -> None:
    async with stack.async_stubs() as stubs:
        await until_read(stubs, await open_shop(stubs.commands))
