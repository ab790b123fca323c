"""The query server cannot see the projector's migrations, so it is told which one it needs."""

from projector.app import MIGRATIONS
from shop.views import REVISION
from tandem.runtime.database import newest_revision


def test_readers_need_the_projectors_newest_migration() -> None:
    assert newest_revision(MIGRATIONS) == REVISION
