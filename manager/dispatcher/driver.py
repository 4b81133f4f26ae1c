"""The dispatcher's shell: feeds sessions, endpoint table and streams from the store and a clock.

One loop reads commits and marks what each open stream has to say; one loop expires sessions. Node
states are written here and nowhere else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import structlog

from manager.dispatcher.assignments import NodeAssignments, is_assigned
from manager.dispatcher.core import Sessions
from manager.dispatcher.endpoints import EndpointTable, PortKey
from manager.dispatcher.statuses import StatusWriter
from manager.store.store import Commit, Store, commit_with_retry
from manager.store.view import View
from shoal.aio.signal import Signal
from shoal.clock import NS_PER_S, Clock
from shoal.errors import FailedPrecondition, NotFound, SwarmError
from shoal.ids import new_id
from shoal.model.defaults import heartbeat_period_ns
from shoal.model.enums import NodeState
from shoal.model.objects import Cluster, Node, Service, Task
from shoal.model.plan import Change, update
from shoal.model.types import NodeDescription, NodeStatus

EXPIRY_CHECK_S = 0.25
MESSAGE_LENGTH_MAX = 1_000

_log = structlog.get_logger()


class Stream:
    """An open assignments stream and the signal that wakes it."""

    def __init__(self, node_id: str) -> None:
        self.assignments = NodeAssignments(node_id)
        self.signal = Signal()


class Dispatcher:
    """Everything between the store and the agents, but for gRPC (`server`)."""

    def __init__(self, store: Store, clock: Clock, *, manager_id: str) -> None:
        self._store = store
        self._clock = clock
        self.sessions = Sessions(period_s=heartbeat_period_ns(store.view.cluster) / NS_PER_S)
        self.table = EndpointTable()
        self.statuses = StatusWriter(store, clock, manager_id=manager_id)
        self.acknowledged: dict[str, int] = {}
        self._streams: dict[str, Stream] = {}
        self._session_signals: dict[str, Signal] = {}

    async def run(self) -> None:
        """Follow the store for ever."""
        with self._store.watch() as watcher:
            view = self._store.view
            self.table.update_nodes(view, [node.id for node in view.nodes])
            self.table.update_services(view, [service.id for service in view.services])
            for stream in self._streams.values():
                stream.assignments.mark_all(view, self.table)
                stream.signal.set()
            async for commit in watcher:
                self._observe(commit)

    async def run_expiry(self) -> None:
        """Call nodes down when their beats stay away."""
        await self._await_known_nodes()
        while True:
            await asyncio.sleep(EXPIRY_CHECK_S)
            for node_id in self.sessions.expire(self._clock.monotonic_s()):
                self._forget_acknowledgement(node_id)
                _log.warning("node.down", node_id=node_id, reason="heartbeat failure")
                await self.write_node_state(node_id, NodeState.DOWN, "heartbeat failure")

    async def register(self, node_id: str, description: NodeDescription, address: str) -> str:
        """Open a session for a node. Result: the session id. Raises NotFound if it was removed."""

        def build(view: View) -> list[Change]:
            node = view.nodes.get(node_id)
            if node is None:
                raise NotFound(f"node {node_id} was removed from the cluster: let it join again")
            status = NodeStatus(state=NodeState.READY, address=address)
            if (node.description, node.status) == (description, status):
                return []
            return [update(node.replaced(description=description, status=status))]

        session_id = new_id()
        self.sessions.register(node_id, session_id, self._clock.monotonic_s())
        await commit_with_retry(self._store, build)
        _log.info("node.registered", node_id=node_id, address=address)
        return session_id

    async def close_session(self, node_id: str, session_id: str) -> None:
        """The node said goodbye (its agent stopped in order)."""
        if self.sessions.close(node_id, session_id):
            self._forget_acknowledgement(node_id)
            await self.write_node_state(node_id, NodeState.DISCONNECTED, "the agent has stopped")

    async def write_node_state(self, node_id: str, state: NodeState, message: str) -> None:
        """Write what is known of a node; a node that is gone is left alone."""

        def build(view: View) -> list[Change]:
            node = view.nodes.get(node_id)
            if node is None:
                return []
            status = node.status.replaced(state=state, message=message[:MESSAGE_LENGTH_MAX])
            return [] if status == node.status else [update(node.replaced(status=status))]

        try:
            await commit_with_retry(self._store, build)
        except SwarmError as error:
            _log.error("node.state_not_written", node_id=node_id, reason=error.message)

    async def acknowledge(self, node_id: str, version: int, conflicts: Iterable[str]) -> None:
        """The node's data plane is at this version of the endpoint table."""
        self.acknowledged[node_id] = version
        for stream in self._streams.values():
            if stream.assignments.next_deadline_s() is not None:
                stream.signal.set()
        await self.write_node_state(node_id, NodeState.READY, "; ".join(conflicts))

    @contextmanager
    def stream(self, node_id: str) -> Iterator[Stream]:
        """Open the node's assignments stream, in place of an older one."""
        stream = Stream(node_id)
        previous = self._streams.get(node_id)
        self._streams[node_id] = stream
        if previous is not None:
            previous.signal.set()
        self.acknowledged.setdefault(node_id, 0)
        stream.assignments.mark_all(self._store.view, self.table)
        stream.signal.set()
        try:
            yield stream
        finally:
            if self._streams.get(node_id) is stream:
                del self._streams[node_id]
                self._forget_acknowledgement(node_id)

    def is_current(self, stream: Stream) -> bool:
        """Whether no newer stream of the same node has taken over."""
        return self._streams.get(stream.assignments.node_id) is stream

    @contextmanager
    def session_changes(self, node_id: str) -> Iterator[Signal]:
        """A signal for whatever a session has to pass on: node, managers, end of the session."""
        signal = Signal()
        self._session_signals[node_id] = signal
        try:
            yield signal
        finally:
            if self._session_signals.get(node_id) is signal:
                del self._session_signals[node_id]

    async def _await_known_nodes(self) -> None:
        """Nodes that were ready before this manager started are unknown until they come back."""
        known = [
            node.id
            for node in self._store.view.nodes
            if node.status.state in {NodeState.READY, NodeState.UNKNOWN}
        ]
        self.sessions.expect(frozenset(known), self._clock.monotonic_s())
        for node_id in known:
            if node_id not in self.sessions.connected():
                await self.write_node_state(
                    node_id, NodeState.UNKNOWN, "waiting for the node after a manager's restart"
                )

    def _observe(self, commit: Commit) -> None:
        services: set[str] = set()
        nodes: set[str] = set()
        tasks: list[Task] = []
        managers_changed = False
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
                managers_changed |= row.manager_status is not None
                if event.object is None:
                    self.sessions.forget(row.id)
            elif isinstance(row, Cluster):
                self.sessions.period_s = heartbeat_period_ns(row) / NS_PER_S
        view = self._store.view
        ports = self.table.update_services(view, services)
        peers = self.table.update_nodes(view, nodes)
        self._mark(tasks, peers, ports)
        for node_id, signal in self._session_signals.items():
            if managers_changed or node_id in nodes:
                signal.set()

    def _mark(self, tasks: list[Task], peers: set[str], ports: set[PortKey]) -> None:
        by_node: dict[str, list[str]] = {}
        for task in tasks:
            if is_assigned(task):
                by_node.setdefault(task.node_id, []).append(task.id)
        for node_id, stream in self._streams.items():
            stream.assignments.mark(tasks=by_node.get(node_id, ()), peers=peers, ports=ports)
            if stream.assignments.is_dirty:
                stream.signal.set()

    def _forget_acknowledgement(self, node_id: str) -> None:
        """A node that is gone holds nobody back."""
        if self.acknowledged.pop(node_id, None) is not None:
            for stream in self._streams.values():
                stream.signal.set()


def require_node(view: View, node_id: str) -> Node:
    """The node's row. Raises FailedPrecondition when it was removed."""
    node = view.nodes.get(node_id)
    if node is None:
        raise FailedPrecondition(f"node {node_id} was removed from the cluster")
    return node
