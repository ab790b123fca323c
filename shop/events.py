"""The shop's events, as the engine's feed needs to know them."""

from commerce.event.v1.event_pb2 import Event
from tandem.feed.events import EventContract

EVENTS = EventContract(Event, subject_field="customer_id")
"""A customer is the data subject of the personal data in an event."""
