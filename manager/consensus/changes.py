"""Changes of the membership, one at a time, each returned from when it has taken effect.

Invariants: a removed raft id never returns; the voters that are reachable after a removal can
still decide; the last voter stays. Refuses on any member but the leader. A new member learns the
log before it votes, so that it never counts for a quorum while it cannot answer.
"""

from __future__ import annotations

import asyncio

import msgspec

from manager.consensus.driver import RaftDriver
from manager.consensus.roster import Member, encode_member
from manager.raft.confchange import ChangeKind, ConfChange, NodeChange
from manager.raft.entries import Role
from manager.raft.errors import ProposalDropped
from shoal.errors import DeadlineExceeded, FailedPrecondition, NotFound, NotLeader

CHANGE_TIMEOUT_S = 10.0
CAUGHT_UP_ENTRIES = 500
"""A learner that lacks no more than that may vote."""
_POLL_S = 0.02


class MemberStatus(msgspec.Struct, frozen=True):
    """A member as the leader sees it. behind: entries it lacks, None where it is not known."""

    member: Member
    is_voter: bool
    is_leader: bool
    is_reachable: bool
    behind: int | None


class MembershipChanges:
    """What may be done to the membership."""

    def __init__(self, driver: RaftDriver) -> None:
        self._driver = driver
        self._turn = asyncio.Lock()

    def members(self) -> tuple[MemberStatus, ...]:
        """Everybody, by raft id."""
        driver, raft = self._driver, self._driver.raft
        leading = raft.core.leading
        found: list[MemberStatus] = []
        for raft_id, member in sorted(driver.roster.members.items()):
            progress = None if leading is None else leading.progress.get(raft_id)
            found.append(
                MemberStatus(
                    member=member,
                    is_voter=raft_id in raft.membership.all_voters,
                    is_leader=raft_id == raft.leader,
                    is_reachable=driver.is_reachable(raft_id),
                    behind=None if progress is None else raft.last_index - progress.match,
                )
            )
        return tuple(found)

    async def add_learner(self, member: Member) -> None:
        """Make it a member that learns the log; changes nothing when it is one already.

        Raises: NotLeader, FailedPrecondition, InvalidArgument, DeadlineExceeded (unknown).
        """
        async with self._turn:
            self._driver.roster.check_new(member)
            if self._driver.roster.members.get(member.raft_id) == member:
                return
            membership = self._driver.raft.membership
            known = member.raft_id in membership.all_voters
            kind = ChangeKind.ADD_VOTER if known else ChangeKind.ADD_LEARNER
            await self._change(kind, member.raft_id, member)

    async def promote(self, raft_id: int) -> None:
        """Let a learner that has caught up vote.

        Raises: as `add_learner`; FailedPrecondition when it is not reachable or lacks much.
        """
        async with self._turn:
            status = self._status(raft_id)
            if status.is_voter:
                return
            if not status.is_reachable or status.behind is None:
                raise FailedPrecondition(f"manager {raft_id:x} is not reachable: it cannot vote")
            if status.behind > CAUGHT_UP_ENTRIES:
                raise FailedPrecondition(
                    f"manager {raft_id:x} lacks {status.behind} entries, at most"
                    f" {CAUGHT_UP_ENTRIES}: wait until it has caught up"
                )
            await self._change(ChangeKind.ADD_VOTER, raft_id, None)

    async def remove(self, raft_id: int) -> None:
        """Take a member out for ever. A leader that is to go hands over first.

        Raises: as `add_learner`; NotLeader after handing over (ask the new leader);
        FailedPrecondition for the last voter, or when the rest could not decide.
        """
        async with self._turn:
            if raft_id in self._driver.roster.removed:
                return
            status = self._status(raft_id)
            if status.is_voter:
                self._check_quorum_without(raft_id)
            if raft_id == self._driver.raft.id:
                await self.hand_over()
                raise self._driver.not_leader()
            await self._change(ChangeKind.REMOVE, raft_id, None)

    async def hand_over(self) -> None:
        """Make the most advanced reachable voter lead. Raises: FailedPrecondition without one."""
        await self.transfer_leader(self._successor().member.raft_id)

    def begin_hand_over(self, node_id: str = "") -> str:
        """Begin to make a node's manager lead, "" = as `hand_over`; the node that is to lead.

        Watch the leadership for the outcome. Raises: NotLeader; FailedPrecondition when the node
        cannot lead now.
        """
        chosen = self._candidate(node_id) if node_id else self._successor()
        self._driver.transfer_leader(chosen.member.raft_id)
        return chosen.member.node_id

    async def transfer_leader(self, raft_id: int) -> None:
        """Hand leadership to a voter and wait until it leads, or another one does.

        Raises: NotLeader, FailedPrecondition; DeadlineExceeded when this one leads on.
        """
        driver = self._driver
        driver.transfer_leader(raft_id)
        if raft_id == driver.raft.id:
            return
        try:
            async with asyncio.timeout(CHANGE_TIMEOUT_S):
                await driver.leading.until(lambda now: now.leader not in (0, driver.raft.id))
        except TimeoutError:
            raise DeadlineExceeded(
                f"leadership was not taken over by manager {raft_id:x}: it goes on as before"
            ) from None

    def _successor(self) -> MemberStatus:
        others = [
            one for one in self.members()
            if one.is_voter and one.is_reachable and one.member.raft_id != self._driver.raft.id
        ]  # fmt: skip
        if not others:
            raise FailedPrecondition("leadership: no other voter is reachable")
        return min(others, key=lambda one: (one.behind is None, one.behind or 0))

    def _candidate(self, node_id: str) -> MemberStatus:
        member = self._driver.roster.of_node(node_id)
        if member is None:
            raise FailedPrecondition(
                f"leadership: node {node_id} is no manager: promote it first"
                f" (`swarmctl node promote {node_id}`)"
            )
        status = self._status(member.raft_id)
        if not status.is_voter:
            raise FailedPrecondition(
                f"leadership: node {node_id} does not vote yet: wait until it has caught up"
            )
        if not status.is_reachable:
            raise FailedPrecondition(f"leadership: node {node_id} is not reachable: start it first")
        return status

    def _status(self, raft_id: int) -> MemberStatus:
        if self._driver.raft.role is not Role.LEADER:
            raise self._driver.not_leader()
        for status in self.members():
            if status.member.raft_id == raft_id:
                return status
        raise NotFound(f"manager {raft_id:x} is no member of the cluster")

    def _check_quorum_without(self, raft_id: int) -> None:
        left = self._driver.raft.membership.voters - {raft_id}
        if not left:
            raise FailedPrecondition(
                "the last manager cannot be removed from the cluster: use `swarmctl leave --force`"
                " on it to end the cluster"
            )
        reachable = sum(1 for voter in left if self._driver.is_reachable(voter))
        if reachable < len(left) // 2 + 1:
            raise FailedPrecondition(
                f"manager {raft_id:x} cannot be removed: of the {len(left)} managers left only"
                f" {reachable} are reachable, which is no majority"
            )

    async def _change(self, kind: ChangeKind, raft_id: int, member: Member | None) -> None:
        """Propose until it is taken, then wait until it has taken effect."""
        driver = self._driver
        context = b"" if member is None else encode_member(member)
        change = ConfChange((NodeChange(kind, raft_id),), context=context)
        term = driver.raft.term
        try:
            async with asyncio.timeout(CHANGE_TIMEOUT_S):
                index = await self._propose(change)
                driver.wake()
                while driver.replica.applied < index:
                    if (driver.raft.term, driver.raft.role) != (term, Role.LEADER):
                        raise NotLeader(
                            "leadership was lost while the membership changed: it may or may not"
                            " have taken effect"
                        )
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise DeadlineExceeded(
                f"the change was not committed within {CHANGE_TIMEOUT_S:g} s: it may still be"
            ) from None

    async def _propose(self, change: ConfChange) -> int:
        raft = self._driver.raft
        while True:
            leading = raft.core.leading
            if leading is None:
                raise self._driver.not_leader()
            if leading.pending_conf > raft.applied:
                await asyncio.sleep(_POLL_S)  # one of an earlier leader may be under way
                continue
            try:
                return raft.propose_conf_change(change)
            except ProposalDropped:
                await asyncio.sleep(_POLL_S)
