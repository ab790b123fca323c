"""A query server of a domain: its settings, and what it is made of."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import ClassVar, NamedTuple

from google.protobuf.descriptor import ServiceDescriptor
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from tandem.feed.token_signature import SignedTokenSettings, sign_tokens
from tandem.queries.damage import DamageReports
from tandem.queries.encoding import room_for_rows
from tandem.queries.freshness import Freshness
from tandem.queries.head import Head
from tandem.queries.owners import owner_field, owner_fields
from tandem.queries.pages import ListQuery, Select, lists_of
from tandem.queries.rows import RowQueries, queries_by_id
from tandem.queries.settings import CacheSettings, FreshnessSettings, ReaderSettings, WatchSettings
from tandem.queries.statements import StatementWorker
from tandem.queries.store import ONE_PLAN, Store
from tandem.queries.watch import Watches
from tandem.read_store.tables import CHANNEL
from tandem.runtime.listener import Listener
from tandem.runtime.server import Application, Component, Service
from tandem.runtime.settings import DatabaseSettings, ServerSettings, ServiceSettings
from tandem.runtime.worker import Worker


class QueryServerSettings(ServiceSettings):
    """All settings of a query server: TANDEM_QUERY_… or the section [query]. A domain may have more."""

    model_config = SettingsConfigDict(env_prefix="TANDEM_QUERY_")
    section: ClassVar[str] = "query"

    database: DatabaseSettings = Field(description="The read database")
    primary_database: DatabaseSettings | None = Field(
        None,
        description="The read database's primary, where `database` is a replica of it, a hot standby: what is announced"
        " is heard there, and rows are read at the replica. A role that may read tandem_read.projection is enough",
    )
    feed_database: DatabaseSettings | None = Field(
        None,
        description="The write database, for fully_consistent queries, which are refused without it. Not a replica. A"
        " role that may read tandem_write.feed_head is enough",
    )
    server: ServerSettings = Field(ServerSettings(port=50052), description="The gRPC server")
    tokens: SignedTokenSettings = Field(SignedTokenSettings(), description="The signature of tokens")
    reader: ReaderSettings = Field(ReaderSettings(), description="Reading in batches")
    cache: CacheSettings = Field(CacheSettings(), description="The cache")
    freshness: FreshnessSettings = Field(FreshnessSettings(), description="Announcements and waits")
    watch: WatchSettings = Field(WatchSettings(), description="Streams that follow a row")


class Further(NamedTuple):
    """Queries that are neither by id nor lists. stores: what they read, started before them. workers: by the RPC."""

    stores: Sequence[Component] = ()
    workers: Sequence[Worker] = ()


def build_query_server(
    service: ServiceDescriptor,
    settings: QueryServerSettings,
    *,
    views: Collection[str],
    revision: str,
    cached: Collection[str] = (),
    owners: Mapping[str, str] | None = None,
    lists: Sequence[Select] = (),
    further: Callable[[Store, Freshness], Further] = lambda *_: Further(),
    further_connections: int = 0,
    indexes: Collection[str] = (),
) -> Application:
    """service: whose RPCs are answered. Those for rows by id, and the streams, which follow a row, are read from the
    contract.

    views: all of the domain's, by name. cached: those with entries in the cache. owners: the field that names the
    owner of a row, by view. revision: the domain's migration of the read database that this program needs.
    lists: what selects the rows of each list; its first parameter is typed as the RPC's request.
    further: the domain's other queries. further_connections: how many of the store's they use at once. indexes: of
    views, by name, that are followed as views are.
    """
    sign_tokens(settings.tokens)
    owners, reading = owners or {}, settings.reader
    # One for each thread that reads; for the positions that waiters ask for, watches, readiness, and damaged rows; at a
    # replica for what fills the cache instead of these.
    connections = (1 + len(lists)) * reading.threads + further_connections + 4
    store = Store(settings.database, connections=connections, session=ONE_PLAN)
    head = Head(settings.feed_database)
    primary: Store | None = None
    if settings.primary_database is not None:
        # For what fills the cache, and for damaged rows.
        primary = Store(
            settings.primary_database, connections=2, what="read database's primary", name="tandem-query-primary"
        )
    listener = Listener(settings.primary_database or settings.database, CHANNEL, "tandem-query-listen")
    freshness = Freshness(
        settings.freshness,
        listener,
        store.positions,
        (*views, *indexes),
        head,
        with_cache=settings.cache.enabled,
        on_replica=primary is not None,
    )

    by_id = RowQueries(
        queries_by_id(service, cached, owners), store, freshness, reading, settings.cache, primary=primary
    )
    pages: list[Worker] = [
        StatementWorker(
            ListQuery(service.methods_by_name[rpc], select, store, room_for_rows(settings.server.max_response_bytes)),
            freshness,
            threads=reading.threads,
            max_batch=reading.max_batch,
            max_waiting=reading.max_waiting,
        )
        for rpc, select in lists_of(service, lists).items()
    ]
    others = further(store, freshness)
    statements = [*pages, *others.workers]
    watched = {
        it.name: Watches(
            it, store, freshness, settings.watch, max_batch=reading.max_batch, owner=owner_field(it, owners)
        )
        for it in service.methods
        if it.server_streaming
    }

    async def ready() -> bool:
        return await asyncio.to_thread(lambda: store.has_revision(revision) and store.are_filled(views))

    return Application(
        name="query_server",
        server=settings.server,
        services=(
            Service(
                service,
                workers={**by_id.workers, **{it.name: it for it in statements}},
                streams={rpc: it.answer for rpc, it in watched.items()},
                owner_fields=owner_fields(service, owners, look={*by_id.workers, *watched}),
            ),
        ),
        ready=ready,
        components=(
            store,
            *([primary] if primary is not None else []),
            *others.stores,
            head,
            by_id,
            *statements,
            freshness,
            *watched.values(),
            DamageReports(primary or store),
        ),
    )
