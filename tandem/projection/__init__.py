"""Projections: the feed's events become the rows of views, each event once."""
