"""The sink that the settings choose."""

from google.protobuf.message import Message

from tandem.relay.jetstream import JetStreamSink
from tandem.relay.settings import EventBridgeSettings, KafkaSettings, NatsSettings, RelaySettings
from tandem.relay.sink import Sink
from tandem.runtime.settings import SettingsError


def sink_of(
    settings: RelaySettings,
    name: str,
    event: type[Message],
    *,
    nats: NatsSettings | None,
    kafka: KafkaSettings | None,
    eventbridge: EventBridgeSettings | None,
) -> Sink:
    """Of the one broker that is there. name: of this relay, another one than all others' have. event: the message that
    the domain's events are.

    Raises SettingsError where the broker's package is not installed, or a file of the settings cannot be used.
    """
    first, personal_data = settings.first_position, settings.personal_data
    if nats is not None:
        return JetStreamSink(nats, relay=name, first_position=first, personal_data=personal_data)
    if kafka is not None:
        try:
            from tandem.relay.kafka import KafkaSink  # noqa: PLC0415 - its package is in an extra
        except ModuleNotFoundError as error:
            raise SettingsError(f"kafka: {error.name} is missing: pip install 'tandem-cqrs[kafka]'") from error
        return KafkaSink(kafka, relay=name, first_position=first, personal_data=personal_data)
    assert eventbridge is not None
    try:
        from tandem.relay.eventbridge import EventBridgeSink  # noqa: PLC0415 - the same
    except ModuleNotFoundError as error:
        raise SettingsError(f"eventbridge: {error.name} is missing: pip install 'tandem-cqrs[eventbridge]'") from error
    return EventBridgeSink(
        eventbridge,
        event,
        relay=name,
        source=settings.source,
        first_position=first,
        personal_data=personal_data,
    )
