"""Makes the raft directory of a cluster's only member out of a backup.

What `manager.storage.backup` does with bytes, for the state they hold. Invariants: every manager
of the backup counts as removed, so that none of them can speak as a member when it comes back (it
puts its log aside and joins as a new one); no version is given twice. The nodes' rows are the
caller's business.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from manager.consensus.recovery import Place, records
from manager.consensus.roster import Member, Roster, encode_membership
from manager.raft.entries import ConfState
from manager.storage.backup import Backup, Restored, Restoring, restore
from manager.store.tables import Tables
from shoal.errors import FailedPrecondition, InvalidArgument
from shoal.model.objects import AnyObject
from shoal.wire.objects import object_from_bytes

LEAP = 1 << 24
"""Versions between the backup's and the first one given after it. Commits that the old cluster
made after the backup have versions in between: what somebody read of them fits nothing any more."""


def restored_version(backup: Backup) -> int:
    """The version of the restored state."""
    return backup.manifest.index + LEAP


def backed_up_tables(backup: Backup) -> Tables:
    """The objects in a backup. Blocks on the disk.

    Raises: FailedPrecondition for objects that this version cannot read; CorruptSnapshot when the
    file has changed since it was verified.
    """
    rows: list[AnyObject] = []
    for record in backup.records():
        try:
            rows.append(object_from_bytes(record.data))
        except InvalidArgument as error:
            raise FailedPrecondition(
                f"{backup.label}: object {len(rows) + 1} cannot be read ({error.message}): restore"
                f" it with the version of Shoal that made it ({backup.manifest.made_by})"
            ) from error
    return Tables(rows, version=backup.manifest.index)


def restore_only_member(
    backup: Backup, place: Place, rows: Iterable[AnyObject], *, removed: Collection[int]
) -> Restored:
    """Make the directory at `place`. Blocks on the disk.

    rows: the state. removed: raft ids of the backup's managers. Raises: as `restore`.
    """

    def membership(raft_id: int) -> bytes:
        me = Member(raft_id, place.node_id, place.address)
        alone = Roster({raft_id: me}, frozenset(removed) - {raft_id})
        return encode_membership(ConfState(voters=(raft_id,)), alone)

    return restore(
        backup,
        place.directory,
        Restoring(
            unlock_key=place.opening.unlock_key,
            membership=membership,
            records=records(rows),
            leap=LEAP,
            segment_bytes=place.opening.segment_bytes,
            files=place.opening.files,
        ),
    )
