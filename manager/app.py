"""Composition root of the manager process: what is started, in which order, and stopped again.

Order: state from disk, network, Raft, what only a leader runs, servers; a manager without a log
then asks to be let in. Everything stops in the reverse order. No logic lives here.
"""

from __future__ import annotations

import asyncio
import gc
import shutil
import signal
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import grpc
import msgspec
import structlog

from manager.ca.live import LiveIdentity, ManagerControlServer
from manager.ca.rotation import trust_of
from manager.ca.rotation_loop import RotationLoop
from manager.ca.server import CaServer
from manager.consensus.changes import MembershipChanges
from manager.consensus.driver import RaftDriver
from manager.consensus.interfaces import RemovedFromCluster
from manager.consensus.recovery import Place, Recovery, recover
from manager.controlapi.server import ControlServer
from manager.controlapi.watch import WatchServer
from manager.dispatcher.driver import Dispatcher
from manager.dispatcher.server import DispatcherServer
from manager.leadership.joining import ask_to_join
from manager.leadership.members import MembersKeeper, WedgeWatch
from manager.leadership.raft import RaftConsensus, why_no_leader
from manager.leadership.router import Dial, HandlerTable, LeaderRouter
from manager.leadership.server import RaftMembershipServer
from manager.leadership.work import LeaderWork, Term
from manager.logbroker.broker import LogBroker
from manager.logbroker.server import LogBrokerServer, LogsServer
from manager.metrics import StoreCollector
from manager.permissions import API, permissions
from manager.reconcile.loop import ReconcileLoop
from manager.roles.loop import RoleLoop
from manager.storage.member import Opening
from manager.store.store import Store
from manager.transport.server import RaftServer
from manager.transport.transport import GrpcTransport
from shoal.aio.supervise import Supervisor
from shoal.api.v1 import (
    ca_pb2_grpc,
    control_pb2_grpc,
    dispatcher_pb2_grpc,
    logs_pb2_grpc,
    node_pb2_grpc,
    raft_pb2_grpc,
    watch_pb2_grpc,
)
from shoal.clock import SystemClock
from shoal.errors import FailedPrecondition, SwarmError, Unavailable
from shoal.ids import NodeId
from shoal.model.defaults import SNAPSHOT_INTERVAL
from shoal.model.objects import Cluster, Node, StoreEntry
from shoal.security.grpc_tls import secure_channel, server_options
from shoal.security.identity import read_identity
from shoal.security.interceptor import AuthorizationInterceptor
from shoal.settings.node import NodeConfig, read_node_config
from shoal.settings.paths import NodePaths
from shoal.telemetry.metrics import REGISTRY
from shoal.wire.errors import ErrorInterceptor
from shoal.wire.objects import entry_from_bytes
from shoal.wire.telemetry import TelemetryServer

STOP_GRACE_S = 1.0
HAND_OVER_TIMEOUT_S = 2.0
CONCURRENT_RPCS_MAX = 16_384
"""Calls in progress on the whole server; an agent has four streams open. More are refused."""
LEADER_SERVICES = ("Control", "Watch", "Logs", "LogBroker", "Dispatcher", "Ca", "RaftMembership")
"""Served by the leader; other managers pass their calls on."""

_log = structlog.get_logger()


class Manager(msgspec.Struct):
    """What the parts of a manager share."""

    paths: NodePaths
    config: NodeConfig
    clock: SystemClock
    store: Store
    live: LiveIdentity
    transport: GrpcTransport
    driver: RaftDriver
    consensus: RaftConsensus
    changes: MembershipChanges
    router: LeaderRouter
    why_not_joined: str = ""

    @property
    def node_id(self) -> str:
        """This node."""
        return self.live.identity.peer.node_id

    def dial(self, address: str) -> grpc.aio.Channel:
        """A channel to another manager, with the certificate of now."""
        return secure_channel(address, self.live.channel_credentials())

    def why_not_ready(self) -> str:
        """Why this manager cannot serve, "" when it can."""
        now = self.consensus.leadership.value
        if not self.driver.roster.members:
            return self.why_not_joined or "the manager has not joined the others yet"
        if self.driver.raft.id not in self.driver.raft.membership.all_voters:
            return "the manager learns the log before it votes"
        if self.router.is_serving or now.address:
            return ""
        return "no manager leads the cluster yet"


async def run(paths: NodePaths) -> None:
    """Run the manager until SIGTERM or SIGINT.

    A manager that was removed gives up its log: should it be wanted again, it joins as a new one.
    Raises: NotFound, FailedPrecondition, CorruptLog and what else keeps a manager from starting.
    """
    try:
        await _run(paths)
    except RemovedFromCluster:
        await asyncio.to_thread(_give_up_log, paths)
        raise


