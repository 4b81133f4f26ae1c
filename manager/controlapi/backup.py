"""Backups: the whole committed state at one version, as a stream of pieces of a backup file.

Invariants: all objects are of the same version, and none acknowledged before the call is missing;
the loop is not held up, however large the state is; a few backups are made at a time. What is sent
holds every key and secret of the cluster: the one call of which that is true.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from importlib.metadata import version
from typing import Any

import structlog

from manager.consensus.recovery import records
from manager.controlapi.nodes import require_cluster
from manager.storage.backup import Manifest, encode_backup
from manager.storage.snapshot_file import SnapshotRecord
from manager.store.store import Store
from shoal.api.v1 import control_pb2 as pb
from shoal.api.v1.types_pb2 import Version
from shoal.clock import Clock
from shoal.errors import ResourceExhausted
from shoal.model.objects import AnyObject
from shoal.security.peer import current_peer

BACKUPS_MAX = 2
"""Under way at once: each holds on to the rows of the moment it began."""

_log = structlog.get_logger()


class Backups:
    """Makes the backups of one leadership."""

    def __init__(self, store: Store, clock: Clock, *, term: int) -> None:
        """term: in which this manager leads; the backup's state is one of it."""
        self._store = store
        self._clock = clock
        self._term = term
        self._under_way = 0

    async def stream(self, context: Any) -> AsyncIterator[pb.BackupClusterResponse]:
        """The answers to one call. Raises: FailedPrecondition, ResourceExhausted."""
        self._take_place(context)
        made = _Encoding(
            Manifest(
                cluster_id=require_cluster(self._store.view).id,
                index=self._store.view.version,
                term=self._term,
                created_ns=self._clock.now_ns(),
                made_by=version("shoal"),
            ),
            self._store.rows(),
        )
        caller = current_peer()
        _log.info("backup.started", version=made.manifest.index, node_id=caller.node_id)
        yield pb.BackupClusterResponse(summary=made.summary())
        while piece := await asyncio.to_thread(made.next_piece):
            yield pb.BackupClusterResponse(chunk=piece, objects=made.taken)
        yield pb.BackupClusterResponse(objects=made.taken, sha256=made.digest.digest())
        _log.info("backup.sent", version=made.manifest.index, objects=made.taken)

    def _take_place(self, context: Any) -> None:
        """Count the call until it ends, also where its client goes away between two messages."""
        if self._under_way >= BACKUPS_MAX:
            raise ResourceExhausted(
                f"{BACKUPS_MAX} backups are being made already: wait for their end"
            )
        self._under_way += 1
        context.add_done_callback(self._leave_place)

    def _leave_place(self, _context: Any) -> None:
        self._under_way -= 1


class _Encoding:
    """One backup while it is being made. `next_piece` takes a while: call it off the loop."""

    def __init__(self, manifest: Manifest, rows: tuple[AnyObject, ...]) -> None:
        self.manifest = manifest
        self.taken = 0
        self.digest = hashlib.sha256()
        self._rows = rows
        self._pieces = encode_backup(manifest, self._records())

    def summary(self) -> pb.BackupSummary:
        """What the first message says."""
        return pb.BackupSummary(
            cluster_id=self.manifest.cluster_id,
            version=Version(index=self.manifest.index),
            objects=len(self._rows),
            created_at_ns=self.manifest.created_ns,
        )

    def next_piece(self) -> bytes:
        """The next bytes of the file, none at its end."""
        piece = next(self._pieces, b"")
        self.digest.update(piece)
        return piece

    def _records(self) -> Iterator[SnapshotRecord]:
        for record in records(self._rows):
            self.taken += 1
            yield record
