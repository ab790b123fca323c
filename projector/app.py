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
from tandem.feed.archive import Archive
from tandem.feed.service import FeedService
from tandem.feed.token_signature import sign_tokens
from tandem.feed.verification import AuditService
from tandem.projection.audit import Auditor
from tandem.projection.cache_writer import CacheWriter
from tandem.projection.explaining import Explaining
from tandem.projection.following import Following
from tandem.projection.repair import Repairs
from tandem.projection.service import ProjectionService
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
    sign_tokens(settings.tokens)
    archive = Archive(settings.archive.folder)
    following = Following(
        VIEWS,
        feed_database=settings.feed_database,
        read_database=settings.read_database,
        cache=CacheWriter(settings.cache_nodes, settings.cache),
        follow=settings.follow,
        change_log=settings.change_log,
        archive=archive,
    )
    service = PROJECTION.services_by_name["ProjectionService"]
    explaining = Explaining(
        service,
        VIEWS,
        following.progress,
        following.cache,
        feed_database=settings.feed_database,
        read_database=settings.read_database,
        archive=archive,
    )
    repairs = Repairs(following, feed_database=settings.feed_database, read_database=settings.read_database)
    auditor = Auditor(
        following,
        settings.audit,
        feed_database=settings.feed_database,
        read_database=settings.read_database,
        cache_nodes=settings.cache_nodes,
        cache=settings.cache,
    )
    audit = AuditService(AUDIT.services_by_name["AuditService"], dict.fromkeys(VIEWS.projections, auditor.verify))
    projections = ProjectionService(
        service,
        following.progress,
        feed_database=settings.feed_database,
        read_database=settings.read_database,
        archive=archive,
        explaining=explaining,
        revision=REVISION,
    )
    feed = FeedService(
        FEED.services_by_name["FeedService"],
        EVENTS,
        settings.feed_database,
        settings.feed_service,
        erased_kind="customer_erased",
        poll_seconds=settings.follow.poll_seconds,
        archive=archive,
    )
    return Application(
        name="projector",
        server=settings.server,
        services=(projections.service, feed.service, audit.service),
        ready=projections.is_ready,
        components=(explaining, projections, following, repairs, auditor, feed),
        # Those of the batches that are under way while it catches up, and no cycles among them.
        new_objects=200_000,
    )
