"""`tandem` with services that are forked: `python -m tests.support.forking_tandem up …`.

What it starts would import all of it five times over: that is 6 of the 8 s of processor time of a start. It is forked
itself where `Up` does that, and forks what forks its services then.
"""

import sys

from shop.cli import app
from tandem.cli import local_stack
from tests.support.forking import ForkedService, fork_a_forker

if __name__ == "__main__":
    local_stack.Service = ForkedService  # type: ignore[attr-defined]
    # Where it was not forked, nobody has imported the services yet.
    if "command_server.app" not in sys.modules or fork_a_forker():
        app()
