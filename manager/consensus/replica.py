"""The replicated state of one member: the store, the roster, and how entries change them.

Invariants: entries are applied in the order of the log, each once; an entry that the store refuses
is refused on every member alike; anything else that goes wrong while applying is fatal, because
the members' states would part.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import structlog

from manager.consensus.recovery import KIND_STORE, Recovery
from manager.consensus.roster import Member, Roster
from manager.consensus.waiting import Proposals
from manager.raft.confchange import decode_change
from manager.raft.entries import KIND_CONF_CHANGE, Entry
from manager.raft.node import Raft
from manager.store.store import Store
from manager.store.tables import Tables
from shoal.aio.observed import Observed
from shoal.errors import InvariantViolation, SwarmError, Unavailable
from shoal.wire.objects import entry_from_bytes

APPLY_SLICE_S = 0.002
"""Applying yields to the event loop after this long, by a clock that goes on within a turn."""

_log = structlog.get_logger()


class Replica:
    """The state machine; `applied` is ahead of Raft's own while a Ready is worked on."""

    def __init__(self, recovery: Recovery, store: Store, raft: Raft) -> None:
        self.me: Member = recovery.me
        self.store = store
        self.proposals = Proposals()
        self.roster: Observed[Roster] = Observed(recovery.roster)
        self.applied = recovery.start.applied
        self._raft = raft

    def apply(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        """Apply committed entries for a moment: `APPLY_SLICE_S`, and one entry at least.

        What is left, for later: others shall have their turn on the event loop.
        """
        slice_end_s = time.monotonic() + APPLY_SLICE_S
        for done, entry in enumerate(entries, start=1):
            if entry.kind == KIND_STORE:
                self._apply_store(entry)
            elif entry.kind == KIND_CONF_CHANGE:
                self._apply_change(entry)
            self.applied = entry.index
            if time.monotonic() > slice_end_s:
                return entries[done:]
        return ()

    def replace(self, tables: Tables, roster: Roster, index: int) -> None:
        """A leader's snapshot takes the place of everything; watchers must start anew."""
        self.store.reset(tables)
        self.applied = index
        self.roster.set(roster)
        _log.info("raft.snapshot_installed", index=index)

    def _apply_store(self, entry: Entry) -> None:
        proposal = self.proposals.take(entry.index, entry.term)
        try:
            transaction = proposal.entry if proposal else entry_from_bytes(entry.data)
        except SwarmError as error:
            raise InvariantViolation(
                f"entry {entry.index} cannot be read ({error.message}): a newer version wrote it,"
                " run that one on every manager"
            ) from error
        try:
            result = self.store.apply(transaction, entry.index, len(entry.data))
        except BaseException:
            if proposal is not None:
                proposal.refuse(Unavailable("the manager failed while applying the change"))
            raise
        if proposal is None:
            return
        if isinstance(result, SwarmError):
            proposal.refuse(result)
        elif not proposal.done.done():
            proposal.done.set_result(result)

    def _apply_change(self, entry: Entry) -> None:
        change = decode_change(entry.data)
        state = self._raft.apply_conf_change(change)
        self.roster.set(self.roster.value.after(change))
        _log.info(
            "raft.members_changed",
            voters=[f"{node:x}" for node in state.voters],
            learners=[f"{node:x}" for node in state.learners],
        )
