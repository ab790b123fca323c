"""The projector: the shop's views, and what it takes to keep them."""

from pathlib import Path

from commerce.audit.v1.audit_service_pb2 import DESCRIPTOR as AUDIT
from commerce.feed.v1.feed_service_pb2 import DESCRIPTOR as FEED
from commerce.projection.v1.projection_service_pb2 import DESCRIPTOR as PROJECTION
from projector.settings import Settings
from shop import views
from shop.events import EVENTS
from tandem.feed.archive import Archive
from tandem.feed.service import FeedService
from tandem.feed.source import Feed
from tandem.feed.token_signature import sign_tokens
from tandem.feed.verification import AuditService
from tandem.projection.audit import Auditor
from tandem.projection.cache_writer import CacheWriter
from tandem.projection.explaining import Explaining
from tandem.projection.following import Following, table_feed
from tandem.projection.repair import Repairs
from tandem.projection.service import ProjectionService
from tandem.projection.views import Views, projections_of
from tandem.relay.stream_feed import StreamFeed
from tandem.runtime.server import Application

MIGRATIONS = Path(__file__).parent / "migrations"

# Each in the module that is called as the view is.
VIEWS = Views(EVENTS, projections_of("projector", views.VIEWS), cached=views.CACHED_VIEWS)


def _feed(settings: Settings, archive: Archive) -> Feed:
    """What the views follow."""
    if settings.broker is None:
        return table_feed(settings.feed_database, EVENTS, settings.follow, archive)
    return StreamFeed(settings.broker, EVENTS, name="tandem-projector", poll_seconds=settings.follow.poll_seconds)


def build(settings: Settings) -> Application:
    sign_tokens(settings.tokens)
    archive = Archive(settings.archive.folder)
    following = Following(
        VIEWS,
        feed=_feed(settings, archive),
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
        revision=views.REVISION,
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
