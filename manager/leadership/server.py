"""The RaftMembership service: managers that want to be members, or to be none any more."""

from __future__ import annotations

from typing import Any, Protocol

import grpc
import structlog
from typing_extensions import override

from manager.consensus.changes import MembershipChanges
from manager.consensus.driver import RaftDriver
from manager.consensus.roster import Member
from manager.store.store import Store
from shoal.api.v1 import raft_pb2 as pb
from shoal.api.v1.raft_pb2_grpc import RaftMembershipServicer
from shoal.errors import FailedPrecondition, NotFound, SwarmError
from shoal.model.enums import NodeRole
from shoal.security.peer import current_peer

Context = grpc.aio.ServicerContext[Any, Any]

_log = structlog.get_logger()


class Prober(Protocol):
    """Tries to reach a manager."""

    async def probe(self, member: Member) -> None:
        """Raises: Unreachable when nobody with that raft id answers there, Unavailable."""
        ...


class RaftMembershipServer(RaftMembershipServicer):
    """Serves `shoal.api.v1.RaftMembership` on the leader."""

    def __init__(
        self,
        driver: RaftDriver,
        changes: MembershipChanges,
        store: Store,
        prober: Prober,
        refused: dict[str, str],
    ) -> None:
        """refused: takes down why nodes were not let in, by id, until they are."""
        self._refused = refused
        self._driver = driver
        self._changes = changes
        self._store = store
        self._prober = prober

    @override
    async def Join(self, request: pb.JoinRaftRequest, context: Context) -> pb.JoinRaftResponse:
        node_id = current_peer().node_id
        node = self._store.view.nodes.get(node_id)
        if node is None:
            raise FailedPrecondition(f"node {node_id} is not in the cluster: let it join again")
        if node.spec.desired_role is not NodeRole.MANAGER:
            raise FailedPrecondition(f"node {node_id} is to be a worker: promote it first")
        try:
            await self._let_in(Member(request.raft_id, node_id, request.address))
        except SwarmError as error:
            self._refused[node_id] = error.message
            raise
        self._refused.pop(node_id, None)
        response = pb.JoinRaftResponse()
        for one in self._driver.roster.members.values():
            response.members.add(raft_id=one.raft_id, node_id=one.node_id, address=one.address)
        return response

    @override
    async def Leave(self, request: pb.LeaveRaftRequest, context: Context) -> pb.LeaveRaftResponse:
        raft_id = request.raft_id
        if not raft_id:
            own = self._driver.roster.of_node(current_peer().node_id)
            if own is None:
                raise NotFound(f"node {current_peer().node_id} is no member")
            raft_id = own.raft_id
        await self._changes.remove(raft_id)
        return pb.LeaveRaftResponse()

    async def _let_in(self, member: Member) -> None:
        roster = self._driver.roster
        roster.check_new(member)
        if roster.members.get(member.raft_id) != member:
            # A member that cannot be reached would never learn the log, and vote never.
            await self._prober.probe(member)
            await self._changes.add_learner(member)
            _log.info("raft.joined", node_id=member.node_id, address=member.address)
