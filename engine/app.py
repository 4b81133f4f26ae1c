"""The composition root of the engine: its parts, handed what they call, and the API over them.

A new part is made in `_parts` and its routes are listed in `_routes`; nothing else changes.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from importlib.metadata import version as version_of
from typing import Any, cast

from engine.build.builder import Builder
from engine.build.context import Contexts
from engine.build.images import StepImages
from engine.cluster.client import ClusterClient
from engine.cluster.following import ClusterEvents
from engine.cluster.settings import cluster_info
from engine.cluster.standing import Standing, swarm_info
from engine.cluster.watch_calls import WatchCalls
from engine.containers.announced import AnnouncedNetworks
from engine.containers.checks import NodeFacts
from engine.containers.commit import Commits
from engine.containers.execs import Execs
from engine.containers.files import ContainerFiles
from engine.containers.parts import ContainerParts, Needs, run_containers
from engine.containers.service import NodeRuntime
from engine.containers.spanning import SpanningNetworks
from engine.containers.volumes import ToldVolumes
from engine.events import EventBus
from engine.facts import machine, words
from engine.facts.identity import read_or_make_id
from engine.facts.programs import find_programs
from engine.http.dispatch import Dispatcher
from engine.http.routing import Route, Table
from engine.http.server import serve
from engine.http.settings import TlsSettings
from engine.images.service import NodeImages
from engine.ports import Census
from engine.resources import (
    archive,
    build,
    containers,
    distribution,
    events,
    execs,
    files,
    images,
    networks,
    nodes,
    plugins,
    service_logs,
    services,
    streams,
    swarm,
    system,
    unserved,
    usage,
    volumes,
)
from shoal.aio.supervise import Supervisor
from shoal.clock import NS_PER_S, SystemClock
from shoal.errors import SwarmError
from shoal.model.enums import NodeRole
from worker.app import Extension, Parts, WaitBroken
from worker.files.service import Files
from worker.images.oci import host_platform
from worker.logs.service import NodeLogs
from worker.network.local.service import Networks as LocalNetworks
from worker.runtime import hosting
from worker.volumes.local import DRIVER

VERSION = version_of("shoal")
PRODUCT = f"Shoal/{VERSION} (linux)"


def extension(tls: TlsSettings | None) -> Extension:
    """The engine as a component of the worker process. tls: serve on TCP, too."""

    @asynccontextmanager
    async def run(parts: Parts) -> AsyncIterator[WaitBroken]:
        async with AsyncExitStack() as stack:
            engine = await Engine.open(parts, stack)
            dispatcher = Dispatcher(Table(engine.routes()), PRODUCT)
            await stack.enter_async_context(
                serve(dispatcher, parts.settings.paths.docker_socket, tls)
            )

            def wait_broken() -> Coroutine[Any, Any, None]:
                return _first_of(
                    dispatcher.wait_broken(),
                    engine.containers.wait_broken(),
                    engine.supervisor.wait_failed(),
                )

            yield wait_broken

    return run


class Engine:
    """The parts of the engine."""

    def __init__(self, parts: Parts, node: words.Node) -> None:
        self._parts = parts
        self._node = node
        self._clock = SystemClock()
        self.containers: ContainerParts
        self.commits: Commits
        self.images: NodeImages
        self._files = Files()
        self.builder: Builder
        self.supervisor: Supervisor
        self._events = EventBus(self._clock)
        self._watch = WatchCalls(parts.settings.paths.swarmd_socket)
        self.cluster_events = ClusterEvents(self._watch, self._events)
        self._cluster = ClusterClient(parts.settings.paths.swarmd_socket)
        self._volumes = ToldVolumes(parts.volumes, self._events)
        self.networks: AnnouncedNetworks
        self._logs = NodeLogs(parts.runtime.container_dir)
        self._offer = words.Offer(
            runtimes={"native": "", **hosting.runtimes()},
            volume_drivers=(DRIVER,),
            log_drivers=self._logs.drivers(),
            network_drivers=("bridge", "host", "null", "overlay"),
            registries=parts.settings.registries,
            userns=parts.settings.userns is not None,
            selinux=parts.settings.selinux,
            generic=parts.settings.pool.resources,
        )

    @classmethod
    async def open(cls, parts: Parts, stack: AsyncExitStack) -> Engine:
        """Learn what the node is, and take its containers over. Raises: OSError, SwarmError."""
        settings = parts.settings
        node = words.Node(
            id=await asyncio.to_thread(read_or_make_id, settings.paths.engine),
            hostname=settings.hostname,
            version=VERSION,
            state_dir=str(settings.paths.state),
            machine=await asyncio.to_thread(machine.read_machine, settings.paths.state),
            programs=await find_programs(),
        )
        engine = cls(parts, node)
        stack.push_async_callback(engine._cluster.close)
        stack.push_async_callback(engine._watch.close)
        engine.supervisor = await stack.enter_async_context(Supervisor())
        engine.supervisor.start("cluster events", engine.cluster_events.run)
        engine.networks = await stack.enter_async_context(engine._open_networks())
        started = run_containers(engine._container_needs())
        engine.containers = await stack.enter_async_context(started)
        parts.membership.tell_of_checks = engine.containers.containers.tell_of_task
        directory = engine.containers.directory
        parts.volumes.add_users(directory.volume_users, directory.running_volume_users)
        await parts.volumes.settle()
        notes = settings.paths.engine / "committing"
        engine.commits = Commits(engine.containers, parts.images, notes)
        await engine.commits.recover()
        engine.images = NodeImages(
            parts.images, parts.membership.image_users, engine._events, engine._clock
        )
        engine.builder = Builder(
            images=StepImages(parts.images),
            containers=engine.containers.steps,
            files=engine._files,
            contexts=Contexts(settings.paths.engine / "builds", engine._files),
        )
        await engine.builder.open(directory.list())
        return engine

    def routes(self) -> Iterable[Route]:
        """Every operation; of two that match a path, the first answers."""
        yield from system.routes(lambda: words.version(self._node), self._info, self._cluster)
        yield from system.login_routes(self._parts.images.registry)
        yield from events.routes(self._events, self.cluster_events)
        yield from containers.routes(self.containers)
        yield from streams.routes(self.containers)
        yield from execs.routes(Execs(self.containers))
        yield from archive.routes(ContainerFiles(self.containers, self._files), self.commits)
        yield from images.routes(self.images)
        yield from distribution.routes(self.images, self._parts.images.registry)
        yield from usage.routes(self.containers, self.images, self._volumes)
        yield from build.routes(self.builder, self._parts.images.registry)
        yield from volumes.routes(self._volumes, self._events)
        yield from networks.routes(self.containers, self.networks, self._cluster)
        yield from swarm.routes(self._cluster)
        yield from nodes.routes(self._cluster)
        yield from services.routes(self._cluster)
        yield from service_logs.routes(self._cluster)
        yield from files.routes(self._cluster)
        yield from unserved.routes(self._cluster)
        yield from plugins.routes()

    @asynccontextmanager
    async def _open_networks(self) -> AsyncIterator[AnnouncedNetworks]:
        paths = self._parts.settings.paths
        found = await LocalNetworks.open(paths.engine / "networks.json", paths.run, self._clock)
        try:
            spanning = SpanningNetworks(found, self._parts.membership.attachments)
            yield AnnouncedNetworks(spanning, self._events)
        finally:
            await found.close()

    def _container_needs(self) -> Needs:
        node, runtime = self._node, self._parts.runtime
        return Needs(
            records=self._parts.settings.paths.engine / "containers",
            runtime=cast("NodeRuntime", runtime),
            container_dir=runtime.container_dir,
            images=self._parts.images,
            events=self._events,
            facts=NodeFacts(
                cpus=node.machine.cpus,
                cgroup_version=node.machine.cgroups.version,
                platform=host_platform(node.machine.architecture),
                runtimes=frozenset(self._offer.runtimes),
                swap_limit=node.machine.cgroups.swap_limit,
                can_exec=hasattr(runtime, "exec_start"),
            ),
            hostname=node.hostname,
            clock=self._clock,
            volumes=self._volumes,
            logs=self._logs,
            networks=self.networks,
            userns=self._parts.settings.userns,
        )

    async def _info(self) -> dict[str, Any]:
        apparmor = self._parts.runtime.apparmor
        now = words.Now(
            time=_time_text(self._clock.now_ns()),
            census=await self._census(),
            images=len(self._parts.images.list()),
            descriptors=machine.open_descriptors(),
            tasks=len(asyncio.all_tasks()),
            swarm=await self._swarm(),
            event_readers=self._events.readers,
            ip_forwarding=machine.is_set("net/ipv4/ip_forward"),
            bridge_nf_iptables=machine.is_set("net/bridge/bridge-nf-call-iptables"),
            bridge_nf_ip6tables=machine.is_set("net/bridge/bridge-nf-call-ip6tables"),
            apparmor=apparmor.confines,
            further_warnings=(apparmor.warning,) if apparmor.warning else (),
            environment=os.environ,
        )
        return words.info(self._node, self._offer, now)

    async def _swarm(self) -> dict[str, Any]:
        """What the node is to its cluster; on a manager with the cluster's own side."""
        try:
            standing = await self._cluster.standing()
        except SwarmError as error:
            return swarm_info(Standing(state="error", error=error.message))
        found = swarm_info(standing)
        if not found["ControlAvailable"]:
            return found
        try:
            cluster, known = await self._cluster.cluster(), await self._cluster.nodes()
        except SwarmError as error:  # without a leader: what the node knows by itself is told
            return {**found, "Error": error.message}
        managers = sum(one.certified_role is NodeRole.MANAGER for one in known)
        counts = {"Nodes": len(known), "Managers": managers}
        return {**found, **counts, "Cluster": cluster_info(cluster)}

    async def _census(self) -> Census:
        statuses = await self._parts.runtime.list()
        running = sum(one.state == "running" for one in statuses)
        paused = sum(one.state == "running" and one.paused for one in statuses)
        return Census(running - paused, paused, len(statuses) - running)


async def _first_of(*waits: Coroutine[Any, Any, None]) -> None:
    """Wait until one of them is done, and raise what it raises."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _time_text(now_ns: int) -> str:
    seconds, rest_ns = divmod(now_ns, NS_PER_S)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest_ns:09d}Z"
