"""CustomerProfile: a customer as known now."""

from collections.abc import Sequence

from commerce.event.v1 import event_pb2 as events
from commerce.query.v1.views_pb2 import CustomerProfile
from commerce.type.v1.address_pb2 import NamedAddress
from shop import views
from tandem.projection.projection import Projection

# Events from before addresses had names are about the one address that there was.
_UNNAMED = "main"


def registered(_view: CustomerProfile | None, event: events.CustomerRegistered) -> CustomerProfile:
    personal = event.personal
    profile = CustomerProfile(
        customer_id=event.customer_id,
        name=personal.name,
        email=personal.email,
        phone=personal.phone,
        registered_at=event.registered_at,
        version=event.version,
        external_reference=personal.external_reference,
        guest=event.guest,
    )
    if personal.HasField("address"):
        _set_addresses(profile, [NamedAddress(name=_UNNAMED, address=personal.address, is_default=True)])
    return profile


def renamed(view: CustomerProfile, event: events.CustomerRenamed) -> CustomerProfile:
    view.name = event.personal.name
    view.version = event.version
    return view


def address_updated(view: CustomerProfile, event: events.AddressUpdated) -> CustomerProfile:
    addresses = {it.name: it for it in view.addresses}
    name = event.personal.address_name or _UNNAMED
    before = addresses.get(name)
    default = event.is_default or not addresses or (before is not None and before.is_default)
    if default:
        for it in addresses.values():
            it.is_default = False
    addresses[name] = NamedAddress(name=name, address=event.personal.address, is_default=default)
    _set_addresses(view, list(addresses.values()))
    view.version = event.version
    return view


def address_removed(view: CustomerProfile, event: events.AddressRemoved) -> CustomerProfile:
    _set_addresses(view, [it for it in view.addresses if it.name != event.personal.address_name])
    view.version = event.version
    return view


def erased(view: CustomerProfile, event: events.CustomerErased) -> CustomerProfile:
    """Made anew: whatever the view showed of the person, and however far its events could still be opened."""
    return CustomerProfile(
        customer_id=event.customer_id,
        registered_at=view.registered_at,
        version=event.version,
        erased_at=event.erased_at,
    )


def _set_addresses(profile: CustomerProfile, addresses: Sequence[NamedAddress]) -> None:
    kept = list(addresses)
    del profile.addresses[:]
    profile.addresses.extend(kept)
    profile.ClearField("address")
    for it in kept:
        if it.is_default:
            profile.address.CopyFrom(it.address)


PROJECTION = Projection(
    table=views.customer_profile,
    message=CustomerProfile,
    key_field="customer_id",
    rules={
        "customer_registered": registered,
        "customer_renamed": renamed,
        "address_updated": address_updated,
        "address_removed": address_removed,
        "customer_erased": erased,
    },
    begins=frozenset({"customer_registered"}),
)
