"""Makes a stopped manager the only member of its cluster, with all objects.

What `manager.storage.forcing` does with bytes, for the state they hold. Invariant: every other
member's raft id counts as removed, so that none of them can speak as a member when it comes back;
it puts its log aside and joins as a new one. The nodes' rows stay as they are.
"""

from __future__ import annotations

import msgspec

from manager.consensus.recovery import (
    Place,
    Replay,
    read_membership,
    read_tables,
    records,
)
from manager.consensus.roster import Member, Roster, encode_membership
from manager.raft.confchange import membership_of
from manager.raft.entries import ConfState, Entry
from manager.storage.forcing import Forced, LastState, NewState, force_new_cluster
from manager.store.tables import Tables


def force_only_member(place: Place) -> Forced:
    """Make the member at `place` the only one. Blocks on the disk; repeating it is safe.

    Raises: what `force_new_cluster` raises.
    """

    def rebuild(last: LastState) -> NewState:
        me = Member(last.raft_id, place.node_id, place.address)
        replay = _replayed(last)
        removed = (replay.roster.removed | replay.roster.members.keys()) - {me.raft_id}
        alone = Roster({me.raft_id: me}, frozenset(removed))
        conf_state = ConfState(voters=(me.raft_id,))
        return NewState(
            records=records(tuple(replay.tables.all_rows())),
            metadata=encode_membership(conf_state, alone),
        )

    return force_new_cluster(place.directory, place.opening, rebuild)


def _replayed(last: LastState) -> Replay:
    if last.snapshot is None or not last.snapshot.metadata:  # written before managers spoke Raft
        tables = Tables() if last.snapshot is None else read_tables(last.snapshot)
        replay = Replay(tables, membership_of(ConfState(voters=(last.raft_id,))), Roster())
    else:
        kept = read_membership(last.snapshot)
        tables = read_tables(last.snapshot)
        replay = Replay(tables, membership_of(kept.conf_state), kept.roster)
    replay.apply([Entry(*msgspec.structs.astuple(entry)) for entry in last.entries])
    return replay
