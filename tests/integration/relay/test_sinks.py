"""What every broker's consumers are promised: all events of the feed, in order for each aggregate, each once; and what
a relay does where another one was before.

Kafka's protocol is spoken by an emulator here, noida-db, and EventBridge is one too, moto's server: neither has been
run on Apache Kafka or on AWS yet. EventBridge hands on at least once and in no order: there a consumer dedupes by id.
"""

from collections.abc import Iterator

import pytest
from confluent_kafka import KafkaException
from nats.js.errors import NotFoundError

from commerce.event.v1.event_pb2 import Event
from tandem.internal.v1.stored_pb2 import Envelope
from tandem.relay.relaying import State
from tandem.testing.stack import until
from tests.integration.projector.conftest import Stores
from tests.integration.relay.conftest import Relays
from tests.support import events
from tests.support.brokers import Broker, EventBridge, JetStream, KafkaBroker
from tests.support.builders import identity
from tests.support.kafka import noida
from tests.support.metrics import sample

_PUBLISHED_AGAIN = "tandem_relay_published_again_events_total"


@pytest.fixture(scope="module", params=["jetstream", "kafka-emulator", "eventbridge-emulator"])
def broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    if request.param == "jetstream":
        yield JetStream(request.getfixturevalue("servers"))
        return
    if request.param == "eventbridge-emulator":
        request.getfixturevalue("aws")
        yield EventBridge()
        return
    with noida(tmp_path_factory.mktemp("kafka")) as server:
        yield KafkaBroker(server.address)


@pytest.fixture
def its(stores: Stores, broker: Broker) -> Relays:
    return Relays(stores, broker)


def history(first: int, last: int) -> list[Event]:
    return [events.customer_registered(number) for number in range(first, last + 1)]


async def test_an_event_is_a_cloud_event_and_those_of_one_aggregate_are_in_order(stores: Stores, its: Relays) -> None:
    envelope = Envelope(actor='é "1"', request_id="r-1", correlation_id="50 %", traceparent="00-1")
    stores.append([events.product_added(1)], envelope)
    stores.append(history(1, 20))
    for _ in range(3):
        stores.append([events.customer_renamed(number) for number in range(20, 0, -1)])
    async with its.running(relay := its.new(batch_size=9)):
        await its.reached(relay, 81)
    found = await its.delivered()
    assert [it.position for it in found] == list(range(1, 82))
    assert {it.key for it in found[1:]} == {identity("customer", number) for number in range(1, 21)}
    stored = stores.events()[0]
    first = dict(found[0].attributes)
    # How a binding has it is its own.
    first.pop("datacontenttype", None)
    assert first == {
        "specversion": "1.0",
        "id": f"1-{stored.mark:x}",
        "source": "/shop",
        "type": "commerce.event.v1.ProductAdded",
        "subject": found[0].key,
        "partitionkey": found[0].key,
        "time": "1970-01-01T00:00:00Z",
        "dataschema": "urn:protobuf:commerce.event.v1.Event",
        "sequence": "00000000000000000001",
        "tandemversion": "1",
        "tandemmark": str(stored.mark),
        "tandemactor": 'é "1"',
        "tandemrequest": "r-1",
        "tandemcorrelation": "50 %",
        "traceparent": "00-1",
    }
    assert Event.FromString(found[0].data).product_added.product_id == identity("product", 1)
    # Stored in version 1, published in the newest; what is personal stays sealed.
    registered = Event.FromString(found[1].data).customer_registered
    assert registered.HasField("registered_at")
    assert registered.personal.sealed
    assert not registered.personal.name


