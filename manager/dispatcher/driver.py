"""The dispatcher's shell: feeds sessions, endpoint table and streams from the store and a clock.

One loop reads commits and marks what each open stream has to say; one loop expires sessions. Node
states are written here and nowhere else. A node that has a session is READY; why another one is
absent is noted before it is written, so that neither a failed write nor a node that comes back in
between can leave the store with a wrong state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import structlog

from manager.ca.rotation import trust_of
from manager.dispatcher.acknowledged import Acknowledged
from manager.dispatcher.assignments import AssignmentDiff, NodeAssignments, is_assigned
from manager.dispatcher.core import Sessions
from manager.dispatcher.endpoints import EndpointTable, PortKey, free_at, is_down
from manager.dispatcher.facts import redescribed
from manager.dispatcher.metrics import DRAINS_OVERDUE, ENDPOINT_VERSION, OVERLAY_ROWS
from manager.dispatcher.network_keys import check_keys, generation_of, with_next_generation
from manager.dispatcher.overlays import OverlayChanges, OverlayKind
from manager.dispatcher.shown import service_endpoints
from manager.dispatcher.statuses import StatusWriter
from manager.store.store import Commit, Store, commit_with_retry
from manager.store.view import View
from shoal.aio.signal import Signal
from shoal.api.v1.control_pb2 import ListServiceEndpointsResponse
from shoal.clock import NS_PER_S, Clock
from shoal.errors import NotFound, SwarmError
from shoal.ids import new_id
from shoal.model.defaults import heartbeat_period_ns
from shoal.model.enums import NodeState
from shoal.model.images import check_marks
from shoal.model.objects import Cluster, Network, Node, Service, Task
from shoal.model.plan import CHANGES_MAX, Change, update
from shoal.model.types import NetworkKey, NodeDescription, NodeStatus

EXPIRY_CHECK_S = 0.25
"""Nodes are looked at so often at least, and when the next one's time is over."""
EXPIRY_CHECK_MIN_S = 0.01
SWEEP_S = 5.0
"""How often nodes that the store calls ready are compared with the sessions."""
WRITES_MAX = 256
"""Node states that are written at once."""
MESSAGE_LENGTH_MAX = 1_000
PEER_MESSAGES_PER_S = 2_000
"""When nodes come, go or change, all others are told: together, so that it is no more than this."""
PEERS_PAUSE_MIN_S = 0.01
"""Shorter pauses are not worth a timer: in small clusters they are told at once."""
PROBATION = "the node was lost several times within five minutes: it is watched for a while"
LEFT = "the node has left the cluster"

_log = structlog.get_logger()


class Absence(NamedTuple):
    """Why a node is not there, as its row is to say it."""

    state: NodeState
    message: str
    left: bool = False


class Stream:
    """An open assignments stream and the signal that wakes it."""

    def __init__(self, node_id: str) -> None:
        self.assignments = NodeAssignments(node_id)
        self.signal = Signal()


