"""The projector: the shop's views, and what it takes to keep them."""

from pathlib import Path

from commerce.audit.v1.audit_service_pb2 import DESCRIPTOR as AUDIT
from commerce.feed.v1.feed_service_pb2 import DESCRIPTOR as FEED
from commerce.projection.v1.projection_service_pb2 import DESCRIPTOR as PROJECTION
from projector import (
    customer_profile,
    order_details,
    order_summary,
    product_card,
    product_search,
    sales_summary,
    subscription_details,
)
from projector.settings import Settings
from shop.events import EVENTS
from shop.views import CACHED_VIEWS, REVISION
from tandem.projection.server import build_projector
from tandem.projection.views import Views
from tandem.runtime.server import Application

MIGRATIONS = Path(__file__).parent / "migrations"

VIEWS = Views(
    EVENTS,
    [
        order_details.PROJECTION,
        order_summary.PROJECTION,
        product_card.PROJECTION,
        product_search.PRODUCT_SEARCH,
        product_search.SEARCH_WORD,
        customer_profile.PROJECTION,
        subscription_details.PROJECTION,
        sales_summary.PROJECTION,
    ],
    cached=CACHED_VIEWS,
)


def build(settings: Settings) -> Application:
    return build_projector(
        VIEWS,
        settings,
        revision=REVISION,
        projections=PROJECTION.services_by_name["ProjectionService"],
        audit=AUDIT.services_by_name["AuditService"],
        feed=FEED.services_by_name["FeedService"],
        erased_kind="customer_erased",
    )
