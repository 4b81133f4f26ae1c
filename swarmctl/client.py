"""The one thin client: requests out, model rows back. No decisions here.

Every unary call has a deadline. Failures come out as `shoal.errors`; a daemon that cannot be
reached is told from one that answers "unavailable", because the remedies differ.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Iterable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import grpc

from shoal.api.v1 import (
    control_pb2,
    control_pb2_grpc,
    logs_pb2,
    logs_pb2_grpc,
    node_pb2,
    node_pb2_grpc,
    specs_pb2,
    types_pb2,
    watch_pb2,
    watch_pb2_grpc,
)
from shoal.docker.objects import ServiceCounts
from shoal.errors import FailedPrecondition, SwarmError, Unavailable
from shoal.model.enums import NodeRole
from shoal.model.objects import Cluster, Node, Service, Task
from shoal.model.specs import ClusterSpec, NodeSpec, ServiceSpec
from shoal.model.types import ExternalCa, ExtraJoinToken
from shoal.security.grpc_tls import channel_credentials, local_channel, secure_channel
from shoal.wire.errors import CODE_KEY, from_rpc_error
from shoal.wire.objects import from_pb, to_pb
from swarmctl.target import Target
from swarmctl.types import (
    Filters,
    Image,
    ImageConfig,
    InitOptions,
    InitResult,
    JoinOptions,
    LogBatch,
    LogLine,
    LogQuery,
    NodeInfo,
    RemovedImage,
    ServiceEntry,
    Written,
)

CALL_TIMEOUT_S = 20.0
JOIN_TIMEOUT_S = 120.0
EXTERNAL_TIMEOUT_S = 60.0
"""For what external certificate authorities are tried with, several times 5 s."""
PROBE_TIMEOUT_S = 4.0
"""Of one of several managers; longer than a manager waits for a leader."""
IMAGE_TIMEOUT_S = 3600.0
PAGE_SIZE = 250

AnswerT = TypeVar("AnswerT")


class _Page(Protocol):
    next_page_token: str


class Client:
    """A connection to one daemon. Use `async with`; one at a time per event loop is plenty."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._channel = _open(target)
        self._control = control_pb2_grpc.ControlStub(self._channel)
        self._node = node_pb2_grpc.NodeControlStub(self._channel)
        self._images = node_pb2_grpc.ImagesStub(self._channel)
        self._logs = logs_pb2_grpc.LogsStub(self._channel)
        self._watch = watch_pb2_grpc.WatchStub(self._channel)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    @property
    def channel(self) -> grpc.aio.Channel:
        """For calls that have a module of their own (`swarmctl.backups`)."""
        return self._channel

    # The node itself.

    async def info(self) -> NodeInfo:
        """What the daemon says of itself."""
        answer = await self._call(self._node.Info(node_pb2.InfoRequest(), timeout=CALL_TIMEOUT_S))
        return _node_info(answer)

    async def init(self, options: InitOptions) -> InitResult:
        """Make a new cluster of this node."""
        request = node_pb2.InitRequest(
            advertise_address=options.advertise_address,
            listen_address=options.listen_address,
            availability=types_pb2.NodeAvailability.ValueType(options.availability),
            data_path_address=options.data_path_address,
            data_path_port=options.data_path_port,
            task_history_retention_limit=options.task_history_retention_limit,
            dispatcher_heartbeat_period_ns=options.dispatcher_heartbeat_period_ns,
            node_certificate_validity_ns=options.node_certificate_validity_ns,
            snapshot_interval=options.snapshot_interval,
            ingress_pool=options.ingress_pool,
            default_address_pools=options.default_address_pools,
            default_address_pool_mask_length=options.default_address_pool_mask_length,
            autolock=options.autolock,
            external_cas=[to_pb(one, types_pb2.ExternalCa) for one in options.external_cas],
        )
        answer = await self._call(self._node.Init(request, timeout=JOIN_TIMEOUT_S))
        return InitResult(
            node_id=answer.node_id,
            cluster_id=answer.cluster_id,
            worker_token=answer.join_tokens.worker,
            manager_token=answer.join_tokens.manager,
            advertise_address=answer.advertise_address,
            unlock_key=answer.unlock_key,
        )

    async def unlock(self, unlock_key: str) -> None:
        """Open this node's locked manager."""
        request = node_pb2.UnlockRequest(unlock_key=unlock_key)
        await self._call(self._node.Unlock(request, timeout=JOIN_TIMEOUT_S))

    async def join(self, options: JoinOptions) -> NodeRole:
        """Let this node join a cluster; the role it was given."""
        request = node_pb2.JoinRequest(
            remote_addresses=options.remote_addresses,
            token=options.token,
            advertise_address=options.advertise_address,
            listen_address=options.listen_address,
            availability=types_pb2.NodeAvailability.ValueType(options.availability),
            data_path_address=options.data_path_address,
        )
        answer = await self._call(self._node.Join(request, timeout=JOIN_TIMEOUT_S))
        return NodeRole(answer.role)

    async def leave(self, *, force: bool) -> None:
        """Let this node leave its cluster."""
        request = node_pb2.LeaveRequest(force=force)
        await self._call(self._node.Leave(request, timeout=JOIN_TIMEOUT_S))

    # The cluster.

    async def cluster(self) -> Cluster:
        """The cluster, without its keys."""
        request = control_pb2.GetClusterRequest()
        answer = await self._call(self._control.GetCluster(request, timeout=CALL_TIMEOUT_S))
        return from_pb(answer.cluster, Cluster)

    async def rotate_join_token(self, cluster: Cluster, role: NodeRole) -> Cluster:
        """Make the old join token of a role worthless; the cluster with the new one."""
        request = control_pb2.UpdateClusterRequest(
            version=types_pb2.Version(index=cluster.meta.version.index),
            spec=to_pb(cluster.spec, specs_pb2.ClusterSpec),
            rotate_worker_token=role is NodeRole.WORKER,
            rotate_manager_token=role is NodeRole.MANAGER,
        )
        answer = await self._call(self._control.UpdateCluster(request, timeout=CALL_TIMEOUT_S))
        return from_pb(answer.cluster, Cluster)

    async def update_cluster(
        self, cluster: Cluster, spec: ClusterSpec, *, unlock_key: str = ""
    ) -> Cluster:
        """Replace the cluster's spec, if nobody changed it meanwhile.

        unlock_key: the one to use where autolock is turned on.
        """
        request = control_pb2.UpdateClusterRequest(
            version=types_pb2.Version(index=cluster.meta.version.index),
            spec=to_pb(spec, specs_pb2.ClusterSpec),
            unlock_key=unlock_key,
        )
        answer = await self._call(self._control.UpdateCluster(request, timeout=EXTERNAL_TIMEOUT_S))
        return from_pb(answer.cluster, Cluster)

    async def rotate_unlock_key(self, unlock_key: str) -> None:
        """Let managers be unlocked with this key, and no longer with the one of before."""
        request = control_pb2.UpdateClusterRequest(rotate_unlock_key=True, unlock_key=unlock_key)
        await self._call(self._control.UpdateCluster(request, timeout=CALL_TIMEOUT_S))

    async def unlock_key(self) -> str:
        """What managers are unlocked with; empty while they are not locked."""
        request = control_pb2.GetUnlockKeyRequest()
        answer = await self._call(self._control.GetUnlockKey(request, timeout=CALL_TIMEOUT_S))
        return answer.unlock_key

    async def create_join_token(self, wish: ExtraJoinToken, *, ttl_ns: int) -> ExtraJoinToken:
        """Make a join token with limits; `wish` carries no token and no end yet."""
        request = control_pb2.CreateJoinTokenRequest(
            name=wish.name,
            role=types_pb2.NodeRole.ValueType(wish.role),
            ttl_ns=ttl_ns,
            uses=wish.uses_left,
            labels=wish.labels,
        )
        answer = await self._call(self._control.CreateJoinToken(request, timeout=CALL_TIMEOUT_S))
        return from_pb(answer.token, ExtraJoinToken)

    async def remove_join_token(self, name: str) -> None:
        """Make a join token with limits worthless."""
        request = control_pb2.RemoveJoinTokenRequest(name=name)
        await self._call(self._control.RemoveJoinToken(request, timeout=CALL_TIMEOUT_S))

    async def rotate_root(
        self, certificate_pem: bytes, key_pem: bytes, external: Iterable[ExternalCa]
    ) -> Cluster:
        """Begin to replace the root certificate; all empty: by a new one."""
        request = control_pb2.RotateRootCaRequest(
            ca_certificate=certificate_pem,
            ca_key=key_pem,
            external_cas=[to_pb(one, types_pb2.ExternalCa) for one in external],
        )
        answer = await self._call(self._control.RotateRootCa(request, timeout=EXTERNAL_TIMEOUT_S))
        return from_pb(answer.cluster, Cluster)

    async def transfer_leadership(self, node: str) -> str:
        """Begin to hand leadership to a node's manager, "" = any other; the chosen one's id."""
        request = control_pb2.TransferLeadershipRequest(node=node)
        call = self._control.TransferLeadership(request, timeout=CALL_TIMEOUT_S)
        return (await self._call(call)).node_id

    async def node(self, reference: str) -> Node:
        """A node by id, name or unique id prefix."""
        request = control_pb2.GetNodeRequest(node=reference)
        answer = await self._call(self._control.GetNode(request, timeout=CALL_TIMEOUT_S))
        return from_pb(answer.node, Node)

    async def nodes(self, filters: Filters | None = None) -> list[Node]:
        """All nodes that fit."""
        result: list[Node] = []
        request = control_pb2.ListNodesRequest(filters=_filters(filters), page_size=PAGE_SIZE)
        while True:
            answer = await self._call(self._control.ListNodes(request, timeout=CALL_TIMEOUT_S))
            result += [from_pb(node, Node) for node in answer.nodes]
            if not _next_page(request, answer):
                return result

    async def update_node(self, node: Node, spec: NodeSpec) -> Node:
        """Replace a node's spec, if nobody changed it meanwhile."""
        request = control_pb2.UpdateNodeRequest(
            node=node.id,
            version=types_pb2.Version(index=node.meta.version.index),
            spec=to_pb(spec, specs_pb2.NodeSpec),
        )
        answer = await self._call(self._control.UpdateNode(request, timeout=CALL_TIMEOUT_S))
        return from_pb(answer.node, Node)

    async def remove_node(self, reference: str, *, force: bool) -> None:
        """Take a node out of the cluster."""
        request = control_pb2.RemoveNodeRequest(node=reference, force=force)
        await self._call(self._control.RemoveNode(request, timeout=CALL_TIMEOUT_S))

    # Services and tasks.

    async def create_service(self, spec: ServiceSpec) -> Written:
        """Create a service."""
        request = control_pb2.CreateServiceRequest(spec=to_pb(spec, specs_pb2.ServiceSpec))
        answer = await self._call(self._control.CreateService(request, timeout=CALL_TIMEOUT_S))
        return Written(from_pb(answer.service, Service), tuple(answer.warnings))

    async def service(self, reference: str, *, insert_defaults: bool = False) -> ServiceEntry:
        """A service by id, name or unique id prefix, with its counts."""
        request = control_pb2.GetServiceRequest(service=reference, insert_defaults=insert_defaults)
        answer = await self._call(self._control.GetService(request, timeout=CALL_TIMEOUT_S))
        return ServiceEntry(from_pb(answer.service, Service), _counts(answer.status))

    async def services(self, filters: Filters | None = None) -> list[ServiceEntry]:
        """All services that fit, with their counts."""
        result: list[ServiceEntry] = []
        request = control_pb2.ListServicesRequest(filters=_filters(filters), page_size=PAGE_SIZE)
        while True:
            answer = await self._call(self._control.ListServices(request, timeout=CALL_TIMEOUT_S))
            result += [
                ServiceEntry(from_pb(service, Service), _counts(status))
                for service, status in zip(answer.services, answer.statuses, strict=True)
            ]
            if not _next_page(request, answer):
                return result

    async def update_service(
        self, service: Service, spec: ServiceSpec, *, version: int = 0
    ) -> Written:
        """Replace a service's spec, if nobody changed it meanwhile, or since that version."""
        request = control_pb2.UpdateServiceRequest(
            service=service.id,
            version=types_pb2.Version(index=version or service.meta.version.index),
            spec=to_pb(spec, specs_pb2.ServiceSpec),
        )
        return await self._update_service(request)

    async def rollback_service(self, service: Service, *, to: int = 0, version: int = 0) -> Written:
        """Go back to a revision's spec, or the previous one, if nobody changed it meanwhile.

        to: number of the revision, 0: the previous spec. version: nor since that version.
        """
        request = control_pb2.UpdateServiceRequest(
            service=service.id,
            version=types_pb2.Version(index=version or service.meta.version.index),
            rollback=True,
            rollback_to=to,
        )
        return await self._update_service(request)

    async def pause_service_update(
        self, service: Service, *, resume: bool, version: int = 0
    ) -> Written:
        """Halt the update under way, or let a paused one go on."""
        request = control_pb2.PauseServiceUpdateRequest(
            service=service.id, version=types_pb2.Version(index=version), resume=resume
        )
        answer = await self._call(self._control.PauseServiceUpdate(request, timeout=CALL_TIMEOUT_S))
        return Written(from_pb(answer.service, Service), ())

    async def remove_service(self, reference: str, *, version: int = 0) -> None:
        """Remove a service and its tasks, if nobody changed it since that version."""
        request = control_pb2.RemoveServiceRequest(
            service=reference, version=types_pb2.Version(index=version)
        )
        await self._call(self._control.RemoveService(request, timeout=CALL_TIMEOUT_S))

    async def task(self, reference: str) -> Task:
        """A task by id or unique id prefix."""
        request = control_pb2.GetTaskRequest(task=reference)
        answer = await self._call(self._control.GetTask(request, timeout=CALL_TIMEOUT_S))
        return from_pb(answer.task, Task)

    async def tasks(self, filters: Filters | None = None) -> list[Task]:
        """All tasks that fit."""
        result: list[Task] = []
        request = control_pb2.ListTasksRequest(filters=_filters(filters), page_size=PAGE_SIZE)
        while True:
            answer = await self._call(self._control.ListTasks(request, timeout=CALL_TIMEOUT_S))
            result += [from_pb(task, Task) for task in answer.tasks]
            if not _next_page(request, answer):
                return result

    async def changes(self, service_id: str) -> AsyncIterator[None]:
        """A wake-up when the service, one of its tasks or a node changes; the first at once.

        Raises Unimplemented where the daemon offers no watch.
        """
        request = watch_pb2.WatchRequest(
            selectors=[
                watch_pb2.WatchSelector(kind="service", ids=[service_id]),
                watch_pb2.WatchSelector(kind="task", service_ids=[service_id]),
                watch_pb2.WatchSelector(kind="node"),
            ]
        )
        async for _ in self._stream(self._watch.Watch(request)):
            yield

    async def log_batches(self, query: LogQuery) -> AsyncIterator[LogBatch]:
        """Lines of services and tasks as the nodes send them. Ends by itself unless followed."""
        options = logs_pb2.LogOptions(
            follow=query.follow, tail=query.tail, since_ns=query.since_ns, details=query.details
        )
        selector = logs_pb2.LogSelector(services=query.services, tasks=query.tasks)
        request = logs_pb2.SubscribeLogsRequest(selector=selector, options=options)
        async for message in self._stream(self._logs.SubscribeLogs(request)):
            yield LogBatch(tuple(map(_log_line, message.messages)), message.incomplete)

    # Images of the node.

    async def import_image(
        self, reference: str, changes: Iterable[str], chunks: AsyncIterator[bytes]
    ) -> Image:
        """Make an image of a root file system's archive."""

        async def requests() -> AsyncIterator[node_pb2.ImportImageRequest]:
            yield node_pb2.ImportImageRequest(reference=reference, changes=changes)
            async for chunk in chunks:
                yield node_pb2.ImportImageRequest(chunk=chunk)

        call = self._images.ImportImage(requests(), timeout=IMAGE_TIMEOUT_S)
        return _image((await self._call(call)).image)

    async def load_images(self, chunks: AsyncIterator[bytes]) -> tuple[str, ...]:
        """Take in the images of an archive; their names, or ids where there is no name."""

        async def requests() -> AsyncIterator[node_pb2.LoadImagesRequest]:
            async for chunk in chunks:
                yield node_pb2.LoadImagesRequest(chunk=chunk)

        call = self._images.LoadImages(requests(), timeout=IMAGE_TIMEOUT_S)
        return tuple((await self._call(call)).names)

    async def images(self) -> list[Image]:
        """All images of the node."""
        request = node_pb2.ListImagesRequest()
        answer = await self._call(self._images.ListImages(request, timeout=CALL_TIMEOUT_S))
        return [_image(image) for image in answer.images]

    async def image(self, reference: str) -> Image:
        """An image by name, digest or id prefix."""
        request = node_pb2.InspectImageRequest(image=reference)
        answer = await self._call(self._images.InspectImage(request, timeout=CALL_TIMEOUT_S))
        return _image(answer.image)

    async def remove_image(self, reference: str, *, force: bool) -> RemovedImage:
        """Remove a name, and the image behind it when it was the last."""
        request = node_pb2.RemoveImageRequest(image=reference, force=force)
        answer = await self._call(self._images.RemoveImage(request, timeout=IMAGE_TIMEOUT_S))
        return RemovedImage(tuple(answer.untagged), tuple(answer.deleted))

    async def _update_service(self, request: control_pb2.UpdateServiceRequest) -> Written:
        answer = await self._call(self._control.UpdateService(request, timeout=CALL_TIMEOUT_S))
        return Written(from_pb(answer.service, Service), tuple(answer.warnings))

    async def _call(self, call: Awaitable[AnswerT]) -> AnswerT:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise self.failure(error) from error

    async def _stream(self, call: grpc.aio.UnaryStreamCall[Any, AnswerT]) -> AsyncIterator[AnswerT]:
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise self.failure(error) from error
        finally:
            call.cancel()

    def failure(self, error: grpc.aio.AioRpcError) -> SwarmError:
        """The error of the family for a failed call."""
        trailing = error.trailing_metadata()
        answered = trailing is not None and trailing.get(CODE_KEY) is not None
        if error.code() is grpc.StatusCode.UNAVAILABLE and not answered:
            return _unreachable(self.target, error.details() or "no answer")
        return from_rpc_error(error)


