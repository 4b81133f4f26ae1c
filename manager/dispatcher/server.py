"""The Dispatcher service: sessions, heartbeats, assignments and reports over gRPC."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator
from typing import Any

import grpc
from typing_extensions import override

from manager.ca.rotation import trust_of
from manager.dispatcher.attachments import Attachments
from manager.dispatcher.driver import Dispatcher
from manager.dispatcher.facts import require_node
from manager.dispatcher.messages import MessageWriter
from manager.dispatcher.network_keys import check_keys, generation_of
from manager.store.store import Store
from shoal.api.v1 import dispatcher_pb2 as pb
from shoal.api.v1 import types_pb2
from shoal.api.v1.dispatcher_pb2_grpc import DispatcherServicer
from shoal.api.v1.objects_pb2 import Network as PbNetwork
from shoal.api.v1.objects_pb2 import Node as PbNode
from shoal.api.v1.objects_pb2 import Task as PbTask
from shoal.clock import NS_PER_S, Clock
from shoal.errors import InvalidArgument
from shoal.model.enums import TaskState
from shoal.model.images import check_marks
from shoal.model.objects import Network
from shoal.model.types import NetworkAttachmentConfig, NetworkKey, NodeDescription, TaskStatus
from shoal.security.peer import current_caller, current_peer
from shoal.security.roles import Role
from shoal.wire.objects import from_pb, to_pb

UPDATES_MAX = 1024
LEADER_WEIGHT = 8
"""Nodes prefer the leader: others only pass their calls on. 1 if reachable, else 0."""
DESCRIPTION_BYTES_MAX = 64 << 10
ANSWER_EVERY_S = 1.0
"""Beats are answered so often, and when the period changes: answers cost as much as beats."""
TEXT_LENGTH_MAX = 2_000
"""Characters of a report's message and error; the rest is cut off."""

Context = grpc.aio.ServicerContext[Any, Any]


