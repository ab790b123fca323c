"""Personal data in stored events: sealed with a key of each customer's, and gone for good when the key is.

An event that has a field `personal` has a `customer_id` beside it. In the store the field holds nothing but `sealed`;
the contract says how that is made. Keys are in the table `personal_key`; erasing a customer sets the key to NULL.
"""

import os
from typing import Any

import uuid_utils
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from commerce.event.v1.event_pb2 import Event

_NONCE_BYTES = 12
_KEY_BITS = 256
_PERSONAL_KINDS = frozenset(
    it.name
    for it in Event.DESCRIPTOR.oneofs_by_name["kind"].fields
    if it.message_type is not None and "personal" in it.message_type.fields_by_name
)


class WrongKey(ValueError):
    """The key is not the one that the data was sealed with, or the data was changed."""


def new_key() -> bytes:
    return AESGCM.generate_key(_KEY_BITS)


def customer_of(event: Event) -> str | None:
    """The id of the customer whose personal data the event holds; None for an event without any."""
    payload = _personal_payload(event)
    return payload.customer_id if payload is not None and payload.HasField("personal") else None


def seal(event: Event, key: bytes) -> Event:
    """The event as it is to be stored. It must be one that has personal data."""
    sealed = Event()
    sealed.CopyFrom(event)
    payload = _personal_payload(sealed)
    customer = uuid_utils.UUID(payload.customer_id).bytes
    # A key seals a customer's few events: random nonces cannot meet.
    nonce = os.urandom(_NONCE_BYTES)
    plain = payload.personal.SerializeToString(deterministic=True)
    payload.personal.Clear()
    payload.personal.sealed = nonce + AESGCM(key).encrypt(nonce, plain, customer)
    return sealed


def open_sealed(event: Event, key: bytes | None) -> None:
    """Puts personal data that is sealed in its place again, or takes it away where the key is gone. Raises WrongKey."""
    payload = _personal_payload(event)
    if payload is None:
        return
    personal = payload.personal
    sealed = personal.sealed
    if not sealed:
        return
    if key is None:
        payload.ClearField("personal")
        return
    customer = uuid_utils.UUID(payload.customer_id).bytes
    try:
        plain = AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], customer)
    except InvalidTag:
        raise WrongKey(f"the personal data of customer {payload.customer_id} cannot be opened") from None
    personal.Clear()
    personal.MergeFromString(plain)


def _personal_payload(event: Event) -> Any:
    """What the event says, where that has a field for personal data; else None."""
    kind = event.WhichOneof("kind")
    return getattr(event, kind) if kind in _PERSONAL_KINDS else None
