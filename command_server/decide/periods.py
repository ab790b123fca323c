"""Calendar arithmetic of subscriptions, in UTC."""

import calendar
from datetime import datetime


def months_later(moment: datetime, months: int, anchor_day: int) -> datetime:
    """The same time of day `months` months later, on `anchor_day` or on the month's last day where it is shorter.

    anchor_day: the day of the month on which the subscription was started, so that a short month shortens no later one.

    >>> months_later(datetime(2026, 1, 31), 1, anchor_day=31)
    datetime.datetime(2026, 2, 28, 0, 0)
    >>> months_later(datetime(2026, 2, 28), 1, anchor_day=31)
    datetime.datetime(2026, 3, 31, 0, 0)
    """
    years, month = divmod(moment.month - 1 + months, 12)
    year, month = moment.year + years, month + 1
    return moment.replace(year=year, month=month, day=min(anchor_day, calendar.monthrange(year, month)[1]))