async def test_personal_data_is_opened_where_it_may_be_and_gone_from_what_is_made_after_an_erasure(
    stores: Stores, its: Relays
) -> None:
    stores.append(history(1, 2))
    async with its.running(opened := its.new(personal_data="opened")):
        await its.reached(opened, 2)
    found = [Event.FromString(it.data).customer_registered for it in await its.delivered()]
    assert [it.personal.name for it in found] == ["Customer 1", "Customer 2"]

    # The setting is that of all that is there: another one is not mixed into it.
    async with its.running(sealed := its.new("two")):
        await its.says(sealed, State.REFUSED, "is for personal data opened, and the setting is sealed")
        assert not await sealed.is_ready()

    # Deleted, and filled anew by a relay that runs.
    stores.run(
        f"UPDATE tandem_write.subject_key SET key = NULL WHERE subject_id = '{identity('customer', 1)}'", "write"
    )
    async with its.running(opened := its.new("three", personal_data="opened")):
        await its.reached(opened, stores.append([events.customer_renamed(2)]))
        before = sample(_PUBLISHED_AGAIN) or 0
        await its.delete()

        async def filled_anew() -> bool:
            try:
                return [it.position for it in await its.delivered()] == [1, 2, 3]
            except (AssertionError, KafkaException, NotFoundError):
                # It is not there yet.
                return False

        await until(filled_anew, "all is there again")
        assert sample(_PUBLISHED_AGAIN) == before + 3
    found = [Event.FromString(it.data).customer_registered for it in (await its.delivered())[:2]]
    assert [(it.HasField("personal"), it.personal.name) for it in found] == [(False, ""), (True, "Customer 2")]

    # Deleted, and filled with the other setting.
    async with its.running(sealed := its.new("four")):
        await its.says(sealed, State.REFUSED, "is for personal data opened, and the setting is sealed")
        await its.delete()
        await its.reached(sealed, 3)
    found = [Event.FromString(it.data).customer_registered for it in (await its.delivered())[:2]]
    assert all(it.personal.sealed and not it.personal.name for it in found)


async def test_it_goes_on_where_the_broker_is_and_one_that_stands_by_takes_over(stores: Stores, its: Relays) -> None:
    head = stores.append(history(1, 50))
    async with its.running(one := its.new("one", batch_size=7)):
        await its.reached(one, head)
    # Another one stands by, also behind one that is moved on.
    async with its.running(two := its.new("two", takeover_seconds=1.5)):
        async with its.running(one := its.new("one")):
            head = stores.append(history(51, 60))
            await its.reached(one, head)
            assert (one.state, two.state) == (State.ACTIVE, State.STANDBY)
            assert await two.is_ready()
        head = stores.append(history(61, 70))
        await its.reached(two, head)
        assert two.state is State.ACTIVE
    assert [it.position for it in await its.delivered()] == list(range(1, 71))


async def test_of_many_that_begin_at_once_none_doubles_an_event_and_one_goes_on(stores: Stores, its: Relays) -> None:
    all_of_them = [its.new(f"relay {number}", takeover_seconds=1) for number in range(4)]
    async with its.running(*all_of_them):
        for number in range(20):
            head = stores.append(history(10 * number + 1, 10 * number + 10))
        for it in all_of_them:
            await its.reached(it, head)

        async def one_publishes() -> bool:
            return sorted(it.state.value for it in all_of_them) == ["ACTIVE", "STANDBY", "STANDBY", "STANDBY"]

        await until(one_publishes, "one publishes, and the others stand by")
    assert [it.position for it in await its.delivered()] == list(range(1, head + 1))


async def test_a_new_epoch_begins_anew_beside_the_one_before(stores: Stores, its: Relays) -> None:
    head = stores.append(history(1, 20))
    async with its.running(relay := its.new()):
        await its.reached(relay, head)
        before, first = its.epoch, [it.id for it in await its.delivered()]
        # A failover that lost the last five, and others came instead.
        stores.run("DELETE FROM tandem_write.event WHERE position > 15", "write")
        stores.run("UPDATE tandem_write.feed_head SET position = 15", "write")
        stores.append(history(31, 36))
        await its.says(relay, State.REFUSED, "is not the one that was read there")
        assert its.epoch == before
        assert [it.id for it in await its.delivered()] == first
        stores.new_feed_epoch()
        await its.reached(relay, 21)
        assert its.epoch != before
        second = [it.id for it in await its.delivered()]
    # Who dedupes by id sees what both histories have once, and what replaced the lost events.
    assert second[:15] == first[:15]
    assert not set(second[15:]) & set(first)


async def test_what_is_filled_may_begin_later(stores: Stores, its: Relays) -> None:
    stores.append(history(1, 10))
    async with its.running(relay := its.new(first_position=8)):
        await its.reached(relay, 10)
    assert [it.position for it in await its.delivered()] == [8, 9, 10]
