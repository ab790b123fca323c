"""The relay, wired: it reads the feed's table, publishes to a broker, and answers for its health."""

import os
import socket

from relay.settings import Settings
from shop.events import EVENTS
from tandem.feed.archive import Archive
from tandem.feed.source import FeedSource
from tandem.relay.cloud_events import CloudEvents
from tandem.relay.relaying import Relay
from tandem.relay.sinks import sink_of
from tandem.runtime.server import Application


def build(settings: Settings) -> Application:
    # Another one than every other relay has, also than the one that was here before.
    name = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}"
    source = FeedSource(
        settings.feed_database,
        EVENTS,
        name="tandem-relay",
        poll_seconds=settings.relay.poll_seconds,
        archive=Archive(settings.archive.folder),
    )
    events = CloudEvents(EVENTS, settings.relay.source, opened=settings.relay.personal_data == "opened")
    sink = sink_of(
        settings.relay,
        name,
        EVENTS.message,
        nats=settings.nats,
        kafka=settings.kafka,
        eventbridge=settings.eventbridge,
    )
    relay = Relay(source, events, sink, settings.relay, name)
    return Application(name="relay", server=settings.server, services=(), ready=relay.is_ready, components=(relay,))
