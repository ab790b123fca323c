"""The `tandem` command, for the shop."""

from pathlib import Path

from commerce.audit.v1 import audit_service_pb2
from commerce.command.v1 import reaction_service_pb2, receipt_service_pb2
from commerce.command.v1.command_service_pb2_grpc import CommandServiceStub
from commerce.event.v1 import event_pb2
from commerce.projection.v1 import projection_service_pb2
from commerce.query.v1 import views_pb2
from commerce.query.v1.query_service_pb2_grpc import QueryServiceStub
from shop import examples, importing, sample
from tandem.cli.domain import Domain
from tandem.cli.main import application

ENVOY = Path(__file__).with_name("envoy.yaml")

SHOP = Domain(
    modules={"command": "command_server", "query": "query_server", "projector": "projector", "relay": "relay"},
    projections=projection_service_pb2.DESCRIPTOR.services_by_name["ProjectionService"],
    receipts=receipt_service_pb2.DESCRIPTOR.services_by_name["ReceiptService"],
    reactions=reaction_service_pb2.DESCRIPTOR.services_by_name["ReactionService"],
    histories={
        "order": "order_details",
        "customer": "customer_profile",
        "product": "product_card",
        "subscription": "subscription_details",
    },
    messages=(views_pb2.DESCRIPTOR, event_pb2.DESCRIPTOR),
    audit=audit_service_pb2.DESCRIPTOR.services_by_name["AuditService"],
    mesh=ENVOY,
    pages=Path(__file__).with_name("pages"),
    commands=CommandServiceStub,
    queries=QueryServiceStub,
    tables=importing.TABLES,
    sample=sample.generate,
    examples=examples.lines,
)

app = application(SHOP)
