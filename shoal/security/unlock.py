"""Unlock keys: `SWMKEY-1-<base64 of 32 random bytes>`, exactly Swarm's form.

Whoever holds it can open a locked manager. It is never stored on a manager's disk in the clear, nor
shown by a repr or an error. What encrypts is not the unlock key itself but a key derived from it
for one purpose and one place (HKDF-SHA256 with a salt).
"""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets

import msgspec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from typing_extensions import override

from shoal.errors import FailedPrecondition, InvalidArgument

SECRET_BYTES = 32
_PREFIX = "SWMKEY"
_VERSION = "1"
_TEXT_LENGTH = 43
_DERIVED_BYTES = 32
_REMEDY = "; copy the whole line that `swarmctl unlock-key` prints on a manager"


class Locked(FailedPrecondition):
    """Something is encrypted, and nothing that opens it was given."""


class WrappingKey(msgspec.Struct, frozen=True):
    """32 secret bytes that other keys are encrypted with, through keys derived from them."""

    secret: bytes

    def derive(self, *, salt: bytes, purpose: str) -> bytes:
        """A 32-byte key for one purpose and place. Source: RFC 5869."""
        kdf = HKDF(SHA256(), length=_DERIVED_BYTES, salt=salt, info=purpose.encode())
        return kdf.derive(self.secret)

    def same_as(self, other: WrappingKey) -> bool:
        """Whether they are equal, in time that does not tell where they differ."""
        return hmac.compare_digest(self.secret, other.secret)

    @override
    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"


class UnlockKey(WrappingKey, frozen=True):
    """A well-formed unlock key; whether it opens anything is another question."""

    def render(self) -> str:
        """The text users keep; base64 without padding."""
        return f"{_PREFIX}-{_VERSION}-{base64.b64encode(self.secret).decode().rstrip('=')}"


def make_unlock_key() -> UnlockKey:
    """A new random key."""
    return UnlockKey(secrets.token_bytes(SECRET_BYTES))


def parse_unlock_key(text: str) -> UnlockKey:
    """Read a key; white space around it is ignored.

    Raises: InvalidArgument naming the malformed part, never quoting it.
    """
    parts = text.strip().split("-", 2)
    if parts[0] != _PREFIX:
        raise InvalidArgument(f"unlock key: must start with `{_PREFIX}-`{_REMEDY}")
    if len(parts) < 3 or parts[1] != _VERSION:
        raise InvalidArgument(
            f"unlock key: only version {_VERSION} is known (`{_PREFIX}-{_VERSION}-...`){_REMEDY}"
        )
    encoded = parts[2]
    if len(encoded) != _TEXT_LENGTH:
        raise InvalidArgument(
            f"unlock key: the part after `{_PREFIX}-{_VERSION}-` must have {_TEXT_LENGTH}"
            f" characters, this has {len(encoded)}{_REMEDY}"
        )
    try:
        key = UnlockKey(base64.b64decode(encoded + "=", validate=True))
    except binascii.Error:
        raise InvalidArgument(f"unlock key: not base64{_REMEDY}") from None
    if key.render() != f"{_PREFIX}-{_VERSION}-{encoded}":
        # The last character carries two unused bits: a slip there must not go unnoticed.
        raise InvalidArgument(f"unlock key: not base64 of {SECRET_BYTES} bytes{_REMEDY}")
    return key
