"""The arrow from projector to query_server: the views' tables, cache keys and entries, the fence, the announcement.

Only projector writes here (and query_server into the cache, under a lease); projector's migrations make the tables.
"""
