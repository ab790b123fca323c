"""What is done because of events: commands, at once or when their time has come, and webhooks.

`reaction` is what a domain describes, pure; `following` reads the feed and writes down what is to be done; `doing` and
`webhooks` do it; `tasks` is what is written down, in the write database. See docs/reactions.md and ADR 71.
"""