class DispatcherServer(DispatcherServicer):
    """Serves `shoal.api.v1.Dispatcher`; the node is the one of the peer's certificate."""

    def __init__(self, dispatcher: Dispatcher, store: Store, clock: Clock) -> None:
        self._dispatcher = dispatcher
        self._store = store
        self._clock = clock
        self._attachments = Attachments(store, clock)

    @override
    async def Session(
        self, request: pb.SessionRequest, context: Context
    ) -> AsyncIterator[pb.SessionMessage]:
        node_id = current_peer().node_id
        size_bytes = request.description.ByteSize()
        if size_bytes > DESCRIPTION_BYTES_MAX:
            raise InvalidArgument(
                f"description: {size_bytes} bytes, at most {DESCRIPTION_BYTES_MAX}: "
                "give the engine fewer labels"
            )
        description = from_pb(request.description, NodeDescription)
        check_keys(description.network_keys)
        check_marks(description.images)
        session_id = await self._dispatcher.register(node_id, description, current_caller().address)
        try:
            with self._dispatcher.session_changes(node_id) as signal:
                while True:
                    yield self._session_message(node_id, session_id)
                    await signal.wait()
                    self._dispatcher.sessions.check(node_id, session_id)
        finally:
            self._dispatcher.sessions.disconnect(node_id, session_id)

    @override
    async def CloseSession(
        self, request: pb.CloseSessionRequest, context: Context
    ) -> pb.CloseSessionResponse:
        await self._dispatcher.close_session(
            current_peer().node_id, request.session_id, leaving=request.leaving
        )
        return pb.CloseSessionResponse()

    @override
    async def Heartbeat(
        self, request_iterator: AsyncIterator[pb.HeartbeatRequest], context: Context
    ) -> AsyncIterator[pb.HeartbeatResponse]:
        node_id = current_peer().node_id
        sessions = self._dispatcher.sessions
        told_s, answer_at_s = 0.0, 0.0
        async for request in request_iterator:
            now_s = self._clock.monotonic_s()
            sessions.beat(node_id, request.session_id, now_s)
            if sessions.period_s != told_s or now_s >= answer_at_s:
                told_s, answer_at_s = sessions.period_s, now_s + ANSWER_EVERY_S
                yield pb.HeartbeatResponse(period_ns=int(told_s * NS_PER_S))

    @override
    async def UpdateTaskStatus(
        self, request: pb.UpdateTaskStatusRequest, context: Context
    ) -> pb.UpdateTaskStatusResponse:
        node_id = self._check(request.session_id)
        if len(request.updates) > UPDATES_MAX:
            raise InvalidArgument(f"updates: {len(request.updates)}, at most {UPDATES_MAX}")
        statuses = {item.task_id: _status(item.status) for item in request.updates}
        await self._dispatcher.statuses.write(node_id, statuses)
        return pb.UpdateTaskStatusResponse()

    @override
    async def AcknowledgeEndpoints(
        self, request: pb.AcknowledgeEndpointsRequest, context: Context
    ) -> pb.AcknowledgeEndpointsResponse:
        node_id = self._check(request.session_id)
        await self._dispatcher.acknowledge(
            node_id, request.endpoints_version, [conflict.error for conflict in request.conflicts]
        )
        return pb.AcknowledgeEndpointsResponse()

    @override
    async def ReportNetworkKeys(
        self, request: pb.ReportNetworkKeysRequest, context: Context
    ) -> pb.ReportNetworkKeysResponse:
        node_id = self._check(request.session_id)
        keys = tuple(from_pb(key, NetworkKey) for key in request.keys)
        await self._dispatcher.report_network_keys(node_id, keys)
        return pb.ReportNetworkKeysResponse()

    @override
    async def ReportImages(
        self, request: pb.ReportImagesRequest, context: Context
    ) -> pb.ReportImagesResponse:
        node_id = self._check(request.session_id)
        await self._dispatcher.report_images(node_id, request.images)
        return pb.ReportImagesResponse()

    @override
    async def Assignments(
        self, request: pb.AssignmentsRequest, context: Context
    ) -> AsyncIterator[pb.AssignmentsMessage]:
        node_id = self._check(request.session_id)
        writer = MessageWriter()
        with self._dispatcher.stream(node_id) as stream:
            while True:
                await stream.signal.wait(self._dispatcher.held_for_s(stream))
                more = True
                while more:
                    self._check(request.session_id)
                    if not self._dispatcher.is_current(stream):
                        return  # a newer stream of the node has taken over
                    diff, more = self._dispatcher.take(stream)
                    version = self._dispatcher.table.version
                    for message in writer.messages(diff, version=version, more=more):
                        yield message

    @override
    async def AttachNetwork(
        self, request: pb.AttachNetworkRequest, context: Context
    ) -> pb.AttachNetworkResponse:
        task = await self._attachments.attach(
            self._check(request.session_id),
            from_pb(request.config, NetworkAttachmentConfig),
            container_id=request.container_id,
            name=request.container_name,
        )
        return pb.AttachNetworkResponse(task=to_pb(task, PbTask))

    @override
    async def DetachNetwork(
        self, request: pb.DetachNetworkRequest, context: Context
    ) -> pb.DetachNetworkResponse:
        await self._attachments.detach(self._check(request.session_id), request.attachment_id)
        return pb.DetachNetworkResponse()

    @override
    async def ListNodeNetworks(
        self, request: pb.ListNodeNetworksRequest, context: Context
    ) -> pb.ListNodeNetworksResponse:
        node_id = self._check(request.session_id)
        overlays = self._dispatcher.table.overlays
        is_manager = current_peer().role is Role.MANAGER

        def sees(network: Network) -> bool:
            return is_manager or network.spec.attachable or overlays.is_on(node_id, network.id)

        networks, more = self._attachments.networks(request.after, sees=sees)
        return pb.ListNodeNetworksResponse(
            networks=[to_pb(one, PbNetwork) for one in networks], more=more
        )

    def _check(self, session_id: str) -> str:
        node_id = current_peer().node_id
        self._dispatcher.sessions.check(node_id, session_id)
        return node_id

    def _session_message(self, node_id: str, session_id: str) -> pb.SessionMessage:
        view = self._store.view
        node = require_node(view, node_id)
        message = pb.SessionMessage(session_id=session_id, node=to_pb(node, PbNode))
        for manager in view.nodes:
            status = manager.manager_status
            if status is not None:
                weight = LEADER_WEIGHT if status.leader else int(status.reachable)
                message.managers.add(node_id=manager.id, address=status.address, weight=weight)
        if view.cluster is not None:
            message.root_ca = trust_of(view.cluster.root_ca)
            message.data_path_port = view.cluster.data_path_port
            message.network_key_generation = generation_of(view.cluster)
        return message


def _status(message: types_pb2.TaskStatus) -> TaskStatus:
    """A report. Raises InvalidArgument for a state that is not the agent's to set, or no address.

    The agent's states are those from ASSIGNED to REJECTED.
    """
    status = from_pb(message, TaskStatus)
    if not TaskState.ASSIGNED <= status.state <= TaskState.REJECTED:
        raise InvalidArgument(f"state: {status.state.name} is not for an agent to report")
    if status.address:
        try:
            ipaddress.ip_address(status.address)
        except ValueError as error:
            raise InvalidArgument(f"address: {error}") from error
    return status.replaced(
        message=status.message[:TEXT_LENGTH_MAX], error=status.error[:TEXT_LENGTH_MAX]
    )
