"""The client library: the generated stubs, with retries, sessions that see their own writes, and typed errors.

`sync` is for threads and `aio` for asyncio. A domain's client is a few lines over them: `session` says how. Lists are
iterators with `paging`, streams go on with `streams`, pages show changes early with `optimistic`.

It knows no domain. What it needs of a contract are names of fields: a command's request has `request_id` and its
response a `receipt` (`consistency_token`, `position`, `replayed`); a query's request has `consistency` and its response
`as_of`; lists and streams have the fields that `paging` and `streams` name. Nothing that needs a database or a server
belongs here; other services import this, and Tandem's own do not.
"""
