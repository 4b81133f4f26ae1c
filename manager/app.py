"""Composition root of the manager process: what is started, in which order, and stopped again.

Order: state from disk, log, first entry of a new cluster, then what serves and decides. Everything
stops in the reverse order. No logic lives here.
"""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any

import grpc
import msgspec
import structlog

from manager.ca.live import LiveIdentity, ManagerControlServer
from manager.ca.rotation import trust_of
from manager.ca.rotation_loop import RotationLoop
from manager.ca.server import CaServer
from manager.consensus.local import LocalConsensus, Recovery, recover
from manager.controlapi.server import ControlServer
from manager.controlapi.watch import WatchServer
from manager.dispatcher.driver import Dispatcher
from manager.dispatcher.server import DispatcherServer
from manager.logbroker.broker import LogBroker
from manager.logbroker.server import LogBrokerServer, LogsServer
from manager.metrics import StoreCollector
from manager.permissions import permissions
from manager.reconcile.loop import ReconcileLoop
from manager.store.store import Store, commit_with_retry
from manager.store.view import View
from shoal.aio.supervise import Supervisor
from shoal.api.v1 import (
    ca_pb2_grpc,
    control_pb2_grpc,
    dispatcher_pb2_grpc,
    logs_pb2_grpc,
    node_pb2_grpc,
    watch_pb2_grpc,
)
from shoal.clock import SystemClock
from shoal.errors import FailedPrecondition, Unavailable
from shoal.ids import NodeId
from shoal.model.defaults import SNAPSHOT_INTERVAL
from shoal.model.objects import Cluster, Node
from shoal.model.plan import Change, create, update
from shoal.model.types import ManagerStatus
from shoal.security.grpc_tls import server_options
from shoal.security.identity import NodeIdentity, read_identity
from shoal.security.interceptor import AuthorizationInterceptor
from shoal.settings.node import NodeConfig, read_node_config
from shoal.settings.paths import NodePaths
from shoal.telemetry.metrics import REGISTRY
from shoal.wire.errors import ErrorInterceptor
from shoal.wire.objects import entry_from_bytes
from shoal.wire.telemetry import TelemetryServer

STOP_GRACE_S = 1.0
CONCURRENT_RPCS_MAX = 16_384
"""Calls in progress on the whole server; an agent has four streams open. More are refused."""

_log = structlog.get_logger()


class Manager(msgspec.Struct):
    """What the parts of a manager share."""

    paths: NodePaths
    identity: NodeIdentity
    config: NodeConfig
    clock: SystemClock
    store: Store
    live: LiveIdentity


