"""The projector's settings."""

from shop.views import VIEWS
from tandem.projection.server import ProjectorSettings


class Settings(ProjectorSettings):
    """All settings of the projector: TANDEM_PROJECTOR_… or the section [projector]."""

    views = VIEWS
