"""The composition root of a node: everything is made here, in order, and ended in reverse.

Order: directories and locks; what the node is; the HTTP pages; the socket; the processes. What
can fail for a reason of the environment fails before the first process is started.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from random import SystemRandom
from types import TracebackType
from typing import Self

import structlog

from shoal.aio.supervise import Supervisor
from shoal.clock import SystemClock
from shoal.security.lock import encode_lock_keys
from swarmd import forcing, prepare, socket_server, web
from swarmd.autolock import Autolock
from swarmd.children import MANAGER, WORKER, Child, CommandFor, daemon_command
from swarmd.membership import MembershipChanges, ProcessPair
from swarmd.node import LocalNode
from swarmd.node_server import Fixed, NodeServer
from swarmd.proxy import Proxy
from swarmd.renewal import CertificateRenewal, Routes
from swarmd.roles import RoleSwitch
from swarmd.settings import DaemonSettings
from swarmd.status import NodeStatus, Process
from swarmd.store import ManagerStore
from swarmd.upstream import Upstream

_log = structlog.get_logger()


class Daemon:
    """A node's swarmd. `async with` it: inside, it serves."""

    def __init__(self, settings: DaemonSettings, *, command: CommandFor = daemon_command) -> None:
        """command: the command line of a process, by name."""
        self.settings = settings
        self.metrics_address = ""
        self._command = command
        self._stack = AsyncExitStack()
        self._supervisor = Supervisor()

    async def __aenter__(self) -> Self:
        """Start in order. Raises SwarmError with what the environment lacks; nothing remains."""
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop in reverse; the containers run on."""
        _log.info("node.stopping")
        await self._stack.aclose()

    async def wait_failed(self) -> None:
        """Wait until a component broke an invariant, and raise that."""
        await self._supervisor.wait_failed()

    async def _start(self) -> None:
        paths, clock = self.settings.paths, SystemClock()
        await asyncio.to_thread(self._take_directories)
        node = LocalNode(paths, clock)
        await asyncio.to_thread(node.load_blocking)
        if node.membership.locked:
            _log.warning("node.locked", remedy="`swarmctl unlock`")
        elif node.error:
            _log.error("node.unusable", reason=node.error)
        store = ManagerStore(self.settings.store)
        if not node.membership.locked:
            await asyncio.to_thread(self._settle_blocking, node, store)
        manager, worker = self._child(MANAGER, node), self._child(WORKER, node)
        to_manager = Upstream(MANAGER, paths.manager_socket, manager.why_not)
        to_worker = Upstream(WORKER, paths.worker_socket, worker.why_not)
        for upstream in (to_manager, to_worker):
            self._stack.push_async_callback(upstream.close)
        status = NodeStatus(node, [Process(manager, to_manager), Process(worker, to_worker)])
        changes = MembershipChanges(
            node,
            ProcessPair(manager, worker, to_manager, to_worker),
            hostname=self.settings.hostname,
            clock=clock,
            store=store,
            after_unlock=lambda: self._settle_blocking(node, store),
        )
        if self.settings.metrics_address:
            self.metrics_address = await self._stack.enter_async_context(
                web.serve(self.settings.metrics_address, status)
            )
        await self._stack.enter_async_context(
            socket_server.serve(
                paths.swarmd_socket,
                NodeServer(Fixed(self.settings, self.metrics_address), node, status, changes),
                Proxy({MANAGER: to_manager, WORKER: to_worker}, node.refusal),
            )
        )
        await self._run_children(manager, worker)
        roles = RoleSwitch(node, manager)
        await asyncio.to_thread(roles.remove_log_blocking)  # of a demotion that was interrupted
        routes = Routes(to_manager, to_worker)
        renewal = CertificateRenewal(node, routes, roles, clock=clock, draw=SystemRandom().random)
        autolock = Autolock(node, routes, renew=renewal.renew_soon)
        self._supervisor.start("certificate renewal", renewal.run)
        self._supervisor.start("membership news", renewal.follow_news)
        self._supervisor.start("autolock", autolock.run)
        self._stack.push_async_callback(changes.finish)
        worker.start()
        if node.membership.is_manager:
            manager.start()
        _log.info("node.started", state=node.state, metrics_address=self.metrics_address)

    def _take_directories(self) -> None:
        prepare.make_directories(self.settings.paths)
        for directory in (self.settings.paths.state, self.settings.paths.run):
            self._stack.callback(os.close, prepare.lock(directory))

    def _settle_blocking(self, node: LocalNode, store: ManagerStore) -> None:
        """What the command line asks of the node, once its files can be read."""
        store.settle_blocking(node)
        if self.settings.force_new_cluster:
            forcing.force_new_cluster_blocking(node.paths, node.membership, node.lock.keys)

    def _child(self, name: str, node: LocalNode) -> Child:
        pid_file = self.settings.paths.run / f"{name}.pid"
        return Child(
            name,
            lambda: self._command(self.settings, name),
            pid_file,
            stdin=lambda: encode_lock_keys(node.lock.keys),
        )

    async def _run_children(self, *children: Child) -> None:
        await self._stack.enter_async_context(self._supervisor)
        for child in children:
            self._supervisor.start(child.name, child.run)

        async def stop_all() -> None:
            await asyncio.gather(*(child.stop() for child in children))

        self._stack.push_async_callback(stop_all)
