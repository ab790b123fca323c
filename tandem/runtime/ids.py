"""Ids are UUIDs: text in messages, 16 bytes where there are many of them. The class UUID is several times as slow."""

import hashlib


def id_bytes(text: str) -> bytes:
    """The 16 bytes of an id that is written as text. Raises ValueError."""
    value = bytes.fromhex(text.replace("-", ""))
    if len(value) != 16:
        raise ValueError(f"{text[:100]!r} is not a UUID")
    return value


def named_id(namespace: bytes, name: str) -> bytes:
    """The id that a name has: the 16 bytes of the UUID of version 5. namespace: an id."""
    digest = hashlib.sha1(namespace + name.encode(), usedforsecurity=False).digest()
    version, variant = digest[6] & 0x0F | 0x50, digest[8] & 0x3F | 0x80
    return digest[:6] + bytes((version, digest[7], variant)) + digest[9:16]