async def _run(paths: NodePaths) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    identity = await asyncio.to_thread(read_identity, paths.identity)
    config = await asyncio.to_thread(read_node_config, paths.node_config)
    if config is None:
        raise FailedPrecondition(f"{paths.node_config} is missing: leave and join again")
    opening = Opening(identity.peer.cluster_id)
    place = Place(paths.raft, opening, identity.peer.node_id, config.advertise_address)
    recovery = await asyncio.to_thread(_recover, paths, place)
    # The recovered rows live as long as the process: keep them out of every collection.
    gc.freeze()
    live = LiveIdentity(paths.identity, identity, SystemClock())
    manager = _assemble(paths, config, recovery, live)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(manager.transport)
        await stack.enter_async_context(manager.driver)
        stack.enter_context(manager.consensus.followed())
        supervisor = await _start(stack, manager)
        if recovery.must_join:
            supervisor.start("join", lambda: _join(manager))
        _log.info(
            "manager.started", version=manager.store.view.version, listen=config.listen_address
        )
        await _wait_any(stop.wait(), manager.driver.wait_failed(), supervisor.wait_failed())
        _log.info("manager.stopping")
        await _hand_over(manager)


def _give_up_log(paths: NodePaths) -> None:
    """Put the log of a removed manager aside; the last one is kept, should it be missed."""
    if paths.raft.exists():
        if paths.raft_removed.exists():
            shutil.rmtree(paths.raft_removed)
        paths.raft.rename(paths.raft_removed)


def _recover(paths: NodePaths, place: Place) -> Recovery:
    """What the raft directory holds; a new cluster begins with the entry that init wrote."""
    first: StoreEntry | None = None
    if paths.bootstrap.exists():
        first = entry_from_bytes(paths.bootstrap.read_bytes())
    recovery = recover(place, first)
    paths.bootstrap.unlink(missing_ok=True)
    return recovery


def _assemble(
    paths: NodePaths, config: NodeConfig, recovery: Recovery, live: LiveIdentity
) -> Manager:
    def dial(address: str) -> grpc.aio.Channel:
        return secure_channel(address, live.channel_credentials())

    clock = SystemClock()
    store = Store(recovery.tables, clock)
    transport = GrpcTransport(recovery.me, dial)
    driver = RaftDriver(
        recovery, store, transport, snapshot_interval=_interval(recovery.tables.cluster)
    )
    store.attach(driver)
    consensus = RaftConsensus(driver, transport.addresses)
    services = (f"{API}.{name}" for name in LEADER_SERVICES)
    return Manager(
        paths=paths,
        config=config,
        clock=clock,
        store=store,
        live=live,
        transport=transport,
        driver=driver,
        consensus=consensus,
        changes=MembershipChanges(driver),
        router=LeaderRouter(
            services,
            consensus,
            Dial(dial, lambda: live.identity),
            why_no_leader=lambda: why_no_leader(driver),
        ),
    )


async def _start(stack: AsyncExitStack, manager: Manager) -> Supervisor:
    collector = StoreCollector(manager.store, lambda: manager.router.is_serving)
    REGISTRY.register(collector)
    stack.callback(REGISTRY.unregister, collector)
    stack.push_async_callback(manager.router.close)
    supervisor = await stack.enter_async_context(Supervisor())
    work = LeaderWork(
        manager.consensus, manager.store, manager.router, lambda term: _lead(manager, term)
    )
    supervisor.start("leader", work.run)
    supervisor.start("cluster row", lambda: _follow_cluster(manager))
    server = grpc.aio.server(
        interceptors=[
            AuthorizationInterceptor(manager.live.verifier, permissions()),
            ErrorInterceptor(),
        ],
        options=server_options(),
        maximum_concurrent_rpcs=CONCURRENT_RPCS_MAX,
    )
    raft_pb2_grpc.add_RaftServicer_to_server(RaftServer(manager.transport), server)
    node_pb2_grpc.add_ManagerControlServicer_to_server(
        ManagerControlServer(manager.live, manager.store, manager.clock), server
    )
    node_pb2_grpc.add_TelemetryServicer_to_server(TelemetryServer(manager.why_not_ready), server)
    server.add_generic_rpc_handlers((manager.router,))
    _bind(server, manager)
    await server.start()
    stack.push_async_callback(server.stop, STOP_GRACE_S)
    return supervisor


