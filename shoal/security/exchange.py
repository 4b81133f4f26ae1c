"""Key pairs of X25519 as WireGuard has them: 32 bytes each.

A private key stays on the node that made it. Refuses nothing: every 32 bytes are a private key.
"""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

KEY_BYTES: Final = 32


def new_private_key() -> bytes:
    """A key of the operating system's randomness."""
    return X25519PrivateKey.generate().private_bytes_raw()


def public_key(private_key: bytes) -> bytes:
    """The half that others may know. Raises: ValueError (not of 32 bytes)."""
    return X25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()
