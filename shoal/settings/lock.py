"""`lock.json` in the state directory: the lock keys of this node, sealed by the unlock key.

Written by swarmd alone. The file is replaced as a whole, so a crash leaves the lock of before or
the new one, and each opens with one unlock key. It stays when managers are no longer locked: it
then remembers which version of the cluster said so. Refuses, by name: a wrong unlock key, a
damaged or newer file, a file others can read. All of it blocks on the disk.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shoal.errors import FailedPrecondition, PermissionDenied
from shoal.security.lock import KEYS_MAX, LOCKED_TEXT, LockKey, NodeLock
from shoal.security.unlock import SECRET_BYTES, Locked, UnlockKey
from shoal.settings.node import write_durably

FORMAT_VERSION = 1
_FILE_BYTES_MAX = 16 << 10
_SALT_BYTES = 16
_NONCE = bytes(12)
"""Each writing derives a key of its own from a fresh salt, so that no nonce is used twice."""
_PURPOSE = "shoal lock keys v1"
_REMEDY = "restore it from a copy, or `swarmctl leave --force` and join again"


class LockFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content. keys: hex; sealed when there is a salt (hex).

    check: SHA-256 of the same JSON with an empty check.
    """

    version: int
    since: int
    salt: str
    keys: str
    check: str = ""

    @property
    def is_sealed(self) -> bool:
        """Whether an unlock key is needed."""
        return bool(self.salt)

    def open(self, unlock_key: UnlockKey | None = None) -> NodeLock:
        """The lock; the key is not looked at when none is needed.

        Raises: Locked when one is needed and none was given, PermissionDenied for a wrong one.
        """
        joined = bytes.fromhex(self.keys)
        if not self.is_sealed:
            return NodeLock(self.since, None, _split(joined))
        if unlock_key is None:
            raise Locked(LOCKED_TEXT)
        try:
            joined = _cipher(unlock_key, bytes.fromhex(self.salt)).decrypt(
                _NONCE, joined, _place(self.since)
            )
        except InvalidTag:
            raise PermissionDenied(
                "swarm could not be unlocked: invalid key provided; if the unlock key was rotated "
                "while this manager was away, give the one from before"
            ) from None
        return NodeLock(self.since, unlock_key, _split(joined))


class _Head(msgspec.Struct):
    version: int = 0


def read_lock_file(path: Path) -> LockFile | None:
    """The file, None when this node never was locked.

    Raises: FailedPrecondition for a damaged or newer file, or one that others can read.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        with path.open("rb") as file:
            raw = file.read(_FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FailedPrecondition(f"{path}: cannot be read: {error.strerror}") from error
    if mode & 0o077:
        raise FailedPrecondition(
            f"{path}: mode {mode:04o} lets others read the lock: `chmod 600 {path}`"
        )
    try:
        version = msgspec.json.decode(raw, type=_Head).version
        content = msgspec.json.decode(raw, type=LockFile) if version <= FORMAT_VERSION else None
        sound = content is not None and _encode(content) == raw and _is_well_formed(content)
    except (msgspec.MsgspecError, UnicodeError):
        version, content, sound = 0, None, False
    if version > FORMAT_VERSION:
        raise FailedPrecondition(
            f"{path}: format {version}, this version reads {FORMAT_VERSION}: run the newer one"
        )
    if content is None or not sound:
        raise FailedPrecondition(f"{path}: damaged: {_REMEDY}")
    return content


def write_lock_file(path: Path, lock: NodeLock) -> None:
    """Replace the file durably, mode 0600. Raises: OSError; then the old one is there."""
    joined = b"".join(key.secret for key in lock.keys)
    salt = b""
    if lock.unlock_key is not None:
        salt = os.urandom(_SALT_BYTES)
        joined = _cipher(lock.unlock_key, salt).encrypt(_NONCE, joined, _place(lock.since))
    content = LockFile(FORMAT_VERSION, lock.since, salt.hex(), joined.hex())
    write_durably(path, _encode(content))


def _encode(content: LockFile) -> bytes:
    unchecked = msgspec.json.encode(msgspec.structs.replace(content, check=""))
    check = hashlib.sha256(unchecked).hexdigest()
    return msgspec.json.encode(msgspec.structs.replace(content, check=check)) + b"\n"


def _is_well_formed(content: LockFile) -> bool:
    try:
        joined, salt = bytes.fromhex(content.keys), bytes.fromhex(content.salt)
    except ValueError:
        return False
    return len(joined) <= KEYS_MAX * SECRET_BYTES + 16 and len(salt) in (0, _SALT_BYTES)


def _split(joined: bytes) -> tuple[LockKey, ...]:
    starts = range(0, len(joined), SECRET_BYTES)
    return tuple(LockKey(joined[start : start + SECRET_BYTES]) for start in starts)


def _cipher(unlock_key: UnlockKey, salt: bytes) -> AESGCM:
    return AESGCM(unlock_key.derive(salt=salt, purpose=_PURPOSE))


def _place(since: int) -> bytes:
    return b"shoal lock keys\0" + since.to_bytes(8, "little")
