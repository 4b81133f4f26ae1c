"""Composition root of the worker process: what is started, in which order, and stopped again.

Images and runtime are there always; the agent comes with the node's membership in a cluster and
goes with it, without restarting the process. A broken invariant ends the process, so that swarmd
starts another one; the containers run on. No other logic lives here.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import msgspec
import structlog
from typing_extensions import override

from shoal.aio.supervise import Supervisor, find_violation
from shoal.api.v1 import node_pb2, node_pb2_grpc, types_pb2
from shoal.clock import SystemClock
from shoal.errors import FailedPrecondition, NotFound, SwarmError, violated
from shoal.security.grpc_tls import channel_credentials, secure_channel, server_options
from shoal.security.identity import NodeIdentity, read_identity
from shoal.security.lock import LockKeys, decode_lock_keys
from shoal.security.unlock import Locked
from shoal.settings.node import NodeConfig, read_node_config
from shoal.settings.paths import NodePaths
from shoal.telemetry.metrics import REGISTRY
from shoal.wire.errors import ErrorInterceptor
from shoal.wire.telemetry import TelemetryServer
from worker.agent.agent import Agent
from worker.agent.attachments import Attachments
from worker.agent.container import IMAGE_ID_LABEL, TASK_ID_LABEL
from worker.agent.dataplane import DataPlane
from worker.agent.description import describe_node, names_of
from worker.agent.devices import ResourcePool
from worker.agent.files import TaskFiles, remove_others
from worker.agent.health import HealthChecks, TellOfChecks, tell_nobody
from worker.agent.network_keys import NetworkKeyKeeper
from worker.agent.news import NewsBoard
from worker.agent.records import Records
from worker.agent.reporter import Reporter
from worker.agent.tasks import NodeTasks
from worker.agent.templates import NodeFacts
from worker.agent.volumes import TaskVolumes, remove_of_tasks, users_of
from worker.files.layers import Layers
from worker.images.model import User
from worker.images.pruning import Collector
from worker.images.registry.api import RegistrySettings
from worker.images.server import ImagesServer
from worker.images.store import ImageStore
from worker.images.water import Marks
from worker.metrics import ContainerCollector
from worker.network import ipv6, wireguard
from worker.network.keys import KeyFile, PrivateKeys
from worker.runtime.api import IdMap
from worker.runtime.client import NativeRuntime
from worker.volumes.local import LocalVolumes

STOP_GRACE_S = 1.0
AGENT_RESTART_PAUSE_S = 1.0
FILES_DIR = "files"
"""Below the run directory: the secrets and configs of tasks, each in a file system of its own."""
COLLECT_DELAY_S = 30.0
JOBS_END_S = 5.0
JOBS_POLL_S = 0.05

Context = grpc.aio.ServicerContext[Any, Any]

_log = structlog.get_logger()


class WorkerSettings(msgspec.Struct, frozen=True):
    """What swarmd says when it starts the worker. lock_keys: what opens the identity.

    registries: how they are spoken to. image_marks: how full images may make the disk.
    userns: the ids containers get; None: the node's. selinux: whether containers are labelled.
    ingress_ipv6: whether IPv6 clients of published ports are served, where the node has IPv6.
    pool: the generic resources that the node has, with their devices.
    """

    paths: NodePaths
    hostname: str
    cgroup_parent: str
    lock_keys: LockKeys = LockKeys()
    registries: RegistrySettings = RegistrySettings()
    image_marks: Marks = Marks()
    userns: IdMap | None = None
    selinux: bool = False
    ingress_ipv6: bool = True
    pool: ResourcePool = ResourcePool()


class Membership:
    """The agent and what belongs to it, while the node is in a cluster."""

    def __init__(
        self,
        settings: WorkerSettings,
        runtime: NativeRuntime,
        images: ImageStore,
        volumes: LocalVolumes,
    ) -> None:
        self._settings = settings
        self._runtime = runtime
        self._images = images
        self._volumes = volumes
        self.volume_users_known = asyncio.Event()
        self._clock = SystemClock()
        self._agent: Agent | None = None
        self._broken: asyncio.Future[None]
        self._work: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()
        self._agent_failure = ""
        self._credentials: grpc.ChannelCredentials | None = None
        self._node_id = ""
        self.news = NewsBoard()
        self.tell_of_checks: TellOfChecks = tell_nobody
        self.attachments = Attachments(settings.paths.run / "attachments", self._clock)
        self._broken = asyncio.get_running_loop().create_future()
        self.tasks: NodeTasks | None = None
        self.data_plane: DataPlane | None = None
        self.records: Records | None = None

    @property
    def why_not_ready(self) -> str:
        """The reason why the node does not do all it should; empty when it does."""
        if self._agent is None:
            return ""
        return "; ".join(filter(None, (self._agent_failure, self._agent.why_not_ready)))

    def _tell_of_checks(self, container: str, action: str, attributes: Mapping[str, str]) -> None:
        self.tell_of_checks(container, action, attributes)

    async def image_users(self) -> dict[str, list[User]]:
        """The containers made from each image, and the tasks about to be; by the image's id.

        Names may stand for other images by now, so the containers themselves are asked.
        """
        users: dict[str, list[User]] = {}
        if self.tasks is not None:
            for task_id, image_id in self.tasks.images_needed().items():
                users.setdefault(image_id, []).append(User(task_id))
        for status in await self._runtime.list():
            image_id = status.labels.get(IMAGE_ID_LABEL, "")
            if image_id:
                user = User(status.id, running=status.state == "running")
                users.setdefault(image_id, []).append(user)
        return users

    async def volume_users(self) -> Mapping[str, frozenset[str]]:
        """The containers of tasks by volume: `worker.volumes.api.VolumeUsers`."""
        return users_of(await self._runtime.list())

    async def running_volume_users(self) -> Mapping[str, frozenset[str]]:
        """The same, of containers that run."""
        return users_of(await self._runtime.list(), running=True)

    async def wait_broken(self) -> None:
        """Wait until the agent broke an invariant, and raise that."""
        await asyncio.shield(self._broken)

    async def reload(self, lock_keys: LockKeys) -> None:
        """Start the agent if the node is in a cluster now, stop it if it no longer is.

        On a locked node there is no agent: the containers run on, and nobody is told of them.
        """
        async with self._changing:
            await self._stop()
            paths = self._settings.paths
            try:
                identity = await asyncio.to_thread(read_identity, paths.identity, lock_keys)
            except NotFound:
                return
            except Locked:
                _log.warning("agent.locked")
                return
            config = await asyncio.to_thread(read_node_config, paths.node_config)
            if config is not None:
                keys = await asyncio.to_thread(_network_keys, KeyFile(paths.worker))
                self._start(identity, config, keys)

    async def reload_identity(self, lock_keys: LockKeys) -> None:
        """Show the certificate on disk from the next connection on; the session stays.

        It does not if the node trusts other roots now: the next one tells the managers.

        Raises: FailedPrecondition if it is not this node's.
        """
        async with self._changing:
            identity = await asyncio.to_thread(
                read_identity, self._settings.paths.identity, lock_keys
            )
            if identity.peer.node_id != self._node_id:
                raise FailedPrecondition("the identity on disk is another node's: reload it all")
            self._credentials = _credentials(identity)
            if self._agent is not None:
                self._agent.trust(identity.root_pem)

    async def remove_tasks(self) -> None:
        """Stop and remove everything of the cluster: containers, data plane, records."""
        async with self._changing:
            tasks, data_plane, records = self.tasks, self.data_plane, self.records
            if self._agent is not None:
                self._agent.leave()
            await self._cancel()
            if data_plane is None:
                data_plane, records = await self._left_by_another()
            if tasks is not None:
                await tasks.remove_all()
            for status in await self._runtime.list():
                if TASK_ID_LABEL in status.labels:
                    await self._remove_container(status.id)
            await remove_others(self._settings.paths.run / FILES_DIR, ())
            await self.volume_users_known.wait()
            await remove_of_tasks(self._volumes)
            if data_plane is not None:
                await data_plane.close(remove=True)
            self.attachments.forget()
            if records is not None:
                records.clear()
            await asyncio.to_thread(KeyFile(self._settings.paths.worker).remove)
            self._forget()

    async def _left_by_another(self) -> tuple[DataPlane | None, Records]:
        """What an agent of before has left in the kernel: here none could start, on a locked node.

        Raises: SwarmError, OSError when the data plane cannot be opened.
        """
        paths = self._settings.paths
        records = Records(paths.worker)
        record, config = (
            records.network(),
            await asyncio.to_thread(read_node_config, paths.node_config),
        )
        if record is None or config is None:
            return None, records
        data_plane = DataPlane(
            run_dir=paths.run,
            underlay_address=config.data_path_address,
            ipv6=self._serves_ipv6(),
        )
        await data_plane.open(record, {})
        return data_plane, records

    async def close(self) -> None:
        """Stop the agent; containers and data plane stay as they are."""
        async with self._changing:
            await self._stop()
        if not self._broken.cancel():
            self._broken.exception()  # it was logged, whether or not anybody waited

    async def _remove_container(self, container: str) -> None:
        with contextlib.suppress(NotFound):
            await self._runtime.remove(container, force=True)

    def _serves_ipv6(self) -> bool:
        """Whether the data plane is to serve IPv6 clients; why not is logged."""
        told_not_to = "" if self._settings.ingress_ipv6 else "swarmd --no-ingress-ipv6"
        if reason := told_not_to or ipv6.why_missing():
            _log.info("network.without_ipv6", reason=reason)
        return not reason

    def _start(self, identity: NodeIdentity, config: NodeConfig, keys: PrivateKeys) -> None:
        paths, hostname = self._settings.paths, self._settings.hostname
        serves_ipv6 = self._serves_ipv6()
        description = describe_node(
            hostname,
            config.data_path_address,
            identity.root_pem,
            ingress_ipv6=serves_ipv6,
            generic=self._settings.pool.resources,
        )
        facts = NodeFacts(
            id=identity.peer.node_id,
            hostname=hostname,
            os=description.platform.os,
            architecture=description.platform.architecture,
        )
        self._node_id = identity.peer.node_id
        self._credentials = _credentials(identity)
        self.records = Records(paths.worker)
        userns = self._settings.userns
        self.data_plane = DataPlane(
            run_dir=paths.run,
            underlay_address=config.data_path_address,
            owner=None if userns is None else userns.owner,
            keys=keys,
            ipv6=serves_ipv6,
            containers=self.attachments,
        )
        reporter = Reporter()
        self.attachments.bind(self.data_plane, reporter)
        self.tasks = NodeTasks(
            runtime=self._runtime,
            images=self._images,
            networks=self.data_plane,
            volumes=TaskVolumes(
                self._volumes, Layers(self._runtime.container_dir), facts, self.volume_users_known
            ),
            files=TaskFiles(paths.run / FILES_DIR, facts, userns),
            records=self.records,
            reporter=reporter,
            facts=facts,
            clock=self._clock,
            checks=HealthChecks(
                self._runtime,
                self._clock,
                self._runtime.container_dir,
                self._tell_of_checks,
            ),
            userns=userns,
            pool=self._settings.pool,
        )
        self._agent = Agent(
            node_id=facts.id,
            tasks=self.tasks,
            data_plane=self.data_plane,
            records=self.records,
            reporter=reporter,
            description=description,
            managers=config.managers or (config.advertise_address,),
            connect=self._connect,
            container_dir=self._runtime.container_dir,
            network_keys=NetworkKeyKeeper(KeyFile(paths.worker), keys, self.data_plane),
            attachments=self.attachments,
            announce=self.news.put,
            images=lambda: names_of(self._images.list()),
        )
        self._work = asyncio.create_task(self._keep(self._agent), name="agent")

    def _connect(self, address: str) -> grpc.aio.Channel:
        if self._credentials is None:
            violated("an agent without credentials")
        return secure_channel(address, self._credentials)

    async def _keep(self, agent: Agent) -> None:
        """Run the agent; what it cannot survive is shown and tried again."""
        while True:
            try:
                await agent.run()
            except Exception as error:  # noqa: BLE001 - the node must stay reachable
                violation = find_violation(error)
                if violation is not None and not self._broken.done():
                    _log.critical("agent.broken", exc_info=error)
                    self._broken.set_exception(violation)
                    return
                _log.error("agent.failed", exc_info=error)
                self._agent_failure = f"the agent failed: {type(error).__name__}: {error}"
            await asyncio.sleep(AGENT_RESTART_PAUSE_S)

    async def _cancel(self) -> None:
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
            self._work = None

    async def _stop(self) -> None:
        await self._cancel()
        if self.tasks is not None:
            await self.tasks.stop()
        if self.data_plane is not None:
            await self.data_plane.close(remove=False)
        self._forget()

    def _forget(self) -> None:
        self._agent_failure = ""
        self._node_id = ""
        self._credentials = None
        self.news.clear()
        self.attachments.unbind()
        self._agent = self.tasks = self.data_plane = self.records = None


def _network_keys(file: KeyFile) -> PrivateKeys:
    """The node's keys for encrypted networks; none where it cannot encrypt, which is no failure."""
    try:
        reason = wireguard.missing()
        keys = PrivateKeys() if reason else file.load()
    except (SwarmError, OSError) as error:
        reason, keys = str(error), PrivateKeys()
    if reason:
        _log.warning("encryption.unavailable", reason=reason)
    return keys


