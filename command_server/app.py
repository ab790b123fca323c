"""The command server, wired: read downward and you have seen what it does and every dependency."""

from pathlib import Path

from command_server import customers, orders, products, subscriptions
from command_server.reactions import reactions
from command_server.settings import Settings
from commerce.audit.v1.audit_service_pb2 import DESCRIPTOR as AUDIT
from commerce.command.v1.command_service_pb2 import DESCRIPTOR
from commerce.command.v1.reaction_service_pb2 import DESCRIPTOR as REACTION
from commerce.command.v1.receipt_service_pb2 import DESCRIPTOR as RECEIPTS
from shop.events import EVENTS
from tandem.commands.domain import Domain
from tandem.commands.server import build_command_server
from tandem.runtime.server import Application

MIGRATIONS = Path(__file__).parent / "migrations"

DOMAIN = Domain(
    service=DESCRIPTOR.services_by_name["CommandService"],
    events=EVENTS,
    # Orders first: what they hold tells which customers and products are meant.
    loads=(
        orders.ORDERS,
        orders.LINES,
        subscriptions.SUBSCRIPTIONS,
        customers.CUSTOMERS,
        customers.CUSTOMER_ORDERS,
        products.PRODUCTS,
    ),
    owner_field="customer_id",
)


def build(settings: Settings) -> Application:
    return build_command_server(
        DOMAIN,
        MIGRATIONS,
        settings,
        receipts=RECEIPTS.services_by_name["ReceiptService"],
        audit=AUDIT.services_by_name["AuditService"],
        reaction=REACTION.services_by_name["ReactionService"],
        reactions=reactions(settings),
    )
