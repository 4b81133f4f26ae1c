"""Sealing of what is at rest: AES-256-GCM with a random nonce for every seal.

Invariants: a nonce is drawn from the kernel, never derived from an index (a log overwrites
indexes and loses tails, so a derived nonce would come again); what is sealed says where it belongs
(the associated data), so that it cannot be moved. At most `SEALS_MAX` seals with one key keep the
chance of equal nonces below 2**-32; `keyring` rotates long before. Keys never appear in a repr.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from typing_extensions import override

from shoal.errors import InvalidArgument

KEY_ID_BYTES = 16
SECRET_BYTES = 32
NONCE_BYTES = 12
SEAL_BYTES = NONCE_BYTES + 16
"""By how much sealing makes a piece longer: nonce and tag."""
SEALS_MAX = 1 << 32
NO_KEY = bytes(KEY_ID_BYTES)
"""The key id of what is not encrypted."""

Seal = Callable[[bytes, bytes], bytes]
"""(plain, associated data) to sealed bytes."""


class Unsealable(Exception):
    """The bytes were changed, moved from their place, or sealed with another key."""


class DataKey:
    """One key for data; usable from several threads."""

    __slots__ = ("_aead", "id", "secret")

    def __init__(self, key_id: bytes, secret: bytes) -> None:
        """Raises: InvalidArgument for an id or a secret of the wrong size."""
        if len(key_id) != KEY_ID_BYTES or key_id == NO_KEY or len(secret) != SECRET_BYTES:
            raise InvalidArgument(
                f"data key: the id must be {KEY_ID_BYTES} bytes, not all zero, the secret"
                f" {SECRET_BYTES} bytes"
            )
        self.id = key_id
        self.secret = secret
        self._aead = AESGCM(secret)

    @classmethod
    def make(cls) -> DataKey:
        """A new random key."""
        return cls(os.urandom(KEY_ID_BYTES), os.urandom(SECRET_BYTES))

    def seal(self, plain: bytes, aad: bytes) -> bytes:
        """Nonce, ciphertext and tag: `SEAL_BYTES` longer than `plain`."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, plain, aad)

    def sealer(self, count: int) -> Seal:
        """A function that seals at most `count` times; asks the kernel for nonces only once.

        Not thread-safe. One call more raises IndexError rather than repeat a nonce.
        """
        nonces = os.urandom(NONCE_BYTES * count)
        starts = iter(range(0, len(nonces), NONCE_BYTES))
        encrypt = self._aead.encrypt

        def seal(plain: bytes, aad: bytes) -> bytes:
            start = next(starts, None)
            if start is None:
                raise IndexError("more seals than nonces")
            nonce = nonces[start : start + NONCE_BYTES]
            return nonce + encrypt(nonce, plain, aad)

        return seal

    def unseal(self, sealed: bytes, aad: bytes) -> bytes:
        """The plain bytes. Raises: Unsealable."""
        try:
            return self._aead.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], aad)
        except (InvalidTag, ValueError) as error:  # ValueError: too short for a nonce and a tag
            raise Unsealable from error

    @override
    def __repr__(self) -> str:
        return f"DataKey({self.id.hex()})"


class DataKeys(Protocol):
    """The keys of one member. Implemented by `keyring.KeyRing`."""

    @property
    def current(self) -> DataKey:
        """The key for everything new."""
        ...

    def get(self, key_id: bytes) -> DataKey:
        """The key with that id. Raises: FailedPrecondition when it is not there."""
        ...