def _credentials(identity: NodeIdentity) -> grpc.ChannelCredentials:
    return channel_credentials(identity.root_pem, identity.certificate_pem, identity.key_pem)


class WorkerControlServer(node_pb2_grpc.WorkerControlServicer):
    """Serves `shoal.api.v1.WorkerControl` to swarmd."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership

    @override
    async def Reload(
        self, request: node_pb2.ReloadRequest, context: Context
    ) -> node_pb2.ReloadResponse:
        await self._membership.reload(decode_lock_keys(request.lock_keys))
        return node_pb2.ReloadResponse()

    @override
    async def ReloadIdentity(
        self, request: node_pb2.ReloadIdentityRequest, context: Context
    ) -> node_pb2.ReloadIdentityResponse:
        await self._membership.reload_identity(decode_lock_keys(request.lock_keys))
        return node_pb2.ReloadIdentityResponse()

    @override
    async def WatchMembership(
        self, request: node_pb2.WatchMembershipRequest, context: Context
    ) -> AsyncIterator[node_pb2.MembershipNews]:
        async with aclosing(self._membership.news.follow()) as all_news:
            async for news in all_news:
                certificate = news.node.certificate
                yield node_pb2.MembershipNews(
                    desired_role=types_pb2.NodeRole.ValueType(news.node.certified_role),
                    managers=news.managers,
                    root_ca=news.root_ca,
                    renew_certificate=certificate is not None and certificate.renew,
                )

    @override
    async def RemoveTasks(
        self, request: node_pb2.RemoveTasksRequest, context: Context
    ) -> node_pb2.RemoveTasksResponse:
        await self._membership.remove_tasks()
        return node_pb2.RemoveTasksResponse()


class WorkerTelemetry(TelemetryServer):
    """Reads the containers before each scrape."""

    def __init__(self, membership: Membership, collector: ContainerCollector) -> None:
        super().__init__(lambda: membership.why_not_ready)
        self._membership = membership
        self._collector = collector

    @override
    async def GetMetrics(
        self, request: node_pb2.GetMetricsRequest, context: Context
    ) -> node_pb2.GetMetricsResponse:
        tasks, data_plane = self._membership.tasks, self._membership.data_plane
        if tasks is None or data_plane is None:
            self._collector.clear()
        else:
            await self._collector.refresh(tasks, data_plane)
        return await super().GetMetrics(request, context)


class Parts(NamedTuple):
    """What the worker hands to a component that is run in its process."""

    settings: WorkerSettings
    runtime: NativeRuntime
    images: ImageStore
    membership: Membership
    volumes: LocalVolumes


WaitBroken = Callable[[], Coroutine[Any, Any, None]]
Extension = Callable[[Parts], AbstractAsyncContextManager[WaitBroken]]
"""One more component: started after all others and stopped before them. What it yields waits until
it broke an invariant, and raises that."""


async def run(settings: WorkerSettings, extension: Extension | None = None) -> None:
    """Run the worker until SIGTERM or SIGINT; containers run on."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    paths = settings.paths
    async with AsyncExitStack() as stack:
        images = await ImageStore.open(Path(paths.images), registries=settings.registries)
        stack.push_async_callback(_close_images, images)
        runtime = NativeRuntime(
            state_dir=str(paths.worker),
            run_dir=str(paths.run),
            cgroup_parent=settings.cgroup_parent,
            selinux=settings.selinux,
        )
        volumes = await LocalVolumes.open(paths.volumes, paths.run / "volumes", SystemClock())
        stack.callback(volumes.close)
        await asyncio.to_thread(Layers(runtime.container_dir).open)
        await runtime.ensure_running()
        stack.push_async_callback(runtime.close)
        membership = Membership(settings, runtime, images, volumes)
        volumes.add_users(membership.volume_users, membership.running_volume_users)
        stack.push_async_callback(membership.close)
        await membership.reload(settings.lock_keys)
        await _serve(stack, paths, membership, images)
        supervisor = await stack.enter_async_context(Supervisor())
        collector = Collector(images, membership.image_users, settings.image_marks, SystemClock())
        supervisor.start("image collection", lambda: _collect_images(images, collector))
        waits = [stop.wait(), membership.wait_broken()]
        if extension is not None:
            parts = Parts(settings, runtime, images, membership, volumes)
            waits.append((await stack.enter_async_context(extension(parts)))())
        membership.volume_users_known.set()
        _log.info("worker.started", hostname=settings.hostname)
        await _first_of(*waits)
        _log.info("worker.stopping")