class Dispatcher:
    """Everything between the store and the agents, but for gRPC (`server`)."""

    def __init__(
        self, store: Store, clock: Clock, *, manager_id: str, changes_max: int = CHANGES_MAX
    ) -> None:
        """changes_max: more are not put into one transaction."""
        self._store = store
        self._clock = clock
        self._manager_id = manager_id
        self.sessions = Sessions(period_s=heartbeat_period_ns(store.view.cluster) / NS_PER_S)
        self._suspects: frozenset[str] = frozenset()
        self._on_probation: set[str] = set()
        self._conflicts: dict[str, str] = {}
        self.table = EndpointTable()
        self.statuses = StatusWriter(store, clock, manager_id=manager_id, changes_max=changes_max)
        self.acknowledged = Acknowledged()
        self._streams: dict[str, Stream] = {}
        self._session_signals: dict[str, Signal] = {}
        self._absent: dict[str, Absence] = {}
        self._sweep_at_s = 0.0
        self._marked_version = self.table.version
        self._peers_told: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Follow the store for ever. Raises FailedPrecondition when the watch fell behind."""
        try:
            with self._store.watch() as watcher:
                self._resync()
                async for commit in watcher:
                    self._observe(commit)
        finally:
            if self._peers_told is not None:
                self._peers_told.cancel()
            ENDPOINT_VERSION.set(0)
            OVERLAY_ROWS.clear()

    async def run_expiry(self) -> None:
        """Call nodes down when their beats stay away."""
        await self._await_known_nodes()
        loop = asyncio.get_running_loop()
        while True:
            slept_from_s, pause_s = loop.time(), self._until_next_check_s()
            await asyncio.sleep(pause_s)
            late_s = loop.time() - slept_from_s - pause_s
            if late_s > EXPIRY_CHECK_S:
                # This process did not run: beats may be waiting in its sockets. Not their fault.
                self.sessions.postpone(late_s)
            await self.expire()

    async def expire(self) -> None:
        """Call down the nodes whose time is over; write what could not be written before."""
        now_s = self._clock.monotonic_s()
        if now_s >= self._sweep_at_s:
            self._sweep_at_s = now_s + SWEEP_S
            self._set_period()
            present = self._nodes_in(NodeState.READY, NodeState.DISCONNECTED)
            self.sessions.expect(frozenset(present), now_s)
            await self._renew_network_keys()
        self.sessions.doubt(self._silent_managers(), now_s)
        for node_id in self.sessions.expire(now_s):
            _log.warning("node.down", node_id=node_id, reason="heartbeat failure")
            self._absent[node_id] = Absence(NodeState.DOWN, "heartbeat failure")
            self._end(node_id)
            self._forget_acknowledgement(node_id)
        trusted = self._judge(now_s)
        await self._write_absences()
        for node_id in trusted:
            await self._write_trust(node_id)

    async def register(self, node_id: str, description: NodeDescription, address: str) -> str:
        """Open a session for a node. Result: the session id.

        Raises NotFound if it was removed, Unavailable if it registers too often.
        """

        def build(view: View) -> list[Change]:
            node = view.nodes.get(node_id)
            if node is None:
                raise NotFound(f"node {node_id} was removed from the cluster: let it join again")
            status = NodeStatus(state=NodeState.READY, address=address)
            if node_id in self._on_probation:
                status = status.replaced(state=NodeState.UNKNOWN, message=PROBATION)
            same = (node.description, node.status) == (description, status)
            if same and node_id not in self._absent:
                return []
            return [update(node.replaced(description=description, status=status))]

        session_id = new_id()
        now_s = self._clock.monotonic_s()
        try:
            self.sessions.register(node_id, session_id, now_s)
        except SwarmError:
            _log.warning("node.registers_too_often", node_id=node_id, address=address)
            raise
        self._set_period()
        self._conflicts.pop(node_id, None)
        if node_id in self.sessions.suspects(now_s):
            self._on_probation.add(node_id)
        else:
            self._on_probation.discard(node_id)
        try:
            await commit_with_retry(self._store, build)
        except BaseException:
            self.sessions.close(node_id, session_id)
            if self._store.view.nodes.get(node_id) is None:
                self.sessions.forget(node_id)
            raise
        self._absent.pop(node_id, None)
        _log.info("node.registered", node_id=node_id, address=address)
        data_path = description.data_path_address
        if others := (self.table.nodes_at(data_path) - {node_id}) & self.sessions.connected():
            _log.warning(
                "node.address_shared", node_id=node_id, data_path=data_path, others=sorted(others)
            )
        return session_id

    async def close_session(self, node_id: str, session_id: str, *, leaving: bool = False) -> None:
        """The node said goodbye (its agent stopped in order).

        It has as long to come back as one that falls silent; then it is down like that one. One
        that leaves the cluster is down at once, and nobody waits for it.
        """
        if not self.sessions.close(node_id, session_id):
            return
        if leaving:
            _log.info("node.left", node_id=node_id)
            self._absent[node_id] = Absence(NodeState.DOWN, LEFT, left=True)
            self._forget_acknowledgement(node_id)
        else:
            now_s, grace_s = self._clock.monotonic_s(), self.sessions.grace_s
            self.sessions.expect(frozenset((node_id,)), now_s, wait_s=grace_s)
            self._absent[node_id] = Absence(NodeState.DISCONNECTED, "the agent has stopped")
        self._end(node_id)
        await self._write_absence(node_id)

    async def acknowledge(self, node_id: str, version: int, conflicts: Iterable[str]) -> None:
        """The node's data plane is at this version of the endpoint table.

        conflicts: ports it cannot serve, with reasons; shown in the node's status until they end.
        """
        if self.acknowledged.acknowledge(node_id, version, self.table.version):
            self._wake_holding()
        message = "; ".join(conflicts)[:MESSAGE_LENGTH_MAX]
        self._conflicts[node_id] = message

        def build(view: View) -> list[Change]:
            node = view.nodes.get(node_id)
            if node is None or node.status.state is not NodeState.READY:
                return []
            status = node.status.replaced(message=message)
            return [] if status == node.status else [update(node.replaced(status=status))]

        await commit_with_retry(self._store, build)

    async def report_network_keys(self, node_id: str, keys: tuple[NetworkKey, ...]) -> None:
        """The node has these keys for encrypted networks now. Raises: InvalidArgument."""
        check_keys(keys)
        await commit_with_retry(self._store, redescribed(node_id, network_keys=keys))

    async def report_images(self, node_id: str, images: bytes) -> None:
        """The node has these images now, by their marks. Raises: InvalidArgument."""
        check_marks(images)
        await commit_with_retry(self._store, redescribed(node_id, images=images))

    def show_endpoints(self, reference: str) -> ListServiceEndpointsResponse:
        """Who answers on a service's ports and networks. Raises NotFound.

        reference "": the containers that were attached to networks by hand.
        """
        view = self._store.view
        return service_endpoints(
            view,
            self.table,
            view.services.resolve(reference) if reference else Service(),
            manager_id=self._manager_id,
            acknowledged=self.acknowledged.versions,
            problems=self._conflicts,
            connected=self.sessions.connected(),
        )

    @contextmanager
    def stream(self, node_id: str) -> Iterator[Stream]:
        """Open the node's assignments stream, in place of an older one."""
        stream = Stream(node_id)
        previous = self._streams.get(node_id)
        self._streams[node_id] = stream
        if previous is not None:
            previous.signal.set()
        self.acknowledged.begin(node_id, self.table.version)
        stream.assignments.mark_all(self._store.view, self.table)
        stream.signal.set()
        try:
            yield stream
        finally:
            if self._streams.get(node_id) is stream:
                del self._streams[node_id]
                self.acknowledged.end(node_id)

    def is_current(self, stream: Stream) -> bool:
        """Whether the stream goes on: its node is connected and has opened no newer one."""
        return self._streams.get(stream.assignments.node_id) is stream

    def take(self, stream: Stream) -> tuple[AssignmentDiff, bool]:
        """What the stream has to say next, and whether there is more at once."""
        diff = stream.assignments.take(
            self._store.view, self.table, self.acknowledged.by_all(), self._clock.monotonic_s()
        )
        if diff.overdue:
            self._complain(diff.overdue)
        return diff, stream.assignments.is_dirty

    def held_for_s(self, stream: Stream) -> float | None:
        """Seconds until the stream lets go of a held task; None when it holds none."""
        deadline_s = stream.assignments.next_deadline_s()
        return None if deadline_s is None else max(deadline_s - self._clock.monotonic_s(), 0.01)

    @contextmanager
    def session_changes(self, node_id: str) -> Iterator[Signal]:
        """A signal for whatever a session has to pass on: node, managers, end of the session."""
        signal = Signal()
        previous = self._session_signals.get(node_id)
        self._session_signals[node_id] = signal
        if previous is not None:
            previous.set()
        try:
            yield signal
        finally:
            if self._session_signals.get(node_id) is signal:
                del self._session_signals[node_id]

    async def _await_known_nodes(self) -> None:
        """Nodes that were ready before this manager started are unknown until they come back."""
        known = self._nodes_in(NodeState.READY, NodeState.UNKNOWN)
        self.sessions.expect(frozenset(known), self._clock.monotonic_s())
        for node_id in known:
            self.acknowledged.expect(node_id)  # it balances as the last leader told it
            if not self.sessions.is_connected(node_id):
                message = "waiting for the node after a manager's restart"
                self._absent[node_id] = Absence(NodeState.UNKNOWN, message)
        await self._write_absences()

    async def _renew_network_keys(self) -> None:
        """Ask nodes for new keys when it is time; what fails is tried again with the next sweep."""

        def build(view: View) -> list[Change]:
            renewed = with_next_generation(view, self._clock.now_ns())
            return [] if renewed is None else [update(renewed)]

        if with_next_generation(self._store.view, self._clock.now_ns()) is None:
            return
        try:
            await commit_with_retry(self._store, build)
        except SwarmError as error:
            _log.error("network_keys.not_renewed", reason=error.message)
            return
        generation = generation_of(self._store.view.cluster)
        _log.info("network_keys.renewed", generation=generation)

    async def _write_absences(self) -> None:
        """Write why nodes are absent; what fails is tried again at the next check."""
        waiting = list(self._absent)
        for start in range(0, len(waiting), WRITES_MAX):
            await asyncio.gather(*map(self._write_absence, waiting[start : start + WRITES_MAX]))

    async def _write_absence(self, node_id: str) -> None:
        """Write why a node is absent, unless it is back or gone for good by then."""
        absence = self._absent.get(node_id)
        if absence is None:
            return

        def build(view: View) -> list[Change]:
            node = view.nodes.get(node_id)
            if node is None or self.sessions.is_connected(node_id):
                return []
            status = node.status.replaced(
                state=absence.state,
                message=absence.message,
                left=absence.left or node.status.left,
            )
            return [] if status == node.status else [update(node.replaced(status=status))]

        try:
            await commit_with_retry(self._store, build)
        except SwarmError as error:
            _log.error("node.state_not_written", node_id=node_id, reason=error.message)
            return
        if self._absent.get(node_id) == absence and not self.sessions.is_connected(node_id):
            del self._absent[node_id]

    def _judge(self, now_s: float) -> list[str]:
        """Note who is suspected. Result: nodes whose probation is over."""
        suspects = self.sessions.suspects(now_s)
        for node_id in suspects - self._suspects:
            _log.info("node.suspected", node_id=node_id)
        self._suspects = suspects
        return sorted(self._on_probation - suspects)

    async def _write_trust(self, node_id: str) -> None:
        """The node beat for long enough since it came back; what fails is tried again."""

        def build(view: View) -> list[Change]:
            node = view.nodes.get(node_id)
            if node is None or not self.sessions.is_connected(node_id):
                return []
            message = self._conflicts.get(node_id, "")
            status = node.status.replaced(state=NodeState.READY, message=message)
            return [] if status == node.status else [update(node.replaced(status=status))]

        try:
            await commit_with_retry(self._store, build)
        except SwarmError as error:
            _log.error("node.state_not_written", node_id=node_id, reason=error.message)
            return
        self._on_probation.discard(node_id)
        _log.info("node.trusted", node_id=node_id)

    def _until_next_check_s(self) -> float:
        deadline_s = self.sessions.next_deadline_s()
        if deadline_s is None:
            return EXPIRY_CHECK_S
        left_s = deadline_s - self._clock.monotonic_s()
        return min(max(left_s, EXPIRY_CHECK_MIN_S), EXPIRY_CHECK_S)

    def _set_period(self) -> None:
        """How often nodes beat follows the cluster's setting, and how many they are."""
        nodes = len(self.sessions.connected())
        self.sessions.period_s = heartbeat_period_ns(self._store.view.cluster, nodes) / NS_PER_S

    def _resync(self) -> None:
        """Take everything from the store anew, and forget what is not in it any more."""
        view = self._store.view
        self._set_period()
        for node_id in (self.sessions.known() | self._absent.keys()) - {n.id for n in view.nodes}:
            self._remove_node(node_id)
        self.table.update_nodes(view, {*self.table.node_ids(), *(node.id for node in view.nodes)})
        services = {*self.table.service_ids(), *(service.id for service in view.services)}
        self.table.update_services(view, services)
        self.table.update_overlays(
            view,
            networks={*self.table.overlays.network_ids, *(network.id for network in view.networks)},
            services=services | self.table.overlays.service_ids,
            tasks={*self.table.overlays.task_ids, *(task.id for task in view.tasks)},
        )
        for node_id, stream in self._streams.items():
            stream.assignments.mark_all(view, self.table)
            self.acknowledged.change(node_id, self.table.version, concerned=True)
            stream.signal.set()
        for signal in self._session_signals.values():
            signal.set()

    def _observe(self, commit: Commit) -> None:
        services: set[str] = set()
        nodes: set[str] = set()
        networks: set[str] = set()
        tasks: list[Task] = []
        all_concerned = False
        view = self._store.view
        for event in commit.events:
            row = event.subject
            if isinstance(row, Task):
                tasks.append(row)
                services.add(row.service_id)
                if event.object is None:
                    self.table.forget_task(row.id)
            elif isinstance(row, Service):
                services.add(row.id)
            elif isinstance(row, Node):
                nodes.add(row.id)
                if _takes_part_otherwise(event.old, row):
                    services.update(t.service_id for t in view.tasks_of_node(row.id).values())
                all_concerned |= row.manager_status is not None
                if event.object is None:
                    self._remove_node(row.id)
            elif isinstance(row, Network):
                networks.add(row.id)
            elif isinstance(row, Cluster):
                self._set_period()
                old = event.old
                all_concerned |= isinstance(old, Cluster) and _told(old) != _told(row)
        ports = self.table.update_services(view, services)
        peers = self.table.update_nodes(view, nodes)
        overlays = self.table.update_overlays(
            view,
            networks=networks,
            services=services,
            tasks={task.id for task in tasks} | self._tasks_on_networks(nodes),
        )
        self._show()
        self._mark(tasks, peers, ports, overlays)
        for node_id, signal in self._session_signals.items():
            if all_concerned or node_id in nodes:
                signal.set()

    def _show(self) -> None:
        ENDPOINT_VERSION.set(self.table.version)
        for kind in OverlayKind:
            OVERLAY_ROWS.labels(kind.name.lower()).set(self.table.overlays.counts[kind])

    def _tasks_on_networks(self, node_ids: Iterable[str]) -> set[str]:
        """Tasks that are on overlay networks, or not any more, because of what nodes are."""
        view = self._store.view
        return {
            task_id
            for node_id in node_ids
            for task_id, task in view.tasks_of_node(node_id).items()
            if task.networks
        }

    def _mark(
        self, tasks: list[Task], peers: set[str], ports: set[PortKey], overlays: OverlayChanges
    ) -> None:
        by_node: dict[str, list[str]] = {}
        for task in tasks:
            if is_assigned(task):
                by_node.setdefault(task.node_id, []).append(task.id)
        if self.table.version == self._marked_version and not overlays.moved:
            for node_id in by_node.keys() & self._streams.keys():  # nobody else is concerned
                stream = self._streams[node_id]
                stream.assignments.mark(tasks=by_node[node_id])
                if stream.assignments.is_urgent:
                    stream.signal.set()
            return
        self._marked_version = self.table.version
        others_only = False
        for node_id, stream in self._streams.items():
            stream.assignments.mark(tasks=by_node.get(node_id, ()), peers=peers, ports=ports)
            stream.assignments.overlays.mark(self.table.overlays, overlays)
            concerned = bool(peers or ports or stream.assignments.overlays.is_dirty)
            self.acknowledged.change(node_id, self.table.version, concerned=concerned)
            if stream.assignments.is_urgent:
                stream.signal.set()
            others_only |= stream.assignments.is_dirty
        if others_only:
            self._tell_peers()

    def _tell_peers(self) -> None:
        """Wake the streams that have news of other nodes, a little later in large clusters."""
        pause_s = len(self._streams) / PEER_MESSAGES_PER_S
        if pause_s < PEERS_PAUSE_MIN_S:
            self._wake_dirty()
        elif self._peers_told is None:
            self._peers_told = asyncio.get_running_loop().call_later(pause_s, self._wake_dirty)

    def _wake_dirty(self) -> None:
        self._peers_told = None
        for stream in self._streams.values():
            if stream.assignments.is_dirty:
                stream.signal.set()

    def _remove_node(self, node_id: str) -> None:
        self.sessions.forget(node_id)
        self._absent.pop(node_id, None)
        self._end(node_id)
        self._forget_acknowledgement(node_id)

    def _end(self, node_id: str) -> None:
        """The node has no session any more: its streams end now."""
        self._on_probation.discard(node_id)
        self._conflicts.pop(node_id, None)
        self.acknowledged.end(node_id)
        stream = self._streams.pop(node_id, None)
        if stream is not None:
            stream.signal.set()
        signal = self._session_signals.get(node_id)
        if signal is not None:
            signal.set()

    def _forget_acknowledgement(self, node_id: str) -> None:
        """A node that is gone holds nobody back."""
        if self.acknowledged.forget(node_id):
            self._wake_holding()

    def _wake_holding(self) -> None:
        for stream in self._streams.values():
            if stream.assignments.next_deadline_s() is not None:
                stream.signal.set()

    def _complain(self, task_ids: tuple[str, ...]) -> None:
        """Tasks stop although a node may still send connections to them."""
        DRAINS_OVERDUE.inc(len(task_ids))
        for task_id in task_ids:
            task = self._store.view.tasks.get(task_id)
            left_at = 0 if task is None else free_at(self.table, task)
            behind = sorted(n for n, v in self.acknowledged.versions.items() if v < left_at)
            _log.warning("task.drain_overdue", task_id=task_id, nodes=behind)

    def _silent_managers(self) -> frozenset[str]:
        """Nodes without a session whose manager the other managers do not hear either."""
        nodes = map(self._store.view.nodes.get, self.sessions.awaited())
        return frozenset(
            node.id
            for node in nodes
            if node is not None
            and node.manager_status is not None
            and not node.manager_status.reachable
        )

    def _nodes_in(self, *states: NodeState) -> list[str]:
        return [node.id for node in self._store.view.nodes if node.status.state in states]


def _told(cluster: Cluster) -> tuple[bytes, int]:
    """What every session says of the cluster."""
    return trust_of(cluster.root_ca), generation_of(cluster)


def _takes_part_otherwise(old: object, node: Node) -> bool:
    """Whether the node's tasks take traffic otherwise: it is down or back, or has other labels."""
    if not isinstance(old, Node):
        return is_down(node)
    labels = old.spec.annotations.labels, node.spec.annotations.labels
    return is_down(node) or is_down(old) or labels[0] != labels[1]
