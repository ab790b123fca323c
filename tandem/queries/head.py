"""How far the writes are: the feed's head, for queries that are to include every write before them.

The one thing that is asked of the write store. It is one row, read by a role that need be allowed nothing else.
"""

from collections.abc import Sequence

from sqlalchemy import text

from tandem.feed.table import feed_head
from tandem.queries.freshness import FULLY_CONSISTENT
from tandem.queries.store import Store
