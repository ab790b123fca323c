"""One file a topic: what is asked of the read database beyond rows by key."""