async def serves(target: Target) -> bool:
    """Whether a daemon answers there at once, and runs a manager that works."""
    async with Client(target) as client:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                info = await client.info()
                if info.role is not NodeRole.MANAGER:
                    return False
                await client.cluster()
        except (SwarmError, TimeoutError):
            return False
    return True


def _open(target: Target) -> grpc.aio.Channel:
    if target.socket is not None:
        return local_channel(target.socket)
    credentials = channel_credentials(
        _read(target.tls_ca, "--tlscacert"),
        _read(target.tls_certificate, "--tlscert"),
        _read(target.tls_key, "--tlskey"),
    )
    return secure_channel(target.address, credentials)


def _read(path: str, flag: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise FailedPrecondition(f"{flag} {path}: {error.strerror}") from error


def _unreachable(target: Target, details: str) -> Unavailable:
    if target.socket is None:
        return Unavailable(
            f"cannot connect to the daemon at {target.host} ({details}): check that swarmd runs "
            "there as a manager, and that the certificate was issued by its cluster"
        )
    if not target.socket.exists():
        return Unavailable(
            f"no daemon listens at {target.host}: start it with `swarmd` (as root), "
            "or name another one with --host or --context"
        )
    if not os.access(target.socket, os.R_OK | os.W_OK):
        return Unavailable(
            f"the socket {target.host} may not be used by this user: run as root, "
            "or as a member of the group that owns the socket"
        )
    return Unavailable(
        f"the socket {target.host} exists, but nothing answers there ({details}): "
        "start the daemon with `swarmd` (as root)"
    )


def _next_page(request: Any, answer: _Page) -> bool:
    request.page_token = answer.next_page_token
    return bool(answer.next_page_token)


def _filters(filters: Filters | None) -> control_pb2.Filters:
    filters = filters or Filters()
    return control_pb2.Filters(
        ids=filters.ids,
        names=filters.names,
        labels=filters.labels,
        node_labels=filters.node_labels,
        roles=[types_pb2.NodeRole.ValueType(role) for role in filters.roles],
        memberships=[types_pb2.NodeMembership.ValueType(item) for item in filters.memberships],
        modes=filters.modes,
        services=filters.services,
        nodes=filters.nodes,
        desired_states=[types_pb2.TaskState.ValueType(item) for item in filters.desired_states],
        up_to_date=filters.up_to_date,
    )


def _counts(status: control_pb2.ServiceStatus) -> ServiceCounts:
    return ServiceCounts(status.running_tasks, status.desired_tasks, status.completed_tasks)


def _node_info(answer: node_pb2.InfoResponse) -> NodeInfo:
    return NodeInfo(
        version=answer.version,
        hostname=answer.hostname,
        state=answer.state,
        error=answer.error,
        node_id=answer.node_id,
        cluster_id=answer.cluster_id,
        role=NodeRole(answer.role),
        advertise_address=answer.advertise_address,
        managers=tuple(answer.managers),
        state_dir=answer.state_dir,
        metrics_address=answer.metrics_address,
        kernel=answer.kernel,
        os=answer.os,
        architecture=answer.architecture,
        nano_cpus=answer.nano_cpus,
        memory_bytes=answer.memory_bytes,
        processes=dict(answer.processes),
        docker_socket=answer.docker_socket,
        cgroup_version=answer.cgroup_version,
        not_ready=dict(answer.not_ready),
    )


def _image(message: node_pb2.Image) -> Image:
    return Image(
        id=message.id,
        names=tuple(message.names),
        digest=message.digest,
        created_at_ns=message.created_at_ns,
        size_bytes=message.size_bytes,
        architecture=message.architecture,
        os=message.os,
        config=ImageConfig(
            env=tuple(message.config.env),
            command=tuple(message.config.command),
            entrypoint=tuple(message.config.entrypoint),
            user=message.config.user,
            working_dir=message.config.working_dir,
            stop_signal=message.config.stop_signal,
            exposed_ports=tuple(message.config.exposed_ports),
            labels=dict(message.config.labels),
        ),
    )


def _log_line(message: logs_pb2.LogMessage) -> LogLine:
    return LogLine(
        service_id=message.context.service_id,
        node_id=message.context.node_id,
        task_id=message.context.task_id,
        timestamp_ns=message.timestamp_ns,
        is_stderr=message.stream == logs_pb2.LOG_STREAM_STDERR,
        data=message.data,
        details=message.details,
    )
