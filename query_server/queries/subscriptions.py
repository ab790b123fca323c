"""Lists of subscriptions, newest first."""

import uuid
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import text

from query_server.database import Page, ReadDatabase, Row
from query_server.page_token import Cursor
from tandem.feed.token import Token
from tandem.read_store.tables import projection, subscription_details


class SubscriptionsKey(NamedTuple):
    """A page: at most `limit` rows that follow `after`. customer_id: None for all; statuses: empty for any."""

    customer_id: uuid.UUID | None
    statuses: tuple[int, ...]
    after: Cursor
    limit: int


def _statement(rows: str) -> str:
    return f"""
    SELECT p.feed_epoch, p.position, s.value, s.started_at, s.started_position
    FROM {projection.fullname} AS p
    LEFT JOIN ({rows} ORDER BY started_at DESC, started_position DESC LIMIT :most) AS s ON true
    WHERE p.view = '{subscription_details.name}'
    ORDER BY s.started_at DESC, s.started_position DESC
    """  # noqa: S608 - only the tables' names are put in


_COLUMNS = "s.value, s.started_at, s.started_position"
_AFTER = "(s.started_at, s.started_position) < (:at, :position)"

# A customer has few subscriptions: a walk down the customer's part of one index, whatever the statuses.
_OF_CUSTOMER = text(
    _statement(
        f"SELECT {_COLUMNS} FROM {subscription_details.fullname} AS s"  # noqa: S608
        f" WHERE s.customer_id = :customer AND (:any OR s.status = ANY(:statuses)) AND {_AFTER}"
    )
)
# Of a status there may be a great many: for each one as many as a page needs, from the other index.
_OF_STATUSES = text(
    _statement(
        "SELECT s.* FROM unnest(CAST(:statuses AS smallint[])) AS w (status) CROSS JOIN LATERAL ("  # noqa: S608
        f"SELECT {_COLUMNS} FROM {subscription_details.fullname} AS s WHERE s.status = w.status AND {_AFTER}"
        " ORDER BY s.started_at DESC, s.started_position DESC LIMIT :most) AS s"
    )
)


def list_subscriptions(database: ReadDatabase, pages: Sequence[SubscriptionsKey]) -> dict[SubscriptionsKey, Page]:
    """The rows of each page, and the view's position. Raises Unavailable."""
    return {page: _page(database, page) for page in pages}


def _page(database: ReadDatabase, page: SubscriptionsKey) -> Page:
    arguments: dict[str, object] = {
        "statuses": list(page.statuses),
        "at": page.after.at,
        "position": page.after.position,
        "most": page.limit,
    }
    if page.customer_id is not None:
        arguments |= {"customer": page.customer_id, "any": not page.statuses}
    statement = _OF_STATUSES if page.customer_id is None else _OF_CUSTOMER
    found = database.execute(subscription_details.name, statement, arguments)
    rows = [Row(bytes(it.value), Cursor(it.started_at, it.started_position)) for it in found if it.value is not None]
    return Page(rows, Token(found[0].feed_epoch, found[0].position))