@asynccontextmanager
async def _lead(manager: Manager, term: Term) -> AsyncIterator[Mapping[str, Any]]:
    """What runs while this manager leads, and the handlers of what it serves meanwhile."""
    store, clock, driver = term.store, manager.clock, manager.driver
    dispatcher = Dispatcher(store, clock, manager_id=manager.node_id)
    broker = LogBroker(store)
    addresses = manager.transport.addresses
    keeper = MembersKeeper(driver, manager.changes, store, addresses)
    start = term.supervisor.start
    start("members", keeper.run)
    start("roles", RoleLoop(store, manager.changes, clock).run)
    start("wedge watch", WedgeWatch(driver, manager.changes).run)
    start("task statuses", dispatcher.statuses.run)
    start("dispatcher", dispatcher.run)
    start("node expiry", dispatcher.run_expiry)
    start("reconcile", ReconcileLoop(store, clock).run)
    start("root rotation", RotationLoop(store).run)
    start("removed nodes", lambda: _follow_removed_nodes(store, broker))
    table: Any = HandlerTable()  # takes the place of a server
    control_pb2_grpc.add_ControlServicer_to_server(ControlServer(store, clock), table)
    watch_pb2_grpc.add_WatchServicer_to_server(WatchServer(store), table)
    logs_pb2_grpc.add_LogsServicer_to_server(LogsServer(broker), table)
    logs_pb2_grpc.add_LogBrokerServicer_to_server(LogBrokerServer(broker), table)
    dispatcher_pb2_grpc.add_DispatcherServicer_to_server(
        DispatcherServer(dispatcher, store, clock), table
    )
    ca_pb2_grpc.add_CaServicer_to_server(CaServer(store, clock), table)
    raft_pb2_grpc.add_RaftMembershipServicer_to_server(
        RaftMembershipServer(driver, manager.changes, store, manager.transport), table
    )
    yield {
        method: term.calls.guarded(handler, driver.read_barrier if _is_read(method) else None)
        for method, handler in table.methods.items()
    }


def _is_read(method: str) -> bool:
    """Whether a call shows state that must not be older than what was acknowledged."""
    service, _, name = method.rpartition("/")
    service = service.removeprefix(f"/{API}.")
    return service == "Watch" or (service == "Control" and name.startswith(("Get", "List")))


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


async def _join(manager: Manager) -> None:
    """Become a member, with the help of the managers this node knew when it joined."""
    managers = [one for one in manager.config.managers if one != manager.config.advertise_address]

    def tell(reason: str) -> None:
        manager.why_not_joined = f"the others did not let this manager in yet: {reason}"

    members = await ask_to_join(manager.transport.me, managers, manager.dial, tell=tell)
    manager.transport.introduce(members)


async def _hand_over(manager: Manager) -> None:
    """Let another manager lead, so that the cluster need not find out that this one is gone."""
    if not manager.router.is_serving or len(manager.driver.raft.membership.voters) < 2:
        return
    with suppress(SwarmError, TimeoutError):
        async with asyncio.timeout(HAND_OVER_TIMEOUT_S):
            await manager.changes.hand_over()


async def _follow_cluster(manager: Manager) -> None:
    """Follow the cluster's row, on every manager.

    The certificates of removed nodes are refused once their removal is committed; roots are
    believed as the row names them; snapshots are taken as often as it says.
    """

    def use(cluster: Cluster | None) -> None:
        if cluster is not None:
            manager.live.verifier.replace_removed(
                {
                    NodeId(node_id): entry.expires_at_ns
                    for node_id, entry in cluster.blacklisted_certificates.items()
                }
            )
            manager.live.believe(trust_of(cluster.root_ca))
            manager.driver.snapshots.interval = _interval(cluster)

    while True:  # a leader's snapshot that replaces the state ends the watch
        with suppress(FailedPrecondition), manager.store.watch() as watcher:
            use(manager.store.view.cluster)
            async for commit in watcher:
                if any(isinstance(event.object, Cluster) for event in commit.events):
                    use(manager.store.view.cluster)


async def _follow_removed_nodes(store: Store, broker: LogBroker) -> None:
    """End the log streams of nodes that were removed."""
    with store.watch() as watcher:
        async for commit in watcher:
            for event in commit.events:
                if event.object is None and isinstance(event.old, Node):
                    broker.forget(event.old.id)


def _interval(cluster: Cluster | None) -> int:
    """Entries between two snapshots."""
    interval = None if cluster is None else cluster.spec.raft.snapshot_interval
    return interval or SNAPSHOT_INTERVAL


async def _wait_any(*waits: Coroutine[Any, Any, object]) -> None:
    """Wait for the first to end, and raise what it raised."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    for task in done:
        task.result()
