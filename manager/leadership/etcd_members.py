"""What the leader does about the managers when the state is in etcd.

Nobody joins or leaves a group here: whoever may write to etcd and has a manager's certificate is a
manager. Those that run say so in etcd, on a lease; the leader keeps it in their nodes' rows. It
resigns before it is demoted itself: another manager does that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from typing_extensions import override

from manager.consensus.changes import MemberStatus
from manager.consensus.roster import Member
from manager.etcd.backend import EtcdConsensus, Presence
from manager.leadership.members import status_changes
from manager.leadership.work import OVER
from manager.store.store import Store, commit_with_retry
from manager.store.view import View
from shoal.aio.cancel import raise_if_cancelled
from shoal.api.v1 import raft_pb2 as pb
from shoal.api.v1.raft_pb2_grpc import RaftMembershipServicer
from shoal.errors import FailedPrecondition, NotLeader, SwarmError
from shoal.model.enums import NodeRole
from shoal.model.plan import Change
from shoal.model.types import ManagerStatus

PERIOD_S = 1.0
RESIGN_AFTER_S = 0.5
NO_LOG = (
    "this cluster's managers keep their state in etcd, not in logs of their own: give this node's"
    " swarmd the --store that theirs have"
)

_log = structlog.get_logger()


class EtcdMembers:
    """Implements `manager.roles.loop.Membership`; `run` keeps it up to date. Leader only."""

    def __init__(self, consensus: EtcdConsensus, store: Store, node_id: str) -> None:
        """node_id: this node."""
        self._consensus = consensus
        self._store = store
        self._node_id = node_id
        self._present: Mapping[str, Presence] = {}

    def members(self) -> Sequence[MemberStatus]:
        """Every manager, as last seen."""
        return members_of(self._store.view, self._present, self._node_id)

    async def remove(self, raft_id: int) -> None:
        """Let go of a manager. Raises: NotLeader when it was this one, which has resigned."""
        me = self._present.get(self._node_id)
        if me is not None and me.lease == raft_id:
            await asyncio.sleep(RESIGN_AFTER_S)  # whoever asked for it is to hear that it is done
            await self._consensus.resign()
            raise NotLeader(OVER)

    async def run(self) -> None:
        """Look who runs, and keep it in the nodes' rows, for ever."""
        while True:
            try:
                self._present = await self._consensus.managers()
                await commit_with_retry(self._store, self._status_changes)
            except SwarmError as error:
                raise_if_cancelled()
                _log.warning("managers.status_not_written", reason=error.message)
            await asyncio.sleep(PERIOD_S)

    def _status_changes(self, view: View) -> list[Change]:
        wanted = {
            one.member.node_id: ManagerStatus(
                address=one.member.address, leader=one.is_leader, reachable=one.is_reachable
            )
            for one in members_of(view, self._present, self._node_id)
        }
        return status_changes(view, wanted)


class NoRaftMembers(RaftMembershipServicer):
    """Tells a manager that looks for a log to learn that there is none."""

    @override
    async def Join(self, request: pb.JoinRaftRequest, context: Any) -> pb.JoinRaftResponse:
        raise FailedPrecondition(NO_LOG)

    @override
    async def Leave(self, request: pb.LeaveRaftRequest, context: Any) -> pb.LeaveRaftResponse:
        raise FailedPrecondition(NO_LOG)


def members_of(
    view: View, present: Mapping[str, Presence], leader_id: str
) -> tuple[MemberStatus, ...]:
    """The managers by node id: those that run and are wanted, those that are missed, the leader.

    One that is to be a worker is none any more, whether it runs or not; but the leader is one for
    as long as it leads. The lease of a manager that runs stands for its raft id.
    """
    found: list[MemberStatus] = []
    for node in sorted(view.nodes, key=lambda one: one.id):
        here = present.get(node.id)
        leads = node.id == leader_id
        wanted = node.spec.desired_role is NodeRole.MANAGER
        if here is not None and (wanted or leads):
            member = Member(here.lease, node.id, here.address)
        elif leads or (wanted and node.role is NodeRole.MANAGER):
            known = node.manager_status
            member = Member(0, node.id, "" if known is None else known.address)
        else:
            continue
        up = here is not None or leads
        found.append(
            MemberStatus(member, is_voter=True, is_leader=leads, is_reachable=up, behind=None)
        )
    return tuple(found)
