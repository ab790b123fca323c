"""For the tests of a domain that is built on the engine: docs/testing.md says how, with examples.

`rules`: given what happened, when a command comes, then these events, or this refusal. `views`: a view after events.
`golden`: stored events that every later version must read. `scripted`: a service that answers as a test says.
`stack`: the three services as processes, with their stores; it needs the extra `testing`.
"""
