"""Personal data in stored events: sealed with a key of each data subject's, and gone for good when the key is.

A data subject is the person that personal data is about. Keys are in the table `subject_key`; whoever erases a subject
sets the key to NULL. AES-256 in Galois/Counter Mode: 12 random bytes, then the encrypted data with its tag of 16 bytes;
the associated data is the 16 bytes of the subject's id, so that nobody's data can be passed off as another's.
"""

import os

import uuid_utils
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_NONCE_BYTES = 12
_KEY_BITS = 256


class WrongKey(ValueError):
    """The key is not the one that the data was sealed with, or the data was changed."""


def new_key() -> bytes:
    return AESGCM.generate_key(_KEY_BITS)


def seal(plain: bytes, subject_id: str, key: bytes) -> bytes:
    """subject_id: a UUID, as text."""
    # A key seals a subject's few events: random nonces cannot meet.
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plain, uuid_utils.UUID(subject_id).bytes)


def open_sealed(sealed: bytes, subject_id: str, key: bytes) -> bytes:
    """The inverse of `seal`. Raises WrongKey."""
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], uuid_utils.UUID(subject_id).bytes)
    except InvalidTag:
        raise WrongKey(f"the personal data of the data subject {subject_id} cannot be opened") from None
