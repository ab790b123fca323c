"""QueryService: answers reads from memcached and the read database, and never from the write store."""
