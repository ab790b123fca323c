"""Publishes the shop's events to a message broker. See `app.build`."""