async def run(paths: NodePaths) -> None:
    """Run the manager until SIGTERM or SIGINT.

    Raises: NotFound, FailedPrecondition, CorruptLog and what else keeps a manager from starting.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    identity = await asyncio.to_thread(read_identity, paths.identity)
    config = await asyncio.to_thread(read_node_config, paths.node_config)
    if config is None:
        raise FailedPrecondition(f"{paths.node_config} is missing: leave and join again")
    recovery = await asyncio.to_thread(recover, paths.raft, identity.peer.cluster_id)
    # The recovered rows live as long as the process: keep them out of every collection.
    gc.freeze()
    clock = SystemClock()
    store = Store(recovery.tables, clock)
    live = LiveIdentity(paths.identity, identity, clock)
    manager = Manager(paths, identity, config, clock, store, live)
    async with AsyncExitStack() as stack:
        consensus = await _start_consensus(stack, manager, recovery)
        supervisor = await _start_servers(stack, manager)
        await _announce(manager)
        _log.info("manager.started", version=store.view.version, listen=config.listen_address)
        await _wait_any(stop.wait(), consensus.wait_failed(), supervisor.wait_failed())
        _log.info("manager.stopping")


async def _start_consensus(
    stack: AsyncExitStack, manager: Manager, recovery: Recovery
) -> LocalConsensus:
    cluster = recovery.tables.cluster
    interval = None if cluster is None else cluster.spec.raft.snapshot_interval
    consensus = LocalConsensus(
        recovery, manager.store, snapshot_interval=interval or SNAPSHOT_INTERVAL
    )
    await stack.enter_async_context(consensus)
    manager.store.attach(consensus)
    bootstrap = manager.paths.bootstrap
    if recovery.tables.cluster is None:
        if not bootstrap.exists():
            raise FailedPrecondition(
                f"{manager.paths.raft} holds no cluster: its log is gone; "
                "leave with --force, then init or join again"
            )
        entry = entry_from_bytes(await asyncio.to_thread(bootstrap.read_bytes))
        await manager.store.commit([create(action.object) for action in entry.actions])
    await asyncio.to_thread(bootstrap.unlink, missing_ok=True)
    return consensus


async def _start_servers(stack: AsyncExitStack, manager: Manager) -> Supervisor:
    store, clock = manager.store, manager.clock
    dispatcher = Dispatcher(store, clock, manager_id=manager.identity.peer.node_id)
    broker = LogBroker(store)
    collector = StoreCollector(store)
    REGISTRY.register(collector)
    stack.callback(REGISTRY.unregister, collector)
    supervisor = await stack.enter_async_context(Supervisor())
    supervisor.start("task statuses", dispatcher.statuses.run)
    supervisor.start("dispatcher", dispatcher.run)
    supervisor.start("node expiry", dispatcher.run_expiry)
    supervisor.start("reconcile", ReconcileLoop(store, clock).run)
    supervisor.start("root rotation", RotationLoop(store).run)
    supervisor.start("removed nodes", lambda: _follow_removed_nodes(store, manager, broker))
    interceptors = [
        AuthorizationInterceptor(manager.live.verifier, permissions()),
        ErrorInterceptor(),
    ]
    server = grpc.aio.server(
        interceptors=interceptors,
        options=server_options(),
        maximum_concurrent_rpcs=CONCURRENT_RPCS_MAX,
    )
    control_pb2_grpc.add_ControlServicer_to_server(ControlServer(store, clock), server)
    watch_pb2_grpc.add_WatchServicer_to_server(WatchServer(store), server)
    logs_pb2_grpc.add_LogsServicer_to_server(LogsServer(broker), server)
    logs_pb2_grpc.add_LogBrokerServicer_to_server(LogBrokerServer(broker), server)
    dispatcher_pb2_grpc.add_DispatcherServicer_to_server(
        DispatcherServer(dispatcher, store, clock), server
    )
    ca_pb2_grpc.add_CaServicer_to_server(CaServer(store, clock), server)
    node_pb2_grpc.add_ManagerControlServicer_to_server(ManagerControlServer(manager.live), server)
    node_pb2_grpc.add_TelemetryServicer_to_server(TelemetryServer(lambda: ""), server)
    _bind(server, manager)
    await server.start()
    stack.push_async_callback(server.stop, STOP_GRACE_S)
    return supervisor


def _bind(server: grpc.aio.Server, manager: Manager) -> None:
    address = manager.config.listen_address
    manager.paths.manager_socket.unlink(missing_ok=True)
    try:
        server.add_secure_port(address, manager.live.server_credentials)
    except RuntimeError as error:
        raise Unavailable(
            f"cannot listen on {address}: the port is taken or the address is not this node's"
        ) from error
    server.add_insecure_port(f"unix:{manager.paths.manager_socket}")


async def _announce(manager: Manager) -> None:
    """Write this manager's address into its node, when it changed."""
    node_id = manager.identity.peer.node_id
    address = manager.config.advertise_address

    def build(view: View) -> list[Change]:
        node = view.nodes.get(node_id)
        if node is None:
            return []
        old = node.manager_status or ManagerStatus()
        new = old.replaced(address=address, leader=True, reachable=True)
        return [] if new == node.manager_status else [update(node.replaced(manager_status=new))]

    await commit_with_retry(manager.store, build)


async def _follow_removed_nodes(store: Store, manager: Manager, broker: LogBroker) -> None:
    """Refuse the certificates of removed nodes, and end their streams, once that is committed.

    Roots are believed as the cluster's row names them.
    """

    def refuse(cluster: Cluster | None) -> None:
        if cluster is not None:
            removed = frozenset(NodeId(node_id) for node_id in cluster.blacklisted_certificates)
            manager.live.verifier.replace_removed(removed)
            manager.live.believe(trust_of(cluster.root_ca))

    with store.watch() as watcher:
        refuse(store.view.cluster)
        async for commit in watcher:
            if any(isinstance(event.object, Cluster) for event in commit.events):
                refuse(store.view.cluster)
            for event in commit.events:
                if event.object is None and isinstance(event.old, Node):
                    broker.forget(event.old.id)


async def _wait_any(*waits: Coroutine[Any, Any, object]) -> None:
    """Wait for the first to end, and raise what it raised."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    for task in done:
        task.result()
