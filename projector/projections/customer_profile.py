"""CustomerProfile: a customer as known now."""

from commerce.event.v1 import event_pb2 as events
from commerce.query.v1.views_pb2 import CustomerProfile
from projector.projections.shape import Projection, present


def registered(_view: CustomerProfile | None, event: events.CustomerRegistered) -> CustomerProfile:
    personal = event.personal
    return CustomerProfile(
        customer_id=event.customer_id,
        name=personal.name,
        email=personal.email,
        phone=personal.phone,
        address=personal.address if personal.HasField("address") else None,
        registered_at=event.registered_at,
        version=event.version,
    )


def address_updated(view: CustomerProfile | None, event: events.AddressUpdated) -> CustomerProfile:
    changed: CustomerProfile = present(view, event)
    changed.address.CopyFrom(event.personal.address)
    changed.version = event.version
    return changed


PROJECTION = Projection(
    view="customer_profile",
    message=CustomerProfile,
    key_field="customer_id",
    rules={"customer_registered": registered, "address_updated": address_updated},
    keys={},
)
