"""Composition root of the worker process: what is started, in which order, and stopped again.

Images and runtime are there always; the agent comes with the node's membership in a cluster and
goes with it, without restarting the process. No logic lives here.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import msgspec
import structlog
from typing_extensions import override

from shoal.api.v1 import node_pb2, node_pb2_grpc
from shoal.clock import SystemClock
from shoal.errors import NotFound, SwarmError
from shoal.security.grpc_tls import channel_credentials, secure_channel, server_options
from shoal.security.identity import NodeIdentity, read_identity
from shoal.settings.node import NodeConfig, read_node_config
from shoal.settings.paths import NodePaths
from shoal.telemetry.metrics import REGISTRY
from shoal.wire.errors import ErrorInterceptor
from shoal.wire.telemetry import TelemetryServer
from worker.agent.agent import Agent
from worker.agent.dataplane import DataPlane
from worker.agent.description import describe_node
from worker.agent.records import Records
from worker.agent.reporter import Reporter
from worker.agent.tasks import NodeTasks
from worker.agent.templates import NodeFacts
from worker.images.server import ImagesServer
from worker.images.store import ImageStore
from worker.metrics import ContainerCollector
from worker.runtime.client import NativeRuntime

STOP_GRACE_S = 1.0
AGENT_RESTART_PAUSE_S = 1.0

Context = grpc.aio.ServicerContext[Any, Any]

_log = structlog.get_logger()


class WorkerSettings(msgspec.Struct, frozen=True):
    """What swarmd says when it starts the worker."""

    paths: NodePaths
    hostname: str
    cgroup_parent: str


class Membership:
    """The agent and what belongs to it, while the node is in a cluster."""

    def __init__(
        self, settings: WorkerSettings, runtime: NativeRuntime, images: ImageStore
    ) -> None:
        self._settings = settings
        self._runtime = runtime
        self._images = images
        self._clock = SystemClock()
        self._agent: Agent | None = None
        self._work: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()
        self.tasks: NodeTasks | None = None
        self.data_plane: DataPlane | None = None
        self.records: Records | None = None

    @property
    def why_not_ready(self) -> str:
        """The reason why the node does not do all it should; empty when it does."""
        return "" if self._agent is None else self._agent.why_not_ready

    def images_in_use(self) -> list[str]:
        """Ids of the images of this node's tasks."""
        found: list[str] = []
        for task in self.tasks.tasks() if self.tasks is not None else ():
            try:
                found.append(self._images.resolve(task.container.image).id)
            except SwarmError:
                continue
        return found

    async def reload(self) -> None:
        """Start the agent if the node is in a cluster now, stop it if it no longer is."""
        async with self._changing:
            await self._stop()
            paths = self._settings.paths
            try:
                identity = await asyncio.to_thread(read_identity, paths.identity)
            except NotFound:
                return
            config = await asyncio.to_thread(read_node_config, paths.node_config)
            if config is not None:
                self._start(identity, config)

    async def remove_tasks(self) -> None:
        """Stop and remove everything of the cluster: containers, data plane, records."""
        async with self._changing:
            tasks, data_plane, records = self.tasks, self.data_plane, self.records
            await self._cancel()
            if tasks is not None:
                await tasks.remove_all()
            for status in await self._runtime.list():
                await self._runtime.remove(status.id, force=True)
            if data_plane is not None:
                await data_plane.close(remove=True)
            if records is not None:
                records.clear()
            self._forget()

    async def close(self) -> None:
        """Stop the agent; containers and data plane stay as they are."""
        async with self._changing:
            await self._stop()

    def _start(self, identity: NodeIdentity, config: NodeConfig) -> None:
        paths, hostname = self._settings.paths, self._settings.hostname
        description = describe_node(hostname, config.data_path_address, identity.root_pem)
        facts = NodeFacts(
            id=identity.peer.node_id,
            hostname=hostname,
            os=description.platform.os,
            architecture=description.platform.architecture,
        )
        credentials = channel_credentials(
            identity.root_pem, identity.certificate_pem, identity.key_pem
        )
        self.records = Records(paths.worker)
        self.data_plane = DataPlane(run_dir=paths.run, underlay_address=config.data_path_address)
        reporter = Reporter()
        self.tasks = NodeTasks(
            runtime=self._runtime,
            images=self._images,
            networks=self.data_plane,
            records=self.records,
            reporter=reporter,
            facts=facts,
            clock=self._clock,
        )
        self._agent = Agent(
            tasks=self.tasks,
            data_plane=self.data_plane,
            records=self.records,
            reporter=reporter,
            description=description,
            managers=config.managers,
            connect=lambda address: secure_channel(address, credentials),
            container_dir=self._runtime.container_dir,
        )
        self._work = asyncio.create_task(self._keep(self._agent), name="agent")

    async def _keep(self, agent: Agent) -> None:
        """Run the agent; what it cannot survive is shown and tried again."""
        while True:
            try:
                await agent.run()
            except Exception as error:  # noqa: BLE001 - the node must stay reachable
                _log.error("agent.failed", exc_info=error)
                agent.why_not_ready = f"{type(error).__name__}: {error}"
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
        self._agent = self.tasks = self.data_plane = self.records = None


class WorkerControlServer(node_pb2_grpc.WorkerControlServicer):
    """Serves `shoal.api.v1.WorkerControl` to swarmd."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership

    @override
    async def Reload(
        self, request: node_pb2.ReloadRequest, context: Context
    ) -> node_pb2.ReloadResponse:
        await self._membership.reload()
        return node_pb2.ReloadResponse()

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


async def run(settings: WorkerSettings) -> None:
    """Run the worker until SIGTERM or SIGINT; containers run on."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    paths = settings.paths
    async with AsyncExitStack() as stack:
        images = await ImageStore.open(Path(paths.images))
        stack.push_async_callback(images.aclose)
        runtime = NativeRuntime(
            state_dir=str(paths.worker),
            run_dir=str(paths.run),
            cgroup_parent=settings.cgroup_parent,
        )
        await runtime.ensure_running()
        stack.push_async_callback(runtime.close)
        membership = Membership(settings, runtime, images)
        stack.push_async_callback(membership.close)
        await membership.reload()
        await _serve(stack, paths, membership, images)
        _log.info("worker.started", hostname=settings.hostname)
        await stop.wait()
        _log.info("worker.stopping")


async def _serve(
    stack: AsyncExitStack, paths: NodePaths, membership: Membership, images: ImageStore
) -> None:
    collector = ContainerCollector()
    REGISTRY.register(collector)
    stack.callback(REGISTRY.unregister, collector)
    server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=server_options())
    node_pb2_grpc.add_ImagesServicer_to_server(
        ImagesServer(images, membership.images_in_use), server
    )
    node_pb2_grpc.add_WorkerControlServicer_to_server(WorkerControlServer(membership), server)
    node_pb2_grpc.add_TelemetryServicer_to_server(WorkerTelemetry(membership, collector), server)
    paths.worker_socket.unlink(missing_ok=True)
    server.add_insecure_port(f"unix:{paths.worker_socket}")
    await server.start()
    stack.push_async_callback(server.stop, STOP_GRACE_S)
