"""The shop as its next release might be: it makes order_details differently, and so the view has version 2.

Importing this makes this process one of that release. Its modules are the services: `python -m` with their names.
"""

import runpy
from dataclasses import replace

from commerce.event.v1.event_pb2 import OrderPlaced
from commerce.query.v1.views_pb2 import OrderDetails
from shop import views
from tandem.read_store.tables import metadata, view_table

VERSION_2 = "order_details_v2"

metadata.remove(views.order_details)
views.order_details = view_table("order_details", version=2)
views.VIEWS = {it.name: it for it in ({**views.VIEWS, "order_details": views.order_details}).values()}
views.CACHED_VIEWS = views.CACHED_VIEWS - {"order_details"} | {VERSION_2}

from projector import order_details  # noqa: E402 - it is to see the table of version 2


def placed(view: OrderDetails | None, event: OrderPlaced) -> OrderDetails:
    """What the release changes."""
    made = order_details.placed(view, event)
    made.customer_name = made.customer_name.upper()
    return made


order_details.PROJECTION = replace(
    order_details.PROJECTION, rules={**order_details.PROJECTION.rules, "order_placed": placed}
)


def run(service: str) -> None:
    runpy.run_module(service, run_name="__main__", alter_sys=True)
