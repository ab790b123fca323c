"""`python -m library.command_server [serve | migrate | …]`: takes the commands."""

import sys
from pathlib import Path

from lending.v1.commands_pb2 import DESCRIPTOR, EraseMemberRequest

from library import books, members
from library.events import EVENTS
from tandem.commands.domain import Domain
from tandem.commands.server import CommandServerSettings, build_command_server, command_server_actions
from tandem.runtime.program import main
from tandem.runtime.server import Application

MIGRATIONS = Path(__file__).parent / "migrations/write"


DOMAIN = Domain(
    service=DESCRIPTOR.services_by_name["CommandService"],
    events=EVENTS,
    # In the order in which they are locked.
    loads=(books.BOOKS, members.MEMBERS),
)


def build(settings: CommandServerSettings) -> Application:
    return build_command_server(DOMAIN, MIGRATIONS, settings)


def erasure_of(member_id: str) -> EraseMemberRequest:
    return EraseMemberRequest(member_id=member_id)


ACTIONS = command_server_actions(DOMAIN, MIGRATIONS, erasure_of)

if __name__ == "__main__":
    sys.exit(main("library.command_server", CommandServerSettings, build, ACTIONS, "answer calls until SIGTERM"))
