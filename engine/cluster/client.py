"""The engine's calls to the cluster: over the node's own socket, as swarmctl makes them.

Rows in, rows out. Every unary call has a deadline. What fails says so as Docker does: on a node
that is no manager with 503 and the reason, otherwise with the status the Docker API has for it.
"""

from __future__ import annotations

from collections.abc import Awaitable

import grpc

from engine.cluster.calls import CALL_TIMEOUT_S, PAGE_SIZE, AnswerT
from engine.cluster.file_calls import FileCalls
from engine.cluster.network_calls import NetworkCalls
from engine.cluster.service_calls import ServiceCalls
from engine.cluster.standing import ALREADY_IN_A_SWARM
from engine.http.errors import Refused
from shoal.api.v1 import control_pb2, node_pb2, specs_pb2, types_pb2
from shoal.errors import FailedPrecondition, InvalidArgument, Unavailable
from shoal.model.objects import Cluster, Node
from shoal.model.specs import ClusterSpec, NodeSpec
from shoal.model.types import ExternalCa
from shoal.security.tokens import parse_join_token
from shoal.wire.errors import from_rpc_error
from shoal.wire.objects import from_pb, to_pb

CHANGE_TIMEOUT_S = 120.0
"""Of init, join, leave and unlock, which start and stop processes."""


class ClusterClient(FileCalls, NetworkCalls, ServiceCalls):
    """The way to the node's daemon. Close it."""

    async def init(self, request: node_pb2.InitRequest) -> str:
        """Make a cluster of this node; the node's id."""
        await self._require_no_cluster()
        answer = await self._own(self._node.Init(request, timeout=CHANGE_TIMEOUT_S))
        return answer.node_id

    async def join(self, request: node_pb2.JoinRequest) -> None:
        """Let this node join a cluster. Raises: Refused, as Docker for a token that is none."""
        await self._require_no_cluster()
        try:
            parse_join_token(request.token)
        except InvalidArgument as error:
            raise Refused(500, "invalid join token") from error
        await self._own(self._node.Join(request, timeout=CHANGE_TIMEOUT_S))

    async def leave(self, *, force: bool) -> None:
        """Let this node leave its cluster."""
        request = node_pb2.LeaveRequest(force=force)
        await self._own(self._node.Leave(request, timeout=CHANGE_TIMEOUT_S))

    async def unlock(self, key: str) -> None:
        """Open this node's locked manager. Raises: PermissionDenied for the wrong key."""
        request = node_pb2.UnlockRequest(unlock_key=key)
        try:
            await self._node.Unlock(request, timeout=CHANGE_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    # The cluster.

    async def cluster(self) -> Cluster:
        """The cluster, without its keys."""
        request = control_pb2.GetClusterRequest()
        answer = await self._call(self._control.GetCluster(request, timeout=CALL_TIMEOUT_S))
        return from_pb(answer.cluster, Cluster)

    async def update_cluster(
        self,
        version: int,
        spec: ClusterSpec,
        *,
        worker_token: bool = False,
        manager_token: bool = False,
        unlock_key: bool = False,
    ) -> None:
        """Other settings; the flags say what is rotated."""
        request = control_pb2.UpdateClusterRequest(
            version=types_pb2.Version(index=version),
            spec=to_pb(spec, specs_pb2.ClusterSpec),
            rotate_worker_token=worker_token,
            rotate_manager_token=manager_token,
            rotate_unlock_key=unlock_key,
        )
        await self._call(self._control.UpdateCluster(request, timeout=CHANGE_TIMEOUT_S))

    async def rotate_root(
        self, certificate: bytes, key: bytes, external: tuple[ExternalCa, ...]
    ) -> None:
        """Begin to replace the root certificate; all empty: by a new one."""
        request = control_pb2.RotateRootCaRequest(
            ca_certificate=certificate,
            ca_key=key,
            external_cas=[to_pb(one, types_pb2.ExternalCa) for one in external],
        )
        await self._call(self._control.RotateRootCa(request, timeout=CHANGE_TIMEOUT_S))

    async def unlock_key(self) -> str:
        """What managers are unlocked with; empty while they are not locked."""
        request = control_pb2.GetUnlockKeyRequest()
        answer = await self._call(self._control.GetUnlockKey(request, timeout=CALL_TIMEOUT_S))
        return answer.unlock_key

    async def nodes(self, filters: control_pb2.Filters | None = None) -> list[Node]:
        """The nodes that fit."""
        request = control_pb2.ListNodesRequest(filters=filters, page_size=PAGE_SIZE)
        found: list[Node] = []
        async for answer in self._pages(self._control.ListNodes, request):
            found += (from_pb(one, Node) for one in answer.nodes)
        return found

    async def node(self, reference: str) -> Node:
        """A node by id, name or unique id prefix."""
        request = control_pb2.GetNodeRequest(node=reference)
        answer = await self._call(self._control.GetNode(request, timeout=CALL_TIMEOUT_S))
        return from_pb(answer.node, Node)

    async def update_node(self, reference: str, version: int, spec: NodeSpec) -> None:
        """Another spec for a node."""
        request = control_pb2.UpdateNodeRequest(
            node=reference,
            version=types_pb2.Version(index=version),
            spec=to_pb(spec, specs_pb2.NodeSpec),
        )
        await self._call(self._control.UpdateNode(request, timeout=CALL_TIMEOUT_S))

    async def remove_node(self, reference: str, *, force: bool) -> None:
        """Take a node out of the cluster."""
        request = control_pb2.RemoveNodeRequest(node=reference, force=force)
        await self._call(self._control.RemoveNode(request, timeout=CALL_TIMEOUT_S))

    # How calls fail.

    async def _require_no_cluster(self) -> None:
        if not self._socket.exists():
            raise Unavailable(
                f"{self._socket}: nothing listens there: start the node with `swarmd`"
            )
        if (await self.standing()).is_member:
            raise Refused(503, ALREADY_IN_A_SWARM)

    async def _own(self, call: Awaitable[AnswerT]) -> AnswerT:
        """The answer of this node's daemon about the node's own membership."""
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            failure = from_rpc_error(error)
            if isinstance(failure, FailedPrecondition):
                raise Refused(503, failure.message) from error
            raise failure from error
