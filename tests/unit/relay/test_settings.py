"""A relay publishes to one broker, and says so before anything starts."""

import pytest
from pydantic import ValidationError

from relay.settings import Settings
from tandem.relay.settings import KafkaSettings, NatsSettings
from tandem.runtime.settings import DatabaseSettings

FEED = DatabaseSettings(url="postgresql://db/tandem")


def test_one_broker_must_be_named() -> None:
    with pytest.raises(ValidationError, match="NATS__SERVERS, KAFKA__SERVERS"):
        Settings(feed_database=FEED)


def test_and_no_more_than_one() -> None:
    with pytest.raises(ValidationError, match="nats and kafka are set"):
        Settings(feed_database=FEED, nats=NatsSettings(), kafka=KafkaSettings())


@pytest.mark.parametrize(
    ("ack", "transaction", "said"),
    [
        (5, 4, "ACK_SECONDS, 5 s, must not be more than TRANSACTION_SECONDS, 4 s"),
        (0.1, 0.9, "greater than or equal to 1"),
        (0.0009, 10, "greater than or equal to 0.1"),
    ],
)
def test_times_that_kafkas_client_does_not_take_are_refused(ack: float, transaction: float, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        KafkaSettings(ack_seconds=ack, transaction_seconds=transaction)


def test_either_will_do() -> None:
    assert Settings(feed_database=FEED, nats=NatsSettings()).kafka is None
    assert Settings(feed_database=FEED, kafka=KafkaSettings()).nats is None
