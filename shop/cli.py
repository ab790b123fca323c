"""The `tandem` command, for the shop."""

from commerce.audit.v1 import audit_service_pb2
from commerce.command.v1.command_service_pb2_grpc import CommandServiceStub
from commerce.projection.v1 import projection_service_pb2
from shop import examples, sample
from tandem.cli.main import application
from tandem.cli.up import Domain

SHOP = Domain(
    modules={"command": "command_server", "query": "query_server", "projector": "projector"},
    projections=projection_service_pb2.DESCRIPTOR.services_by_name["ProjectionService"],
    audit=audit_service_pb2.DESCRIPTOR.services_by_name["AuditService"],
    commands=CommandServiceStub,
    sample=sample.generate,
    examples=examples.lines,
)

app = application(SHOP)
