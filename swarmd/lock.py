"""The lock of this node in memory and in `lock.json`. One owner: `swarmd.node.LocalNode`.

Invariant: a lock key is durable before anything is encrypted with it. Everything here blocks.
"""

from __future__ import annotations

from pathlib import Path

from manager.ca.autolock import WantedLock
from shoal.security.lock import LockKey, LockKeys, NodeLock
from shoal.security.unlock import UnlockKey
from shoal.settings.lock import read_lock_file, write_lock_file


class DiskLock:
    """`value` is what the file says; while the node is locked it says nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.value = NodeLock()

    @property
    def keys(self) -> LockKeys:
        """What the node's processes need."""
        return self.value.lock_keys

    def is_sealed(self) -> bool:
        """Whether the file needs the unlock key. Raises: FailedPrecondition."""
        file = read_lock_file(self._path)
        return file is not None and file.is_sealed

    def open(self, unlock_key: UnlockKey | None = None) -> None:
        """Read the file. Raises: Locked, PermissionDenied, FailedPrecondition as `LockFile`."""
        file = read_lock_file(self._path)
        self.value = NodeLock() if file is None else file.open(unlock_key)

    def close(self) -> None:
        """Know nothing any more; the file stays."""
        self.value = NodeLock()

    def change(self, wanted: WantedLock) -> bool:
        """Do what the cluster asks for. Result: whether that was new. Raises: OSError."""
        changed = self.value.changed(wanted.unlock_key, wanted.since, LockKey.make())
        if changed is self.value:
            return False
        write_lock_file(self._path, changed)
        self.value = changed
        return True

    def settle(self) -> None:
        """Drop former keys: nothing needs them any more. Raises: OSError."""
        if not self.value.is_settled:
            settled = self.value.settled()
            write_lock_file(self._path, settled)
            self.value = settled

    def remove(self) -> None:
        """The node is no manager (any more)."""
        self._path.unlink(missing_ok=True)
        self.value = NodeLock()
