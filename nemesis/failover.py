"""A standby that lacks commits is promoted: what was lost is refused by name, and one command makes all right."""

import shutil
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from nemesis.checker import Violation
from nemesis.cluster import Cluster
from nemesis.episode import Say, at_rest
from nemesis.shop import read_feed
from nemesis.stores import compare, wait_until_followed
from tandem.cli.child import as_user, run_to_end
from tandem.cli.embedded import Postgres, postgres_programs, postgres_user
from tandem.feed.token import Token
from tests.support.stack import kill

KEPT, LOST, NEW = 20, 15, 40
"""Writes before the standby's state, behind it, and after its promotion: more than were lost, so that positions alone
would say that nothing is amiss."""
_SECONDS = 60.0


class Failover(NamedTuple):
    """back: seconds from the command to the moment when every view is right again."""

    violations: list[Violation]
    back: float


def run_failover(say: Say) -> Failover:
    """In a cluster of its own. AssertionError when something does not come back."""
    folder = Path(tempfile.mkdtemp(prefix="tandem-failover-"))
    with at_rest(folder, clients=0) as (cluster, crowd, loop):

        def write(count: int) -> list[Token]:
            tokens: list[Token] = []
            end = time.monotonic() + _SECONDS
            while len(tokens) < count:
                token = loop.run(crowd.probe_write(len(tokens) % crowd.command_servers))
                assert time.monotonic() < end, "nothing is stored any more"
                tokens += [] if token is None else [token]
            return tokens

        def shown(tokens: list[Token]) -> list[Token]:
            """Those that a query server says that it includes."""
            return [it for it in tokens if loop.run(crowd.probe_read(it.position % crowd.query_servers, it))]

        write(KEPT)
        standby = _copy(cluster, folder)
        lost = write(LOST)
        wait_until_followed(cluster.write_url, cluster.read_url)
        assert len(shown(lost)) == LOST, "what is stored is shown"
        _promote(cluster, standby)
        new = write(NEW)
        found = [Violation("G6", f"the lost write at {it.position} is said to be shown") for it in shown(lost)]
        say(f"a standby without {LOST} commits was promoted; reads that need them are refused")
        began = time.monotonic()
        cluster.services["command 1"].run("begin-epoch")
        [newest] = write(1)
        while not shown([newest]):
            assert time.monotonic() < began + _SECONDS, "the views are not right again"
        wait_until_followed(cluster.write_url, cluster.read_url)
        back = time.monotonic() - began
        say(f"begin-epoch made all views right in {back:.1f} s")
        found += [Violation("G6", f"{it} is of a feed that has ended") for it in shown([*lost, *new])]
        feed = read_feed(cluster.write_url)
        found += compare(cluster.write_url, cluster.read_url, feed, cluster.node_addresses)
    shutil.rmtree(folder)
    return Failover(found, back)


def _copy(cluster: Cluster, folder: Path) -> Path:
    """What a standby has now."""
    copy = folder / "standby"
    primary = cluster.databases["write"]
    copy.mkdir()
    user = postgres_user()
    if user is not None:
        shutil.chown(copy, user)
    command = [str(postgres_programs(user) / "pg_basebackup"), "-D", ".", "-d", primary.url("postgres"), "-c", "fast"]
    run_to_end(as_user(user, command), "the database cannot be copied", folder=copy)
    copy.chmod(0o700)
    return copy


def _promote(cluster: Cluster, standby: Path) -> None:
    """The address leads to the standby from now on; the primary is gone."""
    primary = cluster.databases["write"]
    kill(primary)
    cluster.databases["write"] = promoted = Postgres(standby, primary.port)
    promoted.start()
