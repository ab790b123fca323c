"""The engine's contract, which every domain has, and the shop's, which is older, are one in two packages."""

from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from commerce.audit.v1 import audit_service_pb2 as audit
from commerce.command.v1 import reaction_service_pb2 as reactions
from commerce.command.v1 import receipt_service_pb2 as receipts
from commerce.projection.v1 import projection_service_pb2 as projections
from commerce.type.v1 import consistency_pb2 as consistency
from commerce.type.v1 import receipt_pb2 as receipt
from tandem.services.v1 import audit_service_pb2, projection_service_pb2, reaction_service_pb2, receipt_service_pb2
from tandem.type.v1 import consistency_pb2, receipt_pb2


def shape(module: Any) -> str:
    """All that a file says, but for its package, its imports, and what it takes from another package."""
    file = FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(file)
    package, file.name = f".{file.package}.", ""
    file.ClearField("package")
    file.ClearField("dependency")
    # The domain's event is an Any in the engine's, and comes with the envelope that the shop has elsewhere.
    for message in list(file.message_type):
        if message.name == "EventEnvelope":
            file.message_type.remove(message)
        for field in message.field:
            if (message.name, field.name) in {("RecordedEvent", "event"), ("RecordedEvent", "envelope")}:
                field.ClearField("type_name")
    return str(file).replace(package, ".").replace(".commerce.", ".").replace(".tandem.", ".")


@pytest.mark.parametrize(
    ("engines", "shops"),
    [
        (audit_service_pb2, audit),
        (receipt_service_pb2, receipts),
        (projection_service_pb2, projections),
        (reaction_service_pb2, reactions),
        (consistency_pb2, consistency),
        (receipt_pb2, receipt),
    ],
)
def test_the_engines_contract_says_what_the_shops_says(engines: Any, shops: Any) -> None:
    assert shape(engines) == shape(shops), "change both in proto/tandem and proto/commerce"
