"""The agent's calls to a manager: rows in, rows out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping

import grpc

from shoal.api.v1 import dispatcher_pb2 as pb
from shoal.api.v1 import logs_pb2, types_pb2
from shoal.api.v1.dispatcher_pb2_grpc import DispatcherStub
from shoal.api.v1.logs_pb2_grpc import LogBrokerStub
from shoal.errors import DeadlineExceeded, InvalidArgument, Unavailable
from shoal.model import defaults
from shoal.model.enums import PublishMode, PublishPreference, PublishSource
from shoal.model.files import FileRow
from shoal.model.objects import Config, Network, Node, Secret, Task
from shoal.model.row import Row
from shoal.model.types import (
    NetworkAttachmentConfig,
    NetworkKey,
    NodeDescription,
    TaskStatus,
)
from shoal.wire.errors import from_rpc_error
from shoal.wire.objects import from_pb, to_pb
from worker.agent.files import FileKey
from worker.agent.overlays import OverlayItem
from worker.network.api import Peer, PublishedPort
from worker.network.overlay.api import OverlayEndpoint, OverlayNetwork, OverlayService

RPC_TIMEOUT_S = 5.0
ATTACH_TIMEOUT_S = 30.0
"""The manager waits for an address; it says why there is none after 20 s."""
_FILES: dict[str, type[FileRow]] = {"secret": Secret, "config": Config}
PROTOCOLS = {0: "tcp", 1: "udp", 2: "sctp"}


class SessionNews(Row, frozen=True):
    """What the manager says of the node and of the cluster. weights: of managers, by address."""

    session_id: str
    node: Node
    managers: tuple[str, ...]
    data_path_port: int
    root_ca: bytes = b""
    weights: Mapping[str, int] = {}
    network_key_generation: int = 0


class PortKey(Row, frozen=True):
    """Identity of a published port in assignments."""

    service_id: str
    protocol: str
    published_port: int
    address: str = ""
    interface: str = ""


class AssignmentsBatch:
    """One message of the stream, decoded."""

    def __init__(self, message: pb.AssignmentsMessage) -> None:
        self.complete = message.kind == pb.ASSIGNMENTS_KIND_COMPLETE
        self.applies_to = message.applies_to
        self.results_in = message.results_in
        self.more = message.more
        self.endpoints_version = message.endpoints_version
        self.tasks: list[Task] = []
        self.removed_tasks: list[str] = []
        self.peers: list[Peer] = []
        self.removed_peers: list[str] = []
        self.ports: dict[PortKey, PublishedPort] = {}
        self.removed_ports: list[PortKey] = []
        self.overlays: list[OverlayItem] = []
        self.removed_overlays: list[OverlayItem] = []
        self.files: list[FileRow] = []
        self.removed_files: list[FileKey] = []
        for change in message.changes:
            self._add(change)

    def _add(self, change: pb.AssignmentChange) -> None:
        item = change.assignment
        match item.WhichOneof("item"):
            case "task" if change.remove:
                self.removed_tasks.append(item.task.id)
            case "task":
                self.tasks.append(from_pb(item.task, Task))
            case "peer" if change.remove:
                self.removed_peers.append(item.peer.node_id)
            case "peer":
                self.peers.append(_peer(item.peer))
            case "port" if change.remove:
                self.removed_ports.append(_port_key(item.port))
            case "port":
                self.ports[_port_key(item.port)] = _port(item.port)
            case "secret" | "config" as kind if change.remove:
                self.removed_files.append((_FILES[kind], getattr(item, kind).id))
            case "secret" | "config" as kind:
                self.files.append(from_pb(getattr(item, kind), _FILES[kind]))
            case "network" | "overlay_service" | "overlay_endpoint":
                items = self.removed_overlays if change.remove else self.overlays
                items.append(_overlay(item))
            case _:
                raise Unavailable("the manager assigns something this version does not know")


class ManagerClient:
    """One manager, over one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._dispatcher = DispatcherStub(channel)
        self._logs = LogBrokerStub(channel)
        self.session_id = ""

    async def session(self, description: NodeDescription) -> AsyncGenerator[SessionNews, None]:
        """Register, and hear what changes. The session lasts as long as this is read."""
        request = pb.SessionRequest(
            description=to_pb(description, types_pb2.NodeDescription), session_id=self.session_id
        )
        call = self._dispatcher.Session(request)
        try:
            async for message in call:
                self.session_id = message.session_id
                yield SessionNews(
                    session_id=message.session_id,
                    node=from_pb(message.node, Node),
                    managers=tuple(manager.address for manager in message.managers),
                    data_path_port=message.data_path_port,
                    root_ca=message.root_ca,
                    weights={one.address: one.weight for one in message.managers},
                    network_key_generation=message.network_key_generation,
                )
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()  # gRPC forgets to, before the first message
        raise Unavailable("the manager has ended the session")

    async def beat(self, *, least_s: float, answered: Callable[[], None] = lambda: None) -> None:
        """Beat for ever, as often as the manager says, but no sooner than `least_s` after the last.

        answered: called with each answer; from the first on the session works both ways.
        Raises Unavailable or what the manager says when it ends, DeadlineExceeded when the manager
        does not answer.
        """
        period_s = defaults.HEARTBEAT_PERIOD_NS / 1e9
        request = pb.HeartbeatRequest(session_id=self.session_id)

        async def beats() -> AsyncIterator[pb.HeartbeatRequest]:
            while True:
                yield request
                await asyncio.sleep(max(period_s, least_s))

        call = self._dispatcher.Heartbeat(beats())
        answers = aiter(call)
        try:
            while True:
                async with asyncio.timeout(RPC_TIMEOUT_S + 2 * period_s):
                    period_s = (await anext(answers)).period_ns / 1e9
                answered()
        except StopAsyncIteration:
            raise Unavailable("the manager has ended the heartbeats") from None
        except TimeoutError:
            raise DeadlineExceeded("the manager does not answer heartbeats") from None
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()

    async def close_session(self, *, leaving: bool) -> None:
        """Say goodbye; failing to is no trouble. leaving: the node leaves the cluster."""
        request = pb.CloseSessionRequest(session_id=self.session_id, leaving=leaving)
        try:
            await self._dispatcher.CloseSession(request, timeout=1.0)
        except grpc.aio.AioRpcError:
            return

    async def report(self, statuses: Mapping[str, TaskStatus]) -> None:
        """Send task statuses; returns when they are committed."""
        request = pb.UpdateTaskStatusRequest(session_id=self.session_id)
        for task_id, status in statuses.items():
            request.updates.add(task_id=task_id, status=to_pb(status, types_pb2.TaskStatus))
        try:
            await self._dispatcher.UpdateTaskStatus(request, timeout=4 * RPC_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def acknowledge(self, version: int, errors: Mapping[tuple[str, int], str]) -> None:
        """Say which endpoint version is in force, and which ports are not served."""
        request = pb.AcknowledgeEndpointsRequest(
            session_id=self.session_id, endpoints_version=version
        )
        numbers = {name: number for number, name in PROTOCOLS.items()}
        for (protocol, port), reason in sorted(errors.items()):
            request.conflicts.add(
                protocol=types_pb2.PortProtocol.ValueType(numbers[protocol]),
                published_port=port,
                error=reason,
            )
        try:
            await self._dispatcher.AcknowledgeEndpoints(request, timeout=RPC_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def report_network_keys(self, keys: Iterable[NetworkKey]) -> None:
        """Say which keys this node has for encrypted networks; returns when it is committed."""
        request = pb.ReportNetworkKeysRequest(session_id=self.session_id)
        for key in keys:
            request.keys.add(generation=key.generation, public_key=key.public_key)
        try:
            await self._dispatcher.ReportNetworkKeys(request, timeout=4 * RPC_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def report_images(self, images: bytes) -> None:
        """Say which images this node has; returns when it is committed."""
        request = pb.ReportImagesRequest(session_id=self.session_id, images=images)
        try:
            await self._dispatcher.ReportImages(request, timeout=4 * RPC_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def attach_network(
        self, wish: NetworkAttachmentConfig, *, container_id: str, name: str
    ) -> Task:
        """Put a container of this node on a network. Result: its task, with addresses.

        Raises: what the manager says, see `manager.dispatcher.attachments`.
        """
        request = pb.AttachNetworkRequest(
            session_id=self.session_id,
            config=to_pb(wish, types_pb2.NetworkAttachmentConfig),
            container_id=container_id,
            container_name=name,
        )
        try:
            answer = await self._dispatcher.AttachNetwork(request, timeout=ATTACH_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        return from_pb(answer.task, Task)

    async def detach_network(self, attachment: str) -> None:
        """The container is off the network."""
        request = pb.DetachNetworkRequest(session_id=self.session_id, attachment_id=attachment)
        try:
            await self._dispatcher.DetachNetwork(request, timeout=RPC_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def list_networks(self) -> list[Network]:
        """The networks that this node may know."""
        request = pb.ListNodeNetworksRequest(session_id=self.session_id)
        found: list[Network] = []
        try:
            while True:
                answer = await self._dispatcher.ListNodeNetworks(request, timeout=RPC_TIMEOUT_S)
                found += [from_pb(network, Network) for network in answer.networks]
                if not answer.more:
                    return found
                request.after = found[-1].id
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def assignments(self) -> AsyncGenerator[AssignmentsBatch, None]:
        """What this node has to run and to know, in messages that build on each other."""
        request = pb.AssignmentsRequest(session_id=self.session_id)
        call = self._dispatcher.Assignments(request)
        try:
            async for message in call:
                yield AssignmentsBatch(message)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()  # gRPC forgets to, before the first message
        raise Unavailable("the manager has ended the assignments")

    async def log_subscriptions(self) -> AsyncGenerator[logs_pb2.SubscriptionMessage, None]:
        """What readers ask of this node."""
        request = logs_pb2.ListenSubscriptionsRequest()
        call = self._logs.ListenSubscriptions(request)
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()  # gRPC forgets to, before the first message
        raise Unavailable("the manager has ended the log subscriptions")

    async def publish_logs(self, messages: AsyncIterator[logs_pb2.PublishLogsMessage]) -> None:
        """Send lines until the iterator ends. Raises NotFound when nobody reads any more."""
        call = self._logs.PublishLogs(messages)
        try:
            await call
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        except asyncio.InvalidStateError as error:
            raise Unavailable("the manager went away") from error
        finally:
            call.cancel()


def _port_key(message: pb.PublishedPort) -> PortKey:
    protocol = PROTOCOLS.get(message.protocol)
    if protocol is None:
        raise InvalidArgument(f"port: protocol {message.protocol} is unknown to this version")
    return PortKey(
        message.service_id, protocol, message.published_port, message.address, message.interface
    )


def _peer(message: pb.PeerNode) -> Peer:
    return Peer(
        message.node_id,
        message.index,
        message.address,
        message.subnet,
        message.lost,
        keys=tuple((key.generation, key.public_key) for key in message.network_keys),
        ipv6=message.ipv6,
        ipv6_addresses=tuple(message.ipv6_addresses),
    )


def _overlay(item: pb.Assignment) -> OverlayItem:
    if item.HasField("network"):
        network = item.network
        return OverlayNetwork(
            network_id=network.network_id,
            name=network.name,
            vni=network.vni,
            subnets=tuple(one.subnet for one in network.subnets),
            mtu=network.mtu,
            internal=network.internal,
            encrypted=network.encrypted,
        )
    if item.HasField("overlay_service"):
        service = item.overlay_service
        return OverlayService(
            network_id=service.network_id,
            service_id=service.service_id,
            name=service.name,
            virtual_ips=tuple(service.virtual_ips),
            aliases=tuple(service.aliases),
        )
    endpoint = item.overlay_endpoint
    return OverlayEndpoint(
        network_id=endpoint.network_id,
        task_id=endpoint.task_id,
        service_id=endpoint.service_id,
        node_id=endpoint.node_id,
        addresses=tuple(endpoint.addresses),
        names=tuple(endpoint.names),
        ready=endpoint.ready,
    )


def _port(message: pb.PublishedPort) -> PublishedPort:
    key = _port_key(message)
    return PublishedPort(
        protocol=key.protocol,
        published_port=key.published_port,
        target_port=message.target_port,
        mode=_word(PublishMode, message.publish_mode, "publish mode"),
        endpoints=tuple(message.addresses),
        sticky=message.sticky,
        source=_word(PublishSource, message.source, "source"),
        prefer=_word(PublishPreference, message.prefer, "preference"),
        address=key.address,
        interface=key.interface,
        weights=dict(zip(message.addresses, message.weights, strict=False)),
    )


def _word(
    words: type[PublishMode | PublishSource | PublishPreference], number: int, what: str
) -> str:
    try:
        return words(number).name.lower()
    except ValueError:
        raise InvalidArgument(f"port: {what} {number} is unknown to this version") from None
