"""What is to be done with the data keys after each snapshot. Runs beside the log.

Invariant: a key goes only after the last segment and the last snapshot that need it are gone; while
the two are asked, no retired key can come into use, for what seals takes the current one.
"""

from __future__ import annotations

import asyncio

import structlog

from manager.storage.driver import AsyncWal
from manager.storage.keyring import KeyRing
from manager.storage.snapshot_dir import SnapshotDir

_log = structlog.get_logger()


async def tend_keys(keys: KeyRing, log: AsyncWal, snapshots: SnapshotDir, index: int) -> None:
    """Drop the keys that nothing on the disk needs; take a new one when this one is used up.

    To be called when `SnapshotDir.prune` and `AsyncWal.release` are done. index: of the last entry.
    Raises: ResourceExhausted, StorageFailed; everything can then still be read.
    """
    # In this order: see the invariant.
    retired = keys.retired
    if retired:
        needed = await log.key_ids() | await asyncio.to_thread(snapshots.key_ids)
        await asyncio.to_thread(keys.drop, retired - needed)
    if keys.is_due(index):
        await asyncio.to_thread(keys.rotate_data_key, since=index)
        _log.info("keys.rotated", index=index)
