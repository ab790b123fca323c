"""Several addresses a customer; personal data in events sealed with a key of each customer's.

Sealing is the one change that is ever made to a stored event: what is left open of a person could not be erased. Opened
again, an event has the bytes of before. Readers take sealed events and open ones.

Customers and events are worked on in steps, which takes a while for a long feed. Stop the services of the version
before first: it knows nothing of sealed events.
"""

import os
from uuid import UUID

from alembic import op
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Connection, text

from commerce.event.v1.event_pb2 import Event
from commerce.type.v1.address_pb2 import Address, AddressBook, NamedAddress
from tandem.runtime.backfill import backfill

revision = "0003"
down_revision = "0002"

S = "tandem_write"
BATCH = 1000


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("SET LOCAL statement_timeout = '60s'")
    op.execute(f"ALTER TABLE {S}.customer ADD COLUMN IF NOT EXISTS addresses bytea NOT NULL DEFAULT ''")
    op.execute(f"ALTER TABLE {S}.customer ADD COLUMN IF NOT EXISTS erased boolean NOT NULL DEFAULT false")
    op.execute(f"COMMENT ON COLUMN {S}.customer.addresses IS 'commerce.type.v1.AddressBook'")
    backfill("0003 customers", complete_customers)
    backfill("0003 sealed events", seal_events)
    op.execute(f"ALTER TABLE {S}.customer ALTER COLUMN addresses DROP DEFAULT")
    op.execute(f"ALTER TABLE {S}.customer DROP COLUMN address")


def complete_customers(connection: Connection, after: str) -> str | None:
    """Customers get a key, and their one address becomes the default one, "main"."""
    rows = connection.execute(
        text(f"""
            SELECT id, address FROM {S}.customer
            WHERE id > CAST(:after AS uuid) ORDER BY id LIMIT {BATCH}"""),  # noqa: S608
        {"after": after or str(UUID(int=0))},
    ).all()
    if not rows:
        return None
    # Two random UUIDs hold 244 random bits.
    connection.execute(
        text(f"""
            INSERT INTO {S}.subject_key
            SELECT id, uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
            FROM unnest(CAST(:ids AS uuid[])) AS id ON CONFLICT DO NOTHING"""),  # noqa: S608
        {"ids": [row.id for row in rows]},
    )
    named = {row.id: Address.FromString(row.address) for row in rows if row.address is not None}
    books = [AddressBook(addresses=[NamedAddress(name="main", address=it, is_default=True)]) for it in named.values()]
    connection.execute(
        text(f"""
            UPDATE {S}.customer AS c SET addresses = v.addresses
            FROM unnest(CAST(:ids AS uuid[]), CAST(:addresses AS bytea[])) AS v (id, addresses)
            WHERE c.id = v.id"""),  # noqa: S608
        {"ids": list(named), "addresses": [it.SerializeToString(deterministic=True) for it in books]},
    )
    return str(rows[-1].id)


def seal_events(connection: Connection, after: str) -> str | None:
    """Seals the personal data of the events that are there."""
    head: int = connection.execute(text(f"SELECT position FROM {S}.feed_head")).scalar_one()  # noqa: S608
    first = int(after or 0)
    if first >= head:
        return None
    until = min(first + BATCH, head)
    rows = connection.execute(
        text(f"""
            SELECT position, payload FROM {S}.event
            WHERE position > :after AND position <= :until AND subject_id IS NULL
              AND kind IN ('customer_registered', 'address_updated', 'order_placed')"""),  # noqa: S608
        {"after": first, "until": until},
    )
    events = {row.position: Event.FromString(row.payload) for row in rows}
    customers = {position: it for position, event in events.items() if (it := customer_of(event)) is not None}
    keys = {
        str(row.subject_id): row.key
        for row in connection.execute(
            text(f"SELECT subject_id, key FROM {S}.subject_key WHERE subject_id = ANY(CAST(:ids AS uuid[]))"),  # noqa: S608
            {"ids": list(set(customers.values()))},
        )
    }
    sealed = [seal(events[position], keys[customer]) for position, customer in customers.items()]
    connection.execute(
        text(f"""
            UPDATE {S}.event AS e SET payload = v.payload, subject_id = v.subject_id
            FROM unnest(CAST(:positions AS bigint[]), CAST(:payloads AS bytea[]), CAST(:customers AS uuid[]))
              AS v (position, payload, subject_id)
            WHERE e.position = v.position"""),  # noqa: S608
        {
            "positions": list(customers),
            "payloads": [it.SerializeToString(deterministic=True) for it in sealed],
            "customers": list(customers.values()),
        },
    )
    return str(until)


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
