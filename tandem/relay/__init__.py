"""The arrow from the feed to a message broker: every event, in order, once. `relaying` is the program's heart; a `sink`
is a broker as it sees it, `jetstream` one of them; `cloud_events` is what an event looks like there.
"""
