"""Composition root of the manager process: what is started, in which order, and stopped again.

Order: state, what follows it, what only a leader runs, servers. What keeps the state is a backend's
business (`manager.backends`). Everything stops in the reverse order. No logic lives here.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import grpc
import msgspec
import structlog

from manager.backends.etcd import open_etcd
from manager.backends.interface import Backend, Site
from manager.backends.raft import open_raft
from manager.ca.autolock import wanted_lock
from manager.ca.external import ExternalAuthorities
from manager.ca.live import LiveIdentity, ManagerControlServer
from manager.ca.rotation import trust_of
from manager.ca.rotation_loop import RotationLoop
from manager.ca.server import CaServer
from manager.ca.signing import Signer
from manager.consensus.interfaces import RemovedFromCluster
from manager.controlapi.server import ControlServer
from manager.controlapi.stack_calls import StacksServer
from manager.controlapi.watch import WatchServer
from manager.dispatcher.driver import Dispatcher
from manager.dispatcher.server import DispatcherServer
from manager.leadership.calls import Dial
from manager.leadership.router import HandlerTable, LeaderRouter
from manager.leadership.standing import Standing
from manager.leadership.work import LeaderWork, Term
from manager.logbroker.broker import LogBroker
from manager.logbroker.server import LogBrokerServer, LogsServer
from manager.metrics import StoreCollector
from manager.permissions import API, permissions
from manager.reconcile.loop import ReconcileLoop
from manager.store.store import Store
from shoal import heap
from shoal.aio.supervise import Supervisor
from shoal.api.v1 import (
    ca_pb2_grpc,
    control_pb2_grpc,
    dispatcher_pb2_grpc,
    logs_pb2_grpc,
    node_pb2_grpc,
    stacks_pb2_grpc,
    watch_pb2_grpc,
)
from shoal.clock import SystemClock
from shoal.errors import FailedPrecondition, SwarmError, Unavailable
from shoal.ids import NodeId
from shoal.model.objects import Cluster, Node
from shoal.security.grpc_tls import server_options
from shoal.security.identity import read_identity
from shoal.security.interceptor import AuthorizationInterceptor
from shoal.security.lock import LockKeys
from shoal.settings.node import read_node_config
from shoal.settings.paths import NodePaths
from shoal.telemetry.metrics import REGISTRY
from shoal.wire.errors import ErrorInterceptor
from shoal.wire.telemetry import TelemetryServer

STOP_GRACE_S = 1.0
HAND_OVER_TIMEOUT_S = 2.0
CONCURRENT_RPCS_MAX = 16_384
"""Calls in progress on the whole server; an agent has four streams open. More are refused."""
LEADER_SERVICES = (
    "Control", "Stacks", "Watch", "Logs", "LogBroker", "Dispatcher", "Ca", "RaftMembership",
)  # fmt: skip
"""Served by the leader; other managers pass their calls on."""

_log = structlog.get_logger()


class Manager(msgspec.Struct, frozen=True):
    """What the parts of a manager share."""

    site: Site
    backend: Backend
    router: LeaderRouter

    def why_not_ready(self) -> str:
        """Why this manager cannot serve, "" when it can."""
        reason = self.backend.why_not_ready()
        if reason or self.router.is_serving or self.backend.consensus.leadership.value.address:
            return reason
        return "no manager leads the cluster yet"


async def run(paths: NodePaths, lock_keys: LockKeys | None = None) -> None:
    """Run the manager until SIGTERM or SIGINT.

    lock_keys: what its private key and data keys are encrypted with.
    A manager that was removed gives up its log: should it be wanted again, it joins as a new one.
    Raises: NotFound, FailedPrecondition, CorruptLog and what else keeps a manager from starting.
    """
    try:
        await _run(paths, lock_keys or LockKeys())
    except RemovedFromCluster:
        await asyncio.to_thread(_give_up_log, paths)
        raise


async def _run(paths: NodePaths, lock_keys: LockKeys) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    identity = await asyncio.to_thread(read_identity, paths.identity, lock_keys)
    config = await asyncio.to_thread(read_node_config, paths.node_config)
    if config is None:
        raise FailedPrecondition(f"{paths.node_config} is missing: leave and join again")
    clock = SystemClock()
    live = LiveIdentity(paths.identity, identity, clock, lock_keys)
    site = Site(paths, config, clock, live, Signer(ExternalAuthorities(live, clock)))
    open_backend: Callable[[Site], Backend] = open_etcd if config.store else open_raft
    backend = await asyncio.to_thread(open_backend, site)
    heap.settle()  # the recovered rows are kept out of every collection
    manager = _assemble(site, backend)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(backend)
        supervisor = await _start(stack, manager)
        backend.start(supervisor)
        _log.info(
            "manager.started", version=backend.store.view.version, listen=config.listen_address
        )
        await _wait_any(stop.wait(), backend.wait_failed(), supervisor.wait_failed())
        _log.info("manager.stopping")
        await _hand_over(backend)


def _give_up_log(paths: NodePaths) -> None:
    """Put the log of a removed manager aside; the last one is kept, should it be missed."""
    if paths.raft.exists():
        if paths.raft_removed.exists():
            shutil.rmtree(paths.raft_removed)
        paths.raft.rename(paths.raft_removed)


def _assemble(site: Site, backend: Backend) -> Manager:
    services = (f"{API}.{name}" for name in LEADER_SERVICES)
    router = LeaderRouter(
        services,
        backend.consensus,
        Dial(site.dial, lambda: site.live.identity),
        why_no_leader=backend.why_no_leader,
        only_shows=_only_shows,
    )
    return Manager(site, backend, router)


async def _start(stack: AsyncExitStack, manager: Manager) -> Supervisor:
    site, backend, router = manager.site, manager.backend, manager.router
    collector = StoreCollector(backend.store, lambda: router.is_serving)
    REGISTRY.register(collector)
    stack.callback(REGISTRY.unregister, collector)
    stack.push_async_callback(router.close)
    supervisor = await stack.enter_async_context(Supervisor())
    work = LeaderWork(
        backend.consensus, backend.store, router, lambda term: _lead(site, backend, term)
    )
    supervisor.start("leader", work.run)
    supervisor.start("cluster row", lambda: _follow_cluster(site.live, backend))
    standing = Standing(backend.store, backend.consensus)
    server = grpc.aio.server(
        interceptors=[
            AuthorizationInterceptor(site.live.verifier, permissions(), standing.judge),
            ErrorInterceptor(),
        ],
        options=server_options(),
        maximum_concurrent_rpcs=CONCURRENT_RPCS_MAX,
    )
    backend.add_to_server(server)
    node_pb2_grpc.add_ManagerControlServicer_to_server(
        ManagerControlServer(
            site.live, backend.store, site.clock, lock=backend.lock, signer=site.signer
        ),
        server,
    )
    node_pb2_grpc.add_TelemetryServicer_to_server(
        TelemetryServer(manager.why_not_ready, manager.backend.is_stuck), server
    )
    server.add_generic_rpc_handlers((router,))
    _bind(server, site)
    await server.start()
    stack.push_async_callback(server.stop, STOP_GRACE_S)
    stack.callback(site.live.close)
    return supervisor


@asynccontextmanager
async def _lead(site: Site, backend: Backend, term: Term) -> AsyncIterator[Mapping[str, Any]]:
    """What runs while this manager leads, and the handlers of what it serves meanwhile."""
    store, clock, most = term.store, site.clock, backend.changes_max
    dispatcher = Dispatcher(store, store.clock, manager_id=site.node_id, changes_max=most)
    broker = LogBroker(store)
    start = term.supervisor.start
    table: Any = HandlerTable()  # takes the place of a server
    backend.begin(term, table)
    start("task statuses", dispatcher.statuses.run)
    start("dispatcher", dispatcher.run)
    start("node expiry", dispatcher.run_expiry)
    start("reconcile", ReconcileLoop(store, store.clock, changes_max=most).run)
    start("root rotation", RotationLoop(store, site.signer).run)
    start("removed nodes", lambda: _follow_removed_nodes(store, broker))
    control = ControlServer(
        store,
        clock,
        term=term.number,
        hand_over=backend.begin_hand_over,
        show_endpoints=dispatcher.show_endpoints,
        signer=site.signer,
    )
    control_pb2_grpc.add_ControlServicer_to_server(control, table)
    stacks_pb2_grpc.add_StacksServicer_to_server(StacksServer(store, clock), table)
    watch_pb2_grpc.add_WatchServicer_to_server(WatchServer(store), table)
    logs_pb2_grpc.add_LogsServicer_to_server(LogsServer(broker), table)
    logs_pb2_grpc.add_LogBrokerServicer_to_server(LogBrokerServer(broker), table)
    dispatcher_pb2_grpc.add_DispatcherServicer_to_server(
        DispatcherServer(dispatcher, store, clock), table
    )
    ca_pb2_grpc.add_CaServicer_to_server(CaServer(store, clock, site.signer), table)
    barrier = backend.consensus.read_barrier
    yield {
        method: term.calls.guarded(handler, barrier, shows=_is_read(method))
        for method, handler in table.methods.items()
    }


def _is_read(method: str) -> bool:
    """Whether a call shows state that must not be older than what was acknowledged."""
    service, _, name = method.rpartition("/")
    service = service.removeprefix(f"/{API}.")
    reads = ("Get", "List", "Backup", "Explain", "Plan")
    return service == "Watch" or (service in {"Control", "Stacks"} and name.startswith(reads))


def _only_shows(method: str) -> bool:
    """Whether a call changes nothing, so that it may be made twice."""
    return _is_read(method) or method.endswith(("/GetRootCaCertificate", "/SubscribeLogs"))


def _bind(server: grpc.aio.Server, site: Site) -> None:
    address = site.config.listen_address
    site.paths.manager_socket.unlink(missing_ok=True)
    try:
        server.add_secure_port(address, site.live.server_credentials)
    except RuntimeError as error:
        raise Unavailable(
            f"cannot listen on {address}: the port is taken or the address is not this node's"
        ) from error
    server.add_insecure_port(f"unix:{site.paths.manager_socket}")


async def _hand_over(backend: Backend) -> None:
    """Let another manager lead, so that the cluster need not find out that this one is gone."""
    with suppress(SwarmError, TimeoutError):
        async with asyncio.timeout(HAND_OVER_TIMEOUT_S):
            await backend.hand_over()


async def _follow_cluster(live: LiveIdentity, backend: Backend) -> None:
    """Follow the cluster's row, on every manager.

    The certificates of removed nodes are refused once their removal is committed; roots are
    believed as the row names them; swarmd is told the unlock key,
    and the backend the settings.
    """
    store = backend.store

    def use(cluster: Cluster | None) -> None:
        if cluster is not None:
            live.verifier.replace_removed(
                {
                    NodeId(node_id): entry.expires_at_ns
                    for node_id, entry in cluster.blacklisted_certificates.items()
                }
            )
            live.believe(trust_of(cluster.root_ca))
            live.wanted_lock.set(wanted_lock(cluster, live.wanted_lock.value))
            backend.use(cluster)

    while True:  # a snapshot, or reading anew, that replaces the state ends the watch
        with suppress(FailedPrecondition), store.watch() as watcher:
            use(store.view.cluster)
            async for commit in watcher:
                if any(isinstance(event.object, Cluster) for event in commit.events):
                    use(store.view.cluster)


async def _follow_removed_nodes(store: Store, broker: LogBroker) -> None:
    """End the log streams of nodes that were removed."""
    with store.watch() as watcher:
        async for commit in watcher:
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
