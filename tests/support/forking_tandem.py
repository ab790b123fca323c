"""`tandem` with services that are forked: `python -m tests.support.forking_tandem up …`.

What it starts would import all of it five times over: that is 6 of the 8 s of processor time of a start.
"""

from shop.cli import app
from tandem.cli import local_stack
from tests.support.forking import ForkedService

if __name__ == "__main__":
    local_stack.Service = ForkedService  # type: ignore[attr-defined]
    app()
