"""`python -m projector [serve | migrate | blockers | end-session PID]`"""

import sys

from projector.app import MIGRATIONS, build
from projector.settings import Settings
from tandem.projection.server import projector_actions, run_projector

ACTIONS = projector_actions(MIGRATIONS)

if __name__ == "__main__":
    sys.exit(run_projector("projector", Settings, build, ACTIONS))
