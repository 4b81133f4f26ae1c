"""The data keys of one member in `keys.json`: current and older ones, wrapped or in the clear.

Invariants: a key is durable before anything is sealed with it, and dropped only after the last
file that needs it is gone; the file is replaced as a whole (write, sync, rename, sync), so a crash
leaves the old one or the new one, and both open everything on the disk. With an unlock key (of a
manager: its lock key, `shoal.security.lock`) the data keys are wrapped (AES-256-GCM under a key
derived with a fresh salt) and the file alone opens nothing. Refuses, by name: a locked file without
its key, a wrong key, a damaged file, a file others can read. Thread-safe; every method that
changes the file blocks on the disk. Idea: swarmkit design/raft_encryption.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import msgspec
from typing_extensions import override

from manager.storage.errors import REJOIN, disk_error
from manager.storage.files import FileOps, discard, write_all
from manager.storage.sealing import NO_KEY, DataKey, Unsealable
from shoal.errors import FailedPrecondition, InvalidArgument, NotFound, SwarmError, invariant
from shoal.security.unlock import Locked, WrappingKey

FILE_NAME = "keys.json"
KEYS_MAX = 64
ROTATE_AFTER_ENTRIES = 1 << 24
"""Far below `sealing.SEALS_MAX`, and snapshots add few seals to those of the entries."""
_VERSION = 1
_SALT_BYTES = 16
_FILE_BYTES_MAX = 64 << 10
_PURPOSE = "shoal raft data keys v1"


class _Key(msgspec.Struct, frozen=True):
    """id: hex; secret: hex, wrapped when the file has a salt; since: first entry it may seal."""

    id: str
    secret: str
    since: int


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content; `check` is the SHA-256 of the same JSON with an empty check."""

    version: int
    cluster_id: str
    salt: str
    current: str
    keys: tuple[_Key, ...]
    check: str = ""


