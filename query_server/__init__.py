"""QueryService: answers reads from the cache and the read database, and never from the write store."""