async def _collect_images(images: ImageStore, collector: Collector) -> None:
    """After the start has had its time: remove what a crash left, then keep the disk from filling.

    Raises: OSError; begun again then.
    """
    await asyncio.sleep(COLLECT_DELAY_S)
    report = await images.gc()
    _log.info("images.collected", blobs=report.blobs, snapshots=report.snapshots)
    await collector.run()


async def _close_images(images: ImageStore) -> None:
    """Give the store up when the jobs of the calls that were cut short have cleaned up."""
    try:
        async with asyncio.timeout(JOBS_END_S):
            while True:
                try:
                    await images.aclose()
                    return
                except FailedPrecondition:
                    await asyncio.sleep(JOBS_POLL_S)
    except TimeoutError:
        _log.warning("images.jobs_cut_short")  # the next start cleans up after them


async def _first_of(*waits: Coroutine[Any, Any, object]) -> None:
    """Wait until one of them is done, and raise what it raises."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


async def _serve(
    stack: AsyncExitStack, paths: NodePaths, membership: Membership, images: ImageStore
) -> None:
    collector = ContainerCollector()
    REGISTRY.register(collector)
    stack.callback(REGISTRY.unregister, collector)
    server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=server_options())
    node_pb2_grpc.add_ImagesServicer_to_server(ImagesServer(images, membership.image_users), server)
    node_pb2_grpc.add_WorkerControlServicer_to_server(WorkerControlServer(membership), server)
    node_pb2_grpc.add_TelemetryServicer_to_server(WorkerTelemetry(membership, collector), server)
    paths.worker_socket.unlink(missing_ok=True)
    server.add_insecure_port(f"unix:{paths.worker_socket}")
    await server.start()
    stack.push_async_callback(server.stop, STOP_GRACE_S)
