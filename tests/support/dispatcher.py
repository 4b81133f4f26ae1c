"""A manager's side of the agent's calls on a real grpc.aio server; the test says what it sends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc
from typing_extensions import override

from shoal.api.v1 import dispatcher_pb2 as pb
from shoal.api.v1 import logs_pb2, objects_pb2
from shoal.api.v1.dispatcher_pb2_grpc import DispatcherServicer, add_DispatcherServicer_to_server
from shoal.api.v1.logs_pb2_grpc import LogBrokerServicer, add_LogBrokerServicer_to_server
from shoal.errors import FailedPrecondition
from shoal.model.objects import Config, Network, Node, Secret, Task
from shoal.model.specs import NodeSpec
from shoal.model.types import (
    NetworkAttachment,
    NodeCertificate,
    NodeDescription,
    NodeIngress,
    TaskStatus,
)
from shoal.security.grpc_tls import server_options
from shoal.wire.errors import ErrorInterceptor
from shoal.wire.objects import fill_pb, from_pb, to_pb

Context = Any


class AssignmentStream:
    """One open stream of assignments; sequences are counted here unless the test gives them."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[pb.AssignmentsMessage | Exception] = asyncio.Queue()
        self.sequence = 0

    def send(
        self,
        *tasks: Task,
        removed: Iterable[str] = (),
        ports: Iterable[pb.PublishedPort] = (),
        peers: Iterable[pb.PeerNode] = (),
        overlays: Iterable[pb.AssignmentChange] = (),
        files: Iterable[Secret | Config] = (),
        removed_secrets: Iterable[str] = (),
        version: int = 1,
        more: bool = False,
        applies_to: int | None = None,
        kind: int | None = None,
    ) -> None:
        """The next message: complete as long as none without `more` was sent."""
        if kind is None:
            kind = pb.ASSIGNMENTS_KIND_INCREMENTAL if self.sequence else 0
        message = pb.AssignmentsMessage(
            kind=pb.AssignmentsKind.ValueType(kind),
            applies_to=self.sequence if applies_to is None else applies_to,
            results_in=self.sequence + 1,
            endpoints_version=version,
            more=more,
        )
        for row in files:
            assignment = message.changes.add().assignment
            fill_pb(row, assignment.secret if isinstance(row, Secret) else assignment.config)
        for task in tasks:
            fill_pb(task, message.changes.add().assignment.task)
        for task_id in removed:
            message.changes.add(remove=True).assignment.task.id = task_id
        for secret_id in removed_secrets:
            message.changes.add(remove=True).assignment.secret.id = secret_id
        for port in ports:
            message.changes.add().assignment.port.CopyFrom(port)
        for peer in peers:
            message.changes.add().assignment.peer.CopyFrom(peer)
        message.changes.extend(overlays)
        self.sequence += 1
        self.queue.put_nowait(message)

    def fail(self, error: Exception) -> None:
        """End the stream with an error."""
        self.queue.put_nowait(error)


