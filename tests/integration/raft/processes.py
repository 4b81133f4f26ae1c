"""Several real manager processes of one cluster on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import msgspec

from bench.founding import Founded
from shoal.api.v1 import control_pb2 as pb
from shoal.api.v1 import node_pb2
from shoal.api.v1.control_pb2_grpc import ControlStub
from shoal.api.v1.node_pb2_grpc import TelemetryStub
from shoal.ids import NodeId, new_id
from shoal.model.enums import ActionKind, NodeRole
from shoal.model.objects import Node, StoreAction
from shoal.model.specs import NodeSpec
from shoal.security.grpc_tls import channel_credentials, local_channel, secure_channel
from shoal.security.identity import NodeIdentity, make_identity, write_identity
from shoal.security.keys import make_csr, make_key
from shoal.security.roles import PeerIdentity, Role
from shoal.security.root import RootCA
from shoal.settings.node import NodeConfig, write_durably, write_node_config
from shoal.wire.objects import entry_from_bytes, entry_to_bytes
from tests.integration.manager.process import ManagerProcess


class Joiner(ManagerProcess):
    """A manager without a log, of the cluster of another one."""

    def __init__(self, directory: Path, first: ManagerProcess) -> None:
        self.first = first
        super().__init__(directory)

    def _initialise(self) -> Founded:
        founded = msgspec.structs.replace(self.first.founded, node_id=NodeId(new_id()))
        config = NodeConfig(
            advertise_address=self.address,
            listen_address=self.address,
            data_path_address="127.0.0.1",
            managers=(self.first.address,),
        )
        write_node_config(self.paths.node_config, config)
        identity = an_identity_of(self.first, founded.node_id, Role.MANAGER)
        write_identity(self.paths.identity, identity)
        return founded


def an_identity_of(manager: ManagerProcess, node_id: str, role: Role) -> NodeIdentity:
    """An identity signed by the cluster's root."""
    root = RootCA(manager.secrets.root_certificate_pem, manager.secrets.root_key_pem)
    key = make_key()
    peer = PeerIdentity(NodeId(node_id), role, manager.cluster_id)
    certificate = root.sign(make_csr(key), peer, now_ns=time.time_ns())
    return make_identity(certificate, key, root.certificate_pem)


class Managers:
    """A cluster; `workers` are ids of nodes that are none of its managers."""

    def __init__(self, directory: Path, count: int) -> None:
        first = ManagerProcess(directory / "m0")
        self.all: list[ManagerProcess] = [first]
        self.all += [Joiner(directory / f"m{n}", first) for n in range(1, count)]
        self.workers = [new_id() for _ in range(2)]
        entry = entry_from_bytes(first.paths.bootstrap.read_bytes())
        more = [a_node(one.node_id, NodeRole.MANAGER) for one in self.all[1:]]
        more += [a_node(node_id, NodeRole.WORKER) for node_id in self.workers]
        actions = (
            *entry.actions,
            *(StoreAction(object=node, kind=ActionKind.CREATE) for node in more),
        )
        write_durably(first.paths.bootstrap, entry_to_bytes(entry.replaced(actions=actions)))

    async def start(self) -> None:
        for manager in self.all:
            manager.start()
        await self.until_members(len(self.all))

    async def until_members(self, count: int) -> None:
        """Wait until every one that runs answers, and the leader reaches `count` of them."""
        async with asyncio.timeout(60):
            for manager in self.running:
                async with local_channel(manager.paths.manager_socket) as channel:
                    await self._until_ready(TelemetryStub(channel))
            while True:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    nodes = await self.nodes()
                    members = [one for one in nodes if one.HasField("manager_status")]
                    good = [one for one in members if one.manager_status.reachable]
                    if len(good) == count and any(one.manager_status.leader for one in good):
                        return
                await asyncio.sleep(0.05)

    async def _until_ready(self, telemetry: TelemetryStub) -> None:
        """Ready means that it votes, too."""
        request = node_pb2.GetReadinessRequest()
        while not (await telemetry.GetReadiness(request, wait_for_ready=True)).ready:
            await asyncio.sleep(0.05)

    async def nodes(self, through: ManagerProcess | None = None):
        async with local_channel((through or self.running[0]).paths.manager_socket) as channel:
            answer = await ControlStub(channel).ListNodes(pb.ListNodesRequest(), timeout=10)
        return answer.nodes

    @property
    def running(self) -> Sequence[ManagerProcess]:
        return [one for one in self.all if one.process and one.process.poll() is None]

    async def leader(self) -> ManagerProcess:
        async with asyncio.timeout(60):
            while True:
                for through in self.running:
                    with contextlib.suppress(grpc.aio.AioRpcError):
                        for node in await self.nodes(through):
                            if node.manager_status.leader:
                                return next(one for one in self.all if one.node_id == node.id)
                await asyncio.sleep(0.05)

    async def follower(self) -> ManagerProcess:
        leader = await self.leader()
        return next(one for one in self.running if one is not leader)

    def dial(self, manager: ManagerProcess, identity: NodeIdentity) -> grpc.aio.Channel:
        credentials = channel_credentials(
            identity.root_pem, identity.certificate_pem, identity.key_pem
        )
        return secure_channel(manager.address, credentials)


def a_node(node_id: str, role: NodeRole) -> Node:
    return Node(id=node_id, role=role, spec=NodeSpec(desired_role=role))


@contextlib.contextmanager
def some_managers(directory: Path, count: int) -> Iterator[Managers]:
    managers = Managers(directory, count)
    try:
        yield managers
    finally:
        for one in managers.all:
            one.close()