class KeyRing:
    """Open keys of one member; implements `sealing.DataKeys`."""

    def __init__(
        self, path: Path, cluster_id: str, *, unlock_key: WrappingKey | None, files: FileOps
    ) -> None:
        """Use `create` or `open`."""
        self._path = path
        self._cluster_id = cluster_id
        self._unlock_key = unlock_key
        self._files = files
        self._keys: dict[bytes, tuple[DataKey, int]] = {}
        self._current = NO_KEY
        self._change = threading.Lock()

    @classmethod
    def create(
        cls,
        path: Path,
        cluster_id: str,
        *,
        unlock_key: WrappingKey | None = None,
        files: FileOps | None = None,
    ) -> Self:
        """Write a ring with one new key; its directory must exist.

        Raises: FailedPrecondition when the file exists; ResourceExhausted, StorageFailed.
        """
        ring = cls(path, cluster_id, unlock_key=unlock_key, files=files or FileOps())
        if path.exists():
            raise FailedPrecondition(f"{path}: exists already: open it instead")
        key = DataKey.make()
        ring._replace({key.id: (key, 0)}, key.id, unlock_key)
        return ring

    @classmethod
    def open(
        cls,
        path: Path,
        cluster_id: str,
        *,
        unlock_key: WrappingKey | None = None,
        former: Sequence[WrappingKey] = (),
        files: FileOps | None = None,
    ) -> Self:
        """Read the ring. former: other keys that may open it.

        Raises: NotFound; Locked when an unlock key is needed; InvalidArgument when it is the wrong
        one; FailedPrecondition for a damaged, foreign or newer file, or one that others can read.
        """
        ring = cls(path, cluster_id, unlock_key=unlock_key, files=files or FileOps())
        content = _read(path)
        if content.cluster_id != cluster_id:
            raise FailedPrecondition(
                f"{path}: belongs to cluster {content.cluster_id}, not to {cluster_id}:"
                " wrong --state-dir?"
            )
        candidates = tuple(key for key in (unlock_key, *former) if key is not None)
        ring._keys, ring._unlock_key = _opened(content, path, candidates)
        ring._current = bytes.fromhex(content.current)
        return ring

    @staticmethod
    def is_locked(path: Path) -> bool:
        """Whether the file opens only with an unlock key. Raises as `open`."""
        return bool(_read(path).salt)

    @property
    def current(self) -> DataKey:
        """The key for everything new."""
        return self._keys[self._current][0]

    @property
    def locks(self) -> bool:
        """Whether the next start needs the unlock key."""
        return self._unlock_key is not None

    @property
    def retired(self) -> frozenset[bytes]:
        """Ids of the keys that seal nothing new."""
        with self._change:
            return frozenset(self._keys) - {self._current}

    def get(self, key_id: bytes) -> DataKey:
        """The key with that id. Raises: FailedPrecondition when it is not there."""
        found = self._keys.get(key_id)
        if found is None:
            raise FailedPrecondition(
                f"{self._path}: key {key_id.hex()}, which the log or a snapshot needs, is not in"
                f" it: restore the file that belongs to this directory, or {REJOIN}",
                key_id=key_id.hex(),
            )
        return found[0]

    def rotate_data_key(self, *, since: int = 0) -> bytes:
        """Seal everything new with a new key; returns its id.

        since: the next index of the log, for `is_due`. The old key stays until `drop`.
        Raises: FailedPrecondition when `KEYS_MAX` keys are still needed; from the disk
        ResourceExhausted, StorageFailed; then the old key stays the current one.
        """
        key = DataKey.make()
        with self._change:
            if len(self._keys) >= KEYS_MAX:
                raise FailedPrecondition(
                    f"{self._path}: {len(self._keys)} keys are still needed: wait for a snapshot"
                )
            self._replace({**self._keys, key.id: (key, since)}, key.id, self._unlock_key)
        return key.id

    def is_due(self, index: int) -> bool:
        """Whether the current key has sealed so many entries that it should be rotated."""
        return index - self._keys[self._current][1] >= ROTATE_AFTER_ENTRIES

    def drop(self, key_ids: Iterable[bytes]) -> None:
        """Forget keys that no file needs any more. The current one is never dropped.

        Read `retired` before asking the log and the snapshots which keys they need: only then can
        none of the dropped keys come into use again. Errors from the disk as `rotate_data_key`.
        """
        with self._change:
            gone = (frozenset(key_ids) & frozenset(self._keys)) - {self._current}
            if gone:
                kept = {key_id: key for key_id, key in self._keys.items() if key_id not in gone}
                self._replace(kept, self._current, self._unlock_key)

    def rotate_kek(self, unlock_key: WrappingKey | None) -> None:
        """Wrap the data keys with another unlock key; None stores them in the clear (autolock off).

        When this raises StorageFailed the file may need either key: try both.
        """
        with self._change:
            self._replace(self._keys, self._current, unlock_key)

    def lock_with(self, unlock_key: WrappingKey | None, *, since: int) -> bool:
        """Wrap the data keys with this key, None: not at all. Result: whether that was new.

        Under another key everything new is sealed with a new data key, too: the one of before
        could be read with what opened the ring then. since, errors: as `rotate_data_key`.
        """
        with self._change:
            if unlock_key == self._unlock_key:
                return False
            keys, current = self._keys, self._current
            if unlock_key is not None and len(keys) < KEYS_MAX:
                key = DataKey.make()
                keys, current = {**keys, key.id: (key, since)}, key.id
            self._replace(keys, current, unlock_key)
        return True

    def _replace(
        self,
        keys: dict[bytes, tuple[DataKey, int]],
        current: bytes,
        unlock_key: WrappingKey | None,
    ) -> None:
        """Make the new content durable, then use it."""
        content = _wrap(keys, current, self._cluster_id, unlock_key)
        _write(self._files, self._path, content)
        self._keys, self._current, self._unlock_key = keys, current, unlock_key

    @override
    def __repr__(self) -> str:
        return f"KeyRing({self._path}, {len(self._keys)} keys)"


