"""`python -m library.projector [serve | migrate | …]`: keeps the views."""

import sys

from library import views
from library.events import EVENTS
from library.projections import PROJECTIONS
from tandem.projection.server import ProjectorSettings, build_projector, projector_actions, run_projector
from tandem.projection.views import Views
from tandem.runtime.server import Application

VIEWS = Views(EVENTS, PROJECTIONS, cached=views.CACHED_VIEWS)


class Settings(ProjectorSettings):
    views = views.VIEWS


def build(settings: Settings) -> Application:
    return build_projector(VIEWS, settings, revision=views.REVISION)


ACTIONS = projector_actions(views.MIGRATIONS)

if __name__ == "__main__":
    sys.exit(run_projector("library.projector", Settings, build, ACTIONS))
