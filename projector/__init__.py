"""The projector: follows the feed and keeps the views, in the read database and in the cache."""
