"""The library's events, as the feed needs to know them."""

from lending.v1.events_pb2 import Event

from tandem.feed.events import EventContract

EVENTS = EventContract(Event, subject_field="member_id")
"""A member is the data subject of the personal data in an event."""
