"""NodeControl on the node's own socket: what this node is, and init, restore, join and leave."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from typing_extensions import override

from shoal.api.v1 import node_pb2, node_pb2_grpc, types_pb2
from shoal.clock import SystemClock
from shoal.errors import InvalidArgument, Unavailable
from shoal.model.enums import NodeRole
from shoal.model.types import ExternalCa
from shoal.security.roles import Role
from shoal.security.unlock import parse_unlock_key
from shoal.wire.objects import from_pb
from shoal.wire.uploads import GO_ON
from swarmd.core import InitWish
from swarmd.doctor import look
from swarmd.doctor.examine import examine
from swarmd.host import read_host
from swarmd.membership import JoinWish, MembershipChanges, RestoreWish
from swarmd.node import LocalNode
from swarmd.settings import VERSION, DaemonSettings
from swarmd.status import NodeStatus


class Fixed(msgspec.Struct, frozen=True):
    """What does not change while swarmd runs. metrics_address: bound, empty: off."""

    settings: DaemonSettings
    metrics_address: str


class NodeServer(node_pb2_grpc.NodeControlServicer):
    """The servicer."""

    def __init__(
        self, facts: Fixed, node: LocalNode, status: NodeStatus, changes: MembershipChanges
    ) -> None:
        self._facts = facts
        self._node = node
        self._status = status
        self._changes = changes

    @override
    async def Info(self, request: node_pb2.InfoRequest, context: Any) -> node_pb2.InfoResponse:
        host = await asyncio.to_thread(read_host)
        membership, paths = self._node.membership, self._facts.settings.paths
        answer = node_pb2.InfoResponse(
            version=VERSION,
            hostname=self._facts.settings.hostname,
            state=self._node.state,
            error=self._node.error,
            managers=membership.managers,
            state_dir=str(paths.state),
            metrics_address=self._facts.metrics_address,
            kernel=host.kernel,
            os=host.os,
            architecture=host.architecture,
            nano_cpus=host.nano_cpus,
            memory_bytes=host.memory_bytes,
            processes=self._status.pids(),
            docker_socket=str(paths.docker_socket) if paths.docker_socket.exists() else "",
            cgroup_version=host.cgroup_version,
            not_ready=await self._status.reasons(),
        )
        if membership.identity is not None and membership.config is not None:
            peer = membership.identity.peer
            answer.node_id = peer.node_id
            answer.cluster_id = peer.cluster_id
            answer.role = _role(peer.role)
            answer.advertise_address = membership.config.advertise_address
        return answer

    @override
    async def Diagnose(
        self, request: node_pb2.DiagnoseRequest, context: Any
    ) -> node_pb2.DiagnoseResponse:
        if len(request.peers) > look.PEERS_MAX:
            raise InvalidArgument(f"peers: {len(request.peers)}, at most {look.PEERS_MAX}")
        peers = [_peer(one) for one in request.peers]
        found = await examine(
            self._node.membership,
            not_ready=await self._status.reasons(),
            peers=peers,
            clock=SystemClock(),
        )
        return node_pb2.DiagnoseResponse(
            findings=[
                node_pb2.Finding(
                    check=one.check,
                    level=node_pb2.FindingLevel.ValueType(one.level),
                    what=one.what,
                    remedy=one.remedy,
                )
                for one in found
            ]
        )

    @override
    async def Init(self, request: node_pb2.InitRequest, context: Any) -> node_pb2.InitResponse:
        cluster = await self._changes.init(
            InitWish(
                advertise_address=request.advertise_address,
                listen_address=request.listen_address,
                data_path_address=request.data_path_address,
                availability=request.availability,
                data_path_port=request.data_path_port,
                ingress_pool=request.ingress_pool,
                default_address_pools=tuple(request.default_address_pools),
                default_address_pool_mask_length=request.default_address_pool_mask_length,
                task_history_retention_limit=_optional(request, "task_history_retention_limit"),
                dispatcher_heartbeat_period_ns=_optional(request, "dispatcher_heartbeat_period_ns"),
                node_certificate_validity_ns=_optional(request, "node_certificate_validity_ns"),
                snapshot_interval=_optional(request, "snapshot_interval"),
                autolock=request.autolock,
                external_cas=tuple(from_pb(one, ExternalCa) for one in request.external_cas),
            )
        )
        peer, tokens = cluster.identity.peer, cluster.secrets.tokens
        return node_pb2.InitResponse(
            node_id=peer.node_id,
            cluster_id=peer.cluster_id,
            join_tokens=types_pb2.JoinTokens(worker=tokens.worker, manager=tokens.manager),
            advertise_address=cluster.advertise_address,
            unlock_key="" if cluster.unlock_key is None else cluster.unlock_key.render(),
        )

    @override
    async def Join(self, request: node_pb2.JoinRequest, context: Any) -> node_pb2.JoinResponse:
        identity = await self._changes.join(
            JoinWish(
                remote_addresses=tuple(request.remote_addresses),
                token=request.token,
                advertise_address=request.advertise_address,
                listen_address=request.listen_address,
                data_path_address=request.data_path_address,
                availability=request.availability,
            )
        )
        return node_pb2.JoinResponse(
            node_id=identity.peer.node_id,
            cluster_id=identity.peer.cluster_id,
            role=_role(identity.peer.role),
        )

    @override
    async def Leave(self, request: node_pb2.LeaveRequest, context: Any) -> node_pb2.LeaveResponse:
        await self._changes.leave(force=request.force)
        return node_pb2.LeaveResponse()

    @override
    async def Unlock(
        self, request: node_pb2.UnlockRequest, context: Any
    ) -> node_pb2.UnlockResponse:
        await self._changes.unlock(parse_unlock_key(request.unlock_key))
        return node_pb2.UnlockResponse()

    @override
    async def Restore(
        self, request_iterator: AsyncIterator[node_pb2.RestoreRequest], context: Any
    ) -> node_pb2.RestoreResponse:
        first = await anext(request_iterator, None)
        if first is None or not first.HasField("options"):
            raise InvalidArgument("options: must be given, in the first message")
        options = first.options
        wish = RestoreWish(
            advertise_address=options.advertise_address,
            listen_address=options.listen_address,
            data_path_address=options.data_path_address,
            availability=options.availability,
            ca_key=options.ca_key,
        )
        restored = await self._changes.restore(wish, _chunks(request_iterator, context))
        return node_pb2.RestoreResponse(
            node_id=restored.identity.peer.node_id,
            cluster_id=restored.identity.peer.cluster_id,
            advertise_address=restored.advertise_address,
            objects=restored.objects,
            created_at_ns=restored.created_at_ns,
            known_nodes=restored.known_nodes,
            autolock=restored.autolock,
        )


async def _chunks(
    requests: AsyncIterator[node_pb2.RestoreRequest], context: Any
) -> AsyncIterator[bytes]:
    """The file's bytes. Raises: Unavailable when the client breaks off.

    The client does not send them before it hears that nothing speaks against it: a refusal that
    comes while it sends may be lost on its side.
    """
    await context.send_initial_metadata(GO_ON)
    async for request in requests:
        if request.HasField("options"):
            raise InvalidArgument("options: only the first message may carry them")
        yield request.chunk
        if request.last:
            return
    raise Unavailable("backup: its client broke off before the end: try again")


def _optional(request: node_pb2.InitRequest, field: Any) -> int | None:
    return int(getattr(request, field)) if request.HasField(field) else None


def _role(role: Role) -> types_pb2.NodeRole.ValueType:
    number = NodeRole.MANAGER if role is Role.MANAGER else NodeRole.WORKER
    return types_pb2.NodeRole.ValueType(number)


def _peer(message: node_pb2.DiagnosePeer) -> look.Peer:
    try:
        for text in filter(None, (message.address, message.gateway)):
            ipaddress.IPv4Address(text)
    except ValueError as error:
        raise InvalidArgument(f"peer {message.name}: {error}") from error
    return look.Peer(message.name, message.address, message.gateway, message.ipv6)
