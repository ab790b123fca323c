"""What a projector's process does: it serves, or does one thing of its read database."""

from projector.app import MIGRATIONS, build
from projector.settings import Settings
from tandem.projection.server import projector_actions, run_projector

ACTIONS = projector_actions(MIGRATIONS)


def run() -> int:
    return run_projector("projector", Settings, build, ACTIONS)
