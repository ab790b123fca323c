"""What a command server's process does: it serves, or does one thing of its write database."""

from command_server.app import DOMAIN, MIGRATIONS, build
from command_server.settings import Settings
from commerce.command.v1.command_service_pb2 import EraseCustomerRequest
from tandem.commands.server import command_server_actions
from tandem.runtime.program import main


def _erasure_of(subject_id: str) -> EraseCustomerRequest:
    return EraseCustomerRequest(customer_id=subject_id)


ACTIONS = command_server_actions(DOMAIN, MIGRATIONS, _erasure_of)


def run() -> int:
    return main("command_server", Settings, build, ACTIONS, "answer calls until SIGTERM")
