"""A relay loses and doubles nothing for a consumer of what is committed, wherever in a transaction it dies or stands
still, and while the broker is silent or gone.

The broker is noida-db, an emulator of one: what a cluster's own failover does, and Apache Kafka, is not shown here. It
is stopped in good order, since it has lost what it acknowledged after kill -9 (0.2.3).
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import select

from tandem.cli.services import Service
from tandem.feed.table import event
from tandem.relay.kafka import topic_of
from tandem.testing.ports import free_port
from tandem.testing.stack import kill, pause, resume, wait_until
from tests.faults.test_relay import Load, by_activity, position
from tests.integration.projector.conftest import Stores
from tests.support import events
from tests.support.forking import ForkedService
from tests.support.kafka import NoidaServer, headers, messages, noida
from tests.support.stack import Databases

# Of a transaction of two events: the producer begins, the transaction does, two events, a wait until they are taken,
# the place, the commit; and the next transaction begins.
_STEPS = range(1, 9)
_COMMIT = 7
_RETRIES = "tandem_relay_retries_total"


@pytest.fixture
def stores(databases: Databases) -> Iterator[Stores]:
    write, read = databases.create("write"), databases.create("read")
    made = Stores(write, read)
    # The tests share a broker, and all databases begin with one epoch.
    made.new_feed_epoch()
    yield made
    made.close()
    for url in (write, read):
        databases.drop(url)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NoidaServer]:
    with noida(tmp_path_factory.mktemp("kafka")) as started:
        yield started


@contextmanager
def relays(
    stores: Stores, server: NoidaServer, folder: Path, count: int, *, module: str = "relay", **environment: str
) -> Iterator[list[Service]]:
    """So many processes, which serve. environment: beside the settings."""
    started: list[Service] = [
        ForkedService(
            "relay",
            module=module,
            port=free_port(),
            metrics_port=free_port(),
            log=folder / f"{module}-{number}.log",
            settings={
                "FEED_DATABASE__URL": stores.write_url,
                "KAFKA__SERVERS": f'["{server.address}"]',
                "KAFKA__REPLICAS": "1",
                "KAFKA__PARTITIONS": "4",
                "KAFKA__ACK_SECONDS": "1",
                "RELAY__BATCH_SIZE": "2" if environment else "1000",
                "RELAY__TAKEOVER_SECONDS": "0.3",
                "RELAY__CHECK_SECONDS": "0.3",
                "RELAY__RETRY_SECONDS": "0.1",
            },
            environment={**os.environ, **environment},
        )
        for number in range(count)
    ]
    for it in started:
        it.launch()
    try:
        yield started
    finally:
        codes = [(it.stop(), it.log_tail(60)) for it in started]
    bad = [log for code, log in codes if code not in {0, -signal.SIGKILL}]
    assert not bad, "\n".join(bad)


def check(stores: Stores, server: NoidaServer) -> int:
    """A consumer of what is committed has the feed's first events, each once and in order for each aggregate.

    Returns how many.
    """
    epoch = stores.run("SELECT epoch FROM tandem_write.feed_head", "write")
    found = [(it.partition(), it.key(), headers(it)) for it in messages(server.address, topic_of("tandem", epoch))]
    with stores.write.connect() as connection:
        stored = connection.execute(select(event.c.position, event.c.mark).order_by(event.c.position)).all()
    in_order = sorted(found, key=lambda it: it[2]["ce_sequence"])
    expected = [f"{it.position}-{it.mark:x}" for it in stored[: len(found)]]
    assert [it[2]["ce_id"] for it in in_order] == expected
    for partition in {it[0] for it in found}:
        sequences = [it[2]["ce_sequence"] for it in found if it[0] == partition]
        assert sequences == sorted(sequences)
    assert len({(partition, key) for partition, key, _ in found}) == len({key for _, key, _ in found})
    return len(found)


def test_it_may_be_killed_between_any_two_steps_of_a_transaction(
    stores: Stores, server: NoidaServer, tmp_path: Path
) -> None:
    published = []
    for step in _STEPS:
        head = stores.append([events.product_added(4 * step + it) for it in range(4)])
        dies = {"RELAY_DIES_AT": str(step), "RELAY_DIES_WITH": str(int(signal.SIGKILL))}
        with relays(stores, server, tmp_path, 1, module="tests.support.dying_relay", **dies) as [dying]:
            code = wait_until(dying.exit_code, f"it dies at step {step}")
            assert code == -signal.SIGKILL, dying.log_tail(60)
        published.append(check(stores, server) if step > 1 else 0)
    # Only after the commit anything is there.
    assert published == [0] * _COMMIT + [2]
    with relays(stores, server, tmp_path, 1) as [relay]:
        wait_until(lambda: relay.serves() and position(relay) == head, "all is published")
        assert check(stores, server) == head


def test_one_that_stood_still_in_a_transaction_publishes_nothing_more_once_another_one_has_begun(
    stores: Stores, server: NoidaServer, tmp_path: Path
) -> None:
    head = stores.append([events.product_added(it) for it in range(1, 11)])
    stops = {"RELAY_DIES_AT": str(_COMMIT), "RELAY_DIES_WITH": str(int(signal.SIGSTOP))}
    with relays(stores, server, tmp_path, 1, module="tests.support.dying_relay", **stops) as [older]:
        wait_until(lambda: _stands_still(older.pid), "it stands still before its commit")
        with relays(stores, server, tmp_path, 1) as [newer]:
            wait_until(lambda: newer.serves() and position(newer) == head, "the newer one has published all")
            resume(older)
            # Fenced; or, where it stood still for longer than an answer may take, by its own clock.
            wait_until(lambda: any(older.metric(_RETRIES, reason=it) for it in ("taken", "away")), "it notices")
            wait_until(lambda: by_activity(newer, older) == [newer, older], "and stands by")
            assert check(stores, server) == head
            head = stores.append([events.product_added(it) for it in range(11, 14)])
            wait_until(lambda: position(newer) == head, "the newer one goes on")
        assert check(stores, server) == head


def _stands_still(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_it_misses_and_doubles_nothing_whatever_dies(stores: Stores, server: NoidaServer, tmp_path: Path) -> None:
    with relays(stores, server, tmp_path, 2) as [one, other]:
        one.wait_until_serving()
        other.wait_until_serving()
        load = Load(stores)
        load.start()
        load.more(200)
        active, standby = wait_until(lambda: by_activity(one, other), "one of them publishes")
        kill(active)
        before = load.head
        wait_until(lambda: position(standby) > before, "the other one goes on", 40)
        active.launch()
        active.wait_until_serving()

        # The broker stands still, for longer than an answer may take.
        pause(server)
        wait_until(lambda: standby.metric("tandem_relay_state", state="AWAY") == 1, "it says that the broker is away")
        load.more(200)
        wait_until(lambda: not standby.serves(), "its health says so too")
        resume(server)
        before = load.head
        wait_until(lambda: max(position(one), position(other)) > before, "one goes on", 40)

        # It is stopped, and comes back with what it had.
        server.stop()
        server.start()
        head = load.stop()
        wait_until(lambda: {position(one), position(other)} == {head}, "all is published", 60)
        assert check(stores, server) == head
