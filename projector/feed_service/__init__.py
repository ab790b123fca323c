"""FeedService: other services follow the events. It reads the write database and knows nothing of views.

Callers that are at the head are served from memory (live, ring), which one thread fills for all of them (tail); those
that are behind read the database (history). What they are sent is the same (entry, batch).
"""
