"""What a Raft node wants done, and what its driver owes it in return."""

from __future__ import annotations

import msgspec

from manager.raft.entries import Entry, HardState, ReadState, Snapshot, SoftState
from manager.raft.messages import Message


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """One round of work. Until `Raft.advance` is given this very object, there is no other.

    The duties, and what is lost when one is broken:

    1. `messages` may leave at once, while the disk still writes. All else below waits for it.
    2. `snapshot`, then `entries` and `hard_state` in one atomic batch, must be durable before any
       of `messages_after_sync` leaves and before `advance`. The entries replace what the disk
       holds from their first index on. A promise that leaves before it is durable is broken by a
       power cut: a vote is given twice, an acknowledged entry is gone (committed data is lost).
    3. With `must_sync` the batch needs a sync. Without it only the commit index changed: write it
       at leisure, a lost one is found again. (It needs the sync when a membership change waits to
       be applied: that must not be forgotten once it took effect.)
    4. `committed_entries` are durable here already and may be applied at once, in order, exactly
       once. Entries of KIND_EMPTY are skipped. Each KIND_CONF_CHANGE goes to
       `Raft.apply_conf_change` before `advance`. Whoever waits for a proposal is answered after
       its entry came by here, never earlier; in a cluster of one, too (etcd #14370).
    5. `snapshot` replaces the application's whole state before `committed_entries` of any later
       Ready are applied.
    6. `read_states` are served once their index is applied. When `soft_state` says that the
       leader changed, reads that are still waiting will not be answered: ask again.
    7. A disk error is the end of the process. Nothing may be retried: what a failed sync left
       behind is not known.

    `soft_state` and `hard_state` are None when they did not change.
    """

    messages: tuple[Message, ...] = ()
    messages_after_sync: tuple[Message, ...] = ()
    entries: tuple[Entry, ...] = ()
    hard_state: HardState | None = None
    snapshot: Snapshot | None = None
    must_sync: bool = False
    committed_entries: tuple[Entry, ...] = ()
    soft_state: SoftState | None = None
    read_states: tuple[ReadState, ...] = ()
