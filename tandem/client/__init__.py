"""The client library: the generated stubs, with retries, sessions that see their own writes, and typed errors.

`sync` is for threads and `aio` for asyncio; both use `errors`, `paging`, `streams` and `optimistic`. Other services
import this; Tandem's own services do not. It knows the contract and, of the rest of Tandem, how a token is written.
Nothing that needs a database or a server belongs here.
"""