class ScriptedDispatcher(DispatcherServicer, LogBrokerServicer):
    """Accepts one node. `start` and `stop` may be called again and again."""

    def __init__(self, socket: Path, tls: grpc.ServerCredentials | None = None) -> None:
        self.address = f"unix:{socket}"
        self._tls = tls
        self.ingress: NodeIngress | None = NodeIngress(index=1, subnet="10.241.0.0/22")
        self.node_id = "node1"
        self.managers: tuple[str, ...] = ()
        self.node_spec = NodeSpec()
        self.node_certificate: NodeCertificate | None = None
        self.root_ca = b""
        self.peer_certificates: list[bytes] = []
        self.period_ns = 20_000_000
        self.data_path_port = 7789
        self.sessions: list[str] = []
        self.descriptions: list[NodeDescription] = []
        self.closed: list[str] = []
        self.beats = 0
        self.streams: list[AssignmentStream] = []
        self.statuses: dict[str, TaskStatus] = {}
        self.history: list[tuple[str, TaskStatus]] = []
        self.acknowledged: list[tuple[int, dict[int, str]]] = []
        self.network_key_generation = 0
        self.network_keys: list[dict[int, bytes]] = []
        self.images: list[bytes] = []
        self.attached: dict[str, pb.AttachNetworkRequest] = {}
        """Containers on networks, by the id that each was given."""
        self.detached: list[str] = []
        self.node_networks: list[Network] = []
        self.refuse_attachment: Exception | None = None
        self.lines: list[logs_pb2.LogMessage] = []
        self.published_to_end = 0
        self.refuse_session: Exception | None = None
        self.refuse_beat: Exception | None = None
        self.silent = False
        self._session_ends = asyncio.Event()
        self._log_asks: asyncio.Queue[logs_pb2.SubscriptionMessage] = asyncio.Queue()
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        self._session_ends = asyncio.Event()
        self._server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=server_options())
        add_DispatcherServicer_to_server(self, self._server)
        add_LogBrokerServicer_to_server(self, self._server)
        if self._tls is None:
            self._server.add_insecure_port(self.address)
        else:
            self._server.add_secure_port(self.address, self._tls)
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    def end_sessions(self) -> None:
        """As a manager that stops in order does."""
        self._session_ends.set()
        self._session_ends = asyncio.Event()

    def ask_logs(self, *task_ids: str, **options: Any) -> None:
        self._log_asks.put_nowait(
            logs_pb2.SubscriptionMessage(
                id=f"sub{len(self.lines)}",
                task_ids=task_ids,
                options=logs_pb2.LogOptions(**options),
            )
        )

    @property
    def stream(self) -> AssignmentStream:
        return self.streams[-1]

    @override
    async def Session(self, request: pb.SessionRequest, context: Context) -> Any:
        if self.refuse_session is not None:
            raise self.refuse_session
        if self.silent:
            await asyncio.Event().wait()
        self.descriptions.append(from_pb(request.description, NodeDescription))
        session_id = f"session{len(self.sessions)}"
        self.sessions.append(session_id)
        self.peer_certificates += context.auth_context().get("x509_pem_cert", ())
        node = Node(
            id=self.node_id,
            spec=self.node_spec,
            ingress=self.ingress,
            certificate=self.node_certificate,
        )
        message = pb.SessionMessage(
            session_id=session_id,
            node=to_pb(node, objects_pb2.Node),
            data_path_port=self.data_path_port,
            root_ca=self.root_ca,
            network_key_generation=self.network_key_generation,
        )
        for address in self.managers:
            message.managers.add(address=address, weight=1)
        yield message
        await self._session_ends.wait()

    @override
    async def CloseSession(
        self, request: pb.CloseSessionRequest, context: Context
    ) -> pb.CloseSessionResponse:
        self.closed.append(request.session_id)
        return pb.CloseSessionResponse()

    @override
    async def Heartbeat(self, request_iterator: Any, context: Context) -> Any:
        async for request in request_iterator:
            self._check(request.session_id)
            if self.refuse_beat is not None:
                raise self.refuse_beat
            self.beats += 1
            yield pb.HeartbeatResponse(period_ns=self.period_ns)

    @override
    async def UpdateTaskStatus(
        self, request: pb.UpdateTaskStatusRequest, context: Context
    ) -> pb.UpdateTaskStatusResponse:
        self._check(request.session_id)
        for update in request.updates:
            status = from_pb(update.status, TaskStatus)
            self.history.append((update.task_id, status))
            self.statuses[update.task_id] = status
        return pb.UpdateTaskStatusResponse()

    @override
    async def AttachNetwork(
        self, request: pb.AttachNetworkRequest, context: Context
    ) -> pb.AttachNetworkResponse:
        if self.refuse_attachment is not None:
            raise self.refuse_attachment
        number = len(self.attached) + len(self.detached) + 2
        task = Task(
            id=f"attachment{number}",
            networks=(NetworkAttachment(request.config.target, (f"10.9.0.{number}/24",)),),
        )
        self.attached[task.id] = request
        return pb.AttachNetworkResponse(task=to_pb(task, objects_pb2.Task))

    @override
    async def DetachNetwork(
        self, request: pb.DetachNetworkRequest, context: Context
    ) -> pb.DetachNetworkResponse:
        self.attached.pop(request.attachment_id, None)
        self.detached.append(request.attachment_id)
        return pb.DetachNetworkResponse()

    @override
    async def ListNodeNetworks(
        self, request: pb.ListNodeNetworksRequest, context: Context
    ) -> pb.ListNodeNetworksResponse:
        rest = [one for one in self.node_networks if one.id > request.after]
        page = [to_pb(one, objects_pb2.Network) for one in rest[:2]]
        return pb.ListNodeNetworksResponse(networks=page, more=len(rest) > 2)

    @override
    async def Assignments(self, request: pb.AssignmentsRequest, context: Context) -> Any:
        self._check(request.session_id)
        stream = AssignmentStream()
        self.streams.append(stream)
        while True:
            message = await stream.queue.get()
            if isinstance(message, Exception):
                raise message
            yield message

    @override
    async def AcknowledgeEndpoints(
        self, request: pb.AcknowledgeEndpointsRequest, context: Context
    ) -> pb.AcknowledgeEndpointsResponse:
        self._check(request.session_id)
        errors = {conflict.published_port: conflict.error for conflict in request.conflicts}
        self.acknowledged.append((request.endpoints_version, errors))
        return pb.AcknowledgeEndpointsResponse()

    @override
    async def ReportImages(
        self, request: pb.ReportImagesRequest, context: Context
    ) -> pb.ReportImagesResponse:
        self._check(request.session_id)
        self.images.append(request.images)
        return pb.ReportImagesResponse()

    @override
    async def ReportNetworkKeys(
        self, request: pb.ReportNetworkKeysRequest, context: Context
    ) -> pb.ReportNetworkKeysResponse:
        self._check(request.session_id)
        self.network_keys.append({key.generation: key.public_key for key in request.keys})
        return pb.ReportNetworkKeysResponse()

    @override
    async def ListenSubscriptions(
        self, request: logs_pb2.ListenSubscriptionsRequest, context: Context
    ) -> Any:
        while True:
            yield await self._log_asks.get()

    @override
    async def PublishLogs(self, request_iterator: Any, context: Context) -> Any:
        async for message in request_iterator:
            self.lines.extend(message.messages)
            self.published_to_end += message.close
        return logs_pb2.PublishLogsResponse()

    def _check(self, session_id: str) -> None:
        if session_id != self.sessions[-1]:
            raise FailedPrecondition("the session is over: register again")