def _wrap(
    keys: dict[bytes, tuple[DataKey, int]],
    current: bytes,
    cluster_id: str,
    unlock_key: WrappingKey | None,
) -> bytes:
    salt = b"" if unlock_key is None else os.urandom(_SALT_BYTES)
    wrapping = _wrapping_key(unlock_key, salt) if unlock_key is not None else None
    stored = tuple(
        _Key(
            id=key_id.hex(),
            secret=_secret(key, wrapping, cluster_id).hex(),
            since=since,
        )
        for key_id, (key, since) in keys.items()
    )
    return _encode(_File(_VERSION, cluster_id, salt.hex(), current.hex(), stored))


def _secret(key: DataKey, wrapping: DataKey | None, cluster_id: str) -> bytes:
    return key.secret if wrapping is None else wrapping.seal(key.secret, _place(cluster_id, key.id))


def _opened(
    content: _File, path: Path, candidates: Sequence[WrappingKey]
) -> tuple[dict[bytes, tuple[DataKey, int]], WrappingKey | None]:
    """The data keys, and the key that opened them: None if none was needed."""
    if not content.salt:
        return _unwrap(content, None), None
    if not candidates:
        raise Locked("the manager is locked: unlock it with `swarmctl unlock`", file=str(path))
    for key in candidates:
        with contextlib.suppress(Unsealable):
            return _unwrap(content, _wrapping_key(key, bytes.fromhex(content.salt))), key
    raise InvalidArgument(
        f"unlock key: not the one that {path} was locked with; `swarmctl unlock-key` on another"
        " manager prints the present one"
    )


def _unwrap(content: _File, wrapping: DataKey | None) -> dict[bytes, tuple[DataKey, int]]:
    keys: dict[bytes, tuple[DataKey, int]] = {}
    for stored in content.keys:
        key_id, secret = bytes.fromhex(stored.id), bytes.fromhex(stored.secret)
        if wrapping is not None:
            secret = wrapping.unseal(secret, _place(content.cluster_id, key_id))
        keys[key_id] = (DataKey(key_id, secret), stored.since)
    return keys


def _wrapping_key(unlock_key: WrappingKey, salt: bytes) -> DataKey:
    # The salt is new each time the file is written, so every wrapping key seals one file only.
    return DataKey(salt, unlock_key.derive(salt=salt, purpose=_PURPOSE))


def _place(cluster_id: str, key_id: bytes) -> bytes:
    return b"shoal data key\0" + cluster_id.encode() + b"\0" + key_id


def _encode(content: _File) -> bytes:
    unchecked = msgspec.json.encode(msgspec.structs.replace(content, check=""))
    check = hashlib.sha256(unchecked).hexdigest()
    return msgspec.json.encode(msgspec.structs.replace(content, check=check)) + b"\n"


def _read(path: Path) -> _File:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        with path.open("rb") as file:
            raw = file.read(_FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise NotFound(f"{path}: no data keys here") from None
    except OSError as error:
        raise disk_error("reading", str(path), error) from error
    if mode & 0o077:
        raise FailedPrecondition(
            f"{path}: mode {mode:04o} lets others read the data keys: `chmod 600 {path}`, and"
            " rotate them if someone may have read it"
        )
    try:
        content = msgspec.json.decode(raw, type=_File)
        # One content has one spelling, so every changed byte shows.
        sound = _encode(content) == raw
    except (msgspec.MsgspecError, UnicodeError):
        sound = False
        content = None
    if content is None or not sound:
        raise FailedPrecondition(f"{path}: damaged: restore it from a copy, or {REJOIN}")
    if content.version != _VERSION:
        raise FailedPrecondition(
            f"{path}: format {content.version}, this version reads {_VERSION}: run the newer one"
        )
    invariant(content.current in {key.id for key in content.keys}, "no current key", file=path)
    return content


def _write(files: FileOps, path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    try:
        if temporary.exists():
            files.unlink(temporary)
        fd = files.create(temporary)
        try:
            write_all(files, fd, content, 0)
            files.fsync(fd)
        finally:
            files.close(fd)
        files.rename(temporary, path)
        directory = files.open_dir(path.parent)
        try:
            files.fsync(directory)
        finally:
            files.close(directory)
    except OSError as error:
        discard(files, temporary)
        raise _failure(path, error) from error


def _failure(path: Path, error: OSError) -> SwarmError:
    return disk_error("writing", str(path), error)
