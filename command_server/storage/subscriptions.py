"""Which subscriptions have come to their end."""

import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Connection, text

from command_server.storage.tables import subscription
from commerce.type.v1.subscription_status_pb2 import SubscriptionStatus


class Due(NamedTuple):
    """A subscription that is to be ended, as it is."""

    subscription_id: uuid.UUID
    version: int


# Each half is a walk down the partial index subscription_due.
FIND_DUE = text(f"""
(SELECT id, version FROM {subscription.fullname}
 WHERE status = {SubscriptionStatus.SUBSCRIPTION_STATUS_CANCELING:d} AND period_end <= :now
 ORDER BY period_end LIMIT :most)
UNION ALL
(SELECT id, version FROM {subscription.fullname}
 WHERE status = {SubscriptionStatus.SUBSCRIPTION_STATUS_ACTIVE:d} AND period_end <= :before
 ORDER BY period_end LIMIT :most)
LIMIT :most
""")  # noqa: S608 - only the table's name and numbers of the contract are put in


def find_due(connection: Connection, now: datetime, grace: timedelta, most: int) -> Sequence[Due]:
    """At most `most` subscriptions that are to be ended: cancelled ones with their period, others `grace` later."""
    rows = connection.execute(FIND_DUE, {"now": now, "before": now - grace, "most": most})
    return [Due(row.id, row.version) for row in rows]
