"""Several addresses a customer; personal data in events sealed with a key of each customer's.

Events that are there are sealed too, which takes a while for a long feed. Stop the services of the version before
first: it knows nothing of sealed events.
"""

import os
from uuid import UUID

from alembic import op
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Connection, text

from commerce.event.v1.event_pb2 import Event
from commerce.type.v1.address_pb2 import Address, AddressBook, NamedAddress

revision = "0003"
down_revision = "0002"

S = "tandem_write"
BATCH = 1000


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    op.execute(f"ALTER TABLE {S}.customer ADD COLUMN addresses bytea NOT NULL DEFAULT ''")
    op.execute(f"ALTER TABLE {S}.customer ALTER COLUMN addresses DROP DEFAULT")
    op.execute(f"ALTER TABLE {S}.customer ADD COLUMN erased boolean NOT NULL DEFAULT false")
    op.execute(f"COMMENT ON COLUMN {S}.customer.addresses IS 'commerce.type.v1.AddressBook'")
    op.execute(f"CREATE TABLE {S}.personal_key (customer_id uuid PRIMARY KEY, key bytea)")
    op.execute(f"ALTER TABLE {S}.event ADD COLUMN customer_id uuid")
    # Two random UUIDs hold 244 random bits.
    op.execute(f"""
        INSERT INTO {S}.personal_key
        SELECT id, uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) FROM {S}.customer""")  # noqa: S608
    name_addresses(op.get_bind())
    seal_events(op.get_bind())
    op.execute(f"ALTER TABLE {S}.customer DROP COLUMN address")


def name_addresses(connection: Connection) -> None:
    """A customer's one address becomes the default one, "main"."""
    rows = connection.execute(text(f"SELECT id, address FROM {S}.customer WHERE address IS NOT NULL")).all()  # noqa: S608
    for customer_id, address in rows:
        named = NamedAddress(name="main", address=Address.FromString(address), is_default=True)
        connection.execute(
            text(f"UPDATE {S}.customer SET addresses = :addresses WHERE id = :id"),  # noqa: S608
            {"addresses": AddressBook(addresses=[named]).SerializeToString(deterministic=True), "id": customer_id},
        )


def seal_events(connection: Connection) -> None:
    """Seals the personal data of the events that are there."""
    rows = connection.execute(text(f"SELECT customer_id, key FROM {S}.personal_key"))  # noqa: S608
    keys: dict[str, bytes] = {str(row.customer_id): row.key for row in rows}
    position = 0
    while batch := connection.execute(
        text(f"""
            SELECT position, payload FROM {S}.event
            WHERE position > :after AND kind IN ('customer_registered', 'address_updated', 'order_placed')
            ORDER BY position LIMIT {BATCH}"""),  # noqa: S608
        {"after": position},
    ).all():
        for position, payload in batch:
            event = Event.FromString(payload)
            customer_id = customer_of(event)
            if customer_id is not None:
                connection.execute(
                    text(f"""
                        UPDATE {S}.event SET payload = :payload, customer_id = CAST(:id AS uuid)
                        WHERE position = :position"""),  # noqa: S608
                    {
                        "payload": seal(event, keys[customer_id]).SerializeToString(deterministic=True),
                        "id": customer_id,
                        "position": position,
                    },
                )


def customer_of(event: Event) -> str | None:
    """The id of the customer whose personal data the event holds; None for an event without any."""
    payload = getattr(event, str(event.WhichOneof("kind")))
    return payload.customer_id if payload.HasField("personal") else None


def seal(event: Event, key: bytes) -> Event:
    """The event with its personal data sealed. It must be one that has some."""
    payload = getattr(event, str(event.WhichOneof("kind")))
    plain = payload.personal.SerializeToString(deterministic=True)
    nonce = os.urandom(12)
    payload.personal.Clear()
    payload.personal.sealed = nonce + AESGCM(key).encrypt(nonce, plain, UUID(payload.customer_id).bytes)
    return event


def downgrade() -> None:
    raise NotImplementedError("sealed events cannot be read by the version before; restore a backup")
