"""The projector: the shop's views, and what it takes to keep them."""

from pathlib import Path

from commerce.audit.v1.audit_service_pb2 import DESCRIPTOR as AUDIT
from commerce.feed.v1.feed_service_pb2 import DESCRIPTOR as FEED
from commerce.projection.v1.projection_service_pb2 import DESCRIPTOR as PROJECTION
from projector.settings import Settings
from shop import views
from shop.events import EVENTS
from shop.product_index import PRODUCT_INDEX
from tandem.projection.server import build_projector
from tandem.projection.views import Views, projections_of
from tandem.runtime.server import Application

MIGRATIONS = Path(__file__).parent / "migrations"

# Each in the module that is called as the view is.
VIEWS = Views(EVENTS, projections_of("projector", views.VIEWS), cached=views.CACHED_VIEWS)


def build(settings: Settings) -> Application:
    return build_projector(
        VIEWS,
        settings,
        revision=views.REVISION,
        projections=PROJECTION.services_by_name["ProjectionService"],
        audit=AUDIT.services_by_name["AuditService"],
        feed=FEED.services_by_name["FeedService"],
        erased_kind="customer_erased",
        indexes=(PRODUCT_INDEX,),
    )
