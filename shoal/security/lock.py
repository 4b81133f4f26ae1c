"""The lock of a manager: lock keys, and which of them what is on the disk needs. Pure.

A locked manager's private key and data keys are encrypted with a *lock key* of its own. Its lock
keys stand in one file, sealed by the cluster's unlock key (`shoal.settings.lock`): another unlock
key is one file replaced, and no crash leaves a node that needs two keys. A lock changes in three
steps: the file names the new lock key before the old one; everything is encrypted anew; the old
one goes (`settled`). Invariant: whatever is on the disk opens with one of `keys`, or lies open.
"""

from __future__ import annotations

import os

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from typing_extensions import override

from shoal.errors import FailedPrecondition, InvalidArgument
from shoal.security.unlock import SECRET_BYTES, Locked, UnlockKey, WrappingKey

KEYS_MAX = 8
"""Lock keys in one file; there are more than two only while the disk cannot be written."""
LOCKED_TEXT = (
    "Swarm is encrypted and needs to be unlocked before it can be used. "
    'Please use "swarmctl unlock" to unlock it.'
)
BOOTSTRAP_PLACE = b"shoal bootstrap entry"
_SEALED = b"SHOALSEALED1"
_NONCE_BYTES = 12
_SALT_BYTES = 16
_PURPOSE = "shoal file v1"


class LockKey(WrappingKey, frozen=True):
    """What one locked node's secrets are encrypted with; never shown to people."""

    @classmethod
    def make(cls) -> LockKey:
        """A new random key."""
        return cls(os.urandom(SECRET_BYTES))

    def seal(self, plain: bytes, place: bytes) -> bytes:
        """Encrypt for one place."""
        salt, nonce = os.urandom(_SALT_BYTES), os.urandom(_NONCE_BYTES)
        return salt + nonce + self._cipher(salt).encrypt(nonce, plain, place)

    def unseal(self, sealed: bytes, place: bytes) -> bytes | None:
        """What `seal` was given, None when this is not the key or the place."""
        salt, nonce = sealed[:_SALT_BYTES], sealed[_SALT_BYTES : _SALT_BYTES + _NONCE_BYTES]
        try:
            return self._cipher(salt).decrypt(nonce, sealed[_SALT_BYTES + _NONCE_BYTES :], place)
        except (InvalidTag, ValueError):
            return None

    def _cipher(self, salt: bytes) -> AESGCM:
        return AESGCM(self.derive(salt=salt, purpose=_PURPOSE))


class LockKeys(msgspec.Struct, frozen=True):
    """What a process of the node needs: the key for all that is written, and those before it.

    current: None when what is written is not to be encrypted.
    """

    current: LockKey | None = None
    former: tuple[LockKey, ...] = ()

    @property
    def all(self) -> tuple[LockKey, ...]:
        """Every key that may open something, the likeliest first."""
        return self.former if self.current is None else (self.current, *self.former)

    @override
    def __repr__(self) -> str:
        return f"LockKeys({'locked' if self.current else 'open'}, {len(self.former)} former)"


class NodeLock(msgspec.Struct, frozen=True):
    """The lock of this node.

    since: version of the cluster's row that asked for it. unlock_key: seals the keys; None when
    managers are not locked, and then `keys` are those that something may still need.
    """

    since: int = 0
    unlock_key: UnlockKey | None = None
    keys: tuple[LockKey, ...] = ()

    @property
    def is_locked(self) -> bool:
        """Whether the next start needs the unlock key."""
        return self.unlock_key is not None

    @property
    def lock_keys(self) -> LockKeys:
        """For the processes of the node."""
        if self.unlock_key is None:
            return LockKeys(None, self.keys)
        return LockKeys(self.keys[0], self.keys[1:])

    @property
    def is_settled(self) -> bool:
        """Whether nothing needs a former key."""
        return not self.lock_keys.former

    def changed(self, unlock_key: UnlockKey | None, since: int, fresh: LockKey) -> NodeLock:
        """The lock that the cluster asks for; the same object when nothing changes.

        A row older than the one that was followed last is ignored: a manager that has just started
        may see it again.
        """
        if since < self.since or unlock_key == self.unlock_key:
            return self
        keys = self.keys
        if unlock_key is not None and len(keys) < KEYS_MAX:
            keys = (fresh, *keys)
        return NodeLock(since, unlock_key, keys)

    def settled(self) -> NodeLock:
        """Without former keys: nothing on the disk needs them any more."""
        return NodeLock(self.since, self.unlock_key, self.keys[:1] if self.is_locked else ())

    @override
    def __repr__(self) -> str:
        return f"NodeLock(since {self.since}, {self.lock_keys!r})"


class _Wire(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    current: bytes
    former: tuple[bytes, ...]


def encode_lock_keys(keys: LockKeys) -> bytes:
    """For a process of the node: through its standard input, or its socket."""
    current = b"" if keys.current is None else keys.current.secret
    return msgspec.json.encode(_Wire(current, tuple(key.secret for key in keys.former)))


def decode_lock_keys(data: bytes) -> LockKeys:
    """What `encode_lock_keys` made; nothing means no keys. Raises: InvalidArgument."""
    if not data:
        return LockKeys()
    try:
        wire = msgspec.json.decode(data, type=_Wire)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise InvalidArgument("lock keys: cannot be read") from None
    secrets = (*((wire.current,) if wire.current else ()), *wire.former)
    if any(len(secret) != SECRET_BYTES for secret in secrets) or len(secrets) > KEYS_MAX:
        raise InvalidArgument(f"lock keys: at most {KEYS_MAX} keys of {SECRET_BYTES} bytes")
    former = tuple(LockKey(secret) for secret in wire.former)
    return LockKeys(LockKey(wire.current) if wire.current else None, former)


def protect(plain: bytes, place: bytes, key: LockKey | None) -> bytes:
    """The content of a small file: sealed on a locked node, else as it is.

    place: where it belongs; it opens nowhere else. `plain` must not begin as a sealed one does.
    """
    return plain if key is None else _SEALED + key.seal(plain, place)


def unprotect(content: bytes, place: bytes, keys: LockKeys, *, name: str) -> bytes:
    """What `protect` was given.

    Raises: Locked when a key is needed and none was given; FailedPrecondition when none fits.
    """
    if not content.startswith(_SEALED):
        return content
    if not keys.all:
        raise Locked(LOCKED_TEXT)
    for key in keys.all:
        plain = key.unseal(content[len(_SEALED) :], place)
        if plain is not None:
            return plain
    raise FailedPrecondition(f"{name}: not sealed with this node's lock key, or damaged")
