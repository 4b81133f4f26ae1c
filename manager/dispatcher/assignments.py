"""What one node has been told, and what it has to be told next.

One `NodeAssignments` per open stream. The dispatcher marks what changed; `take` turns the marks
into changes against what was sent, in bounded messages. A task that must stop is held back until
every data plane has acknowledged that it is out of the load balancer, or until its service's drain
timeout has passed. To a node that asks anew, a task that is held back is shown as still wanted.
"""

from __future__ import annotations

from collections.abc import Iterable

from manager.dispatcher.endpoints import (
    EndpointTable,
    PeerRow,
    PortKey,
    PortRow,
    free_at,
)
from manager.dispatcher.file_sending import FileKey, FileSending
from manager.dispatcher.overlay_sending import OverlaySending
from manager.dispatcher.overlays import OverlayKey, OverlayRow
from manager.store.view import View
from shoal.clock import NS_PER_S
from shoal.model.defaults import drain_timeout_ns, is_wanted
from shoal.model.enums import TaskState
from shoal.model.files import FileRow
from shoal.model.objects import Task
from shoal.model.row import Row

CHANGES_PER_MESSAGE_MAX = 100


class AssignmentDiff(Row, frozen=True):
    """Rows to send and keys to forget."""

    tasks: tuple[Task, ...] = ()
    removed_tasks: tuple[str, ...] = ()
    peers: tuple[PeerRow, ...] = ()
    removed_peers: tuple[str, ...] = ()
    ports: tuple[PortRow, ...] = ()
    removed_ports: tuple[PortKey, ...] = ()
    overlays: tuple[OverlayRow, ...] = ()
    removed_overlays: tuple[OverlayKey, ...] = ()
    files: tuple[FileRow, ...] = ()
    removed_files: tuple[FileKey, ...] = ()
    overdue: tuple[str, ...] = ()
    """Those of `tasks` that stop although some data plane may still balance to them."""

    def __bool__(self) -> bool:
        """Whether there is anything to say."""
        return bool(
            self.tasks
            or self.removed_tasks
            or self.peers
            or self.removed_peers
            or self.ports
            or self.removed_ports
            or self.overlays
            or self.removed_overlays
            or self.files
            or self.removed_files
        )


class NodeAssignments:
    """State of one node's assignment stream."""

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id
        self.overlays = OverlaySending(node_id)
        self._files = FileSending()
        self._sent_tasks: dict[str, Task] = {}
        self._sent_peers: dict[str, PeerRow] = {}
        self._sent_ports: dict[PortKey, PortRow] = {}
        self._dirty_tasks: dict[str, None] = {}
        self._dirty_peers: set[str] = set()
        self._dirty_ports: set[PortKey] = set()
        self._held_until_s: dict[str, float] = {}

    def mark_all(self, view: View, table: EndpointTable) -> None:
        """Everything may have to be sent: the stream has just begun, or commits were missed."""
        self._dirty_tasks.update(dict.fromkeys(self._sent_tasks))
        self._dirty_tasks.update(dict.fromkeys(view.tasks_of_node(self.node_id)))
        self._dirty_peers.update(self._sent_peers, table.peers)
        self._dirty_ports.update(self._sent_ports, table.ports)
        self.overlays.mark_all(table.overlays)

    def mark(
        self,
        *,
        tasks: Iterable[str] = (),
        peers: Iterable[str] = (),
        ports: Iterable[PortKey] = (),
    ) -> None:
        """These may have changed."""
        self._dirty_tasks.update(dict.fromkeys(tasks))
        self._dirty_peers.update(peers)
        self._dirty_ports.update(ports)

    @property
    def is_dirty(self) -> bool:
        """Whether `take` may have something to say at once."""
        return bool(self._dirty_peers) or self.is_urgent

    @property
    def is_urgent(self) -> bool:
        """Whether that is more than news of other nodes, which may wait and be told together."""
        held = len(self._held_until_s)
        dirty = self._dirty_ports or self.overlays.is_dirty
        return bool(dirty or len(self._dirty_tasks) > held)

    def next_deadline_s(self) -> float | None:
        """When a held task is let go even without acknowledgements."""
        return min(self._held_until_s.values(), default=None)

    def take(
        self, view: View, table: EndpointTable, acknowledged: int | None, now_s: float
    ) -> AssignmentDiff:
        """The next changes; marks them as sent.

        acknowledged: endpoint version in force on every node; None without any.
        """
        peers, removed_peers = self._take_peers(table)
        ports, removed_ports = self._take_ports(table)
        tasks, removed_tasks, overdue = self._take_tasks(view, table, acknowledged, now_s)
        files, removed_files = self._files.take()
        overlays, removed_overlays = self.overlays.take(table.overlays)
        return AssignmentDiff(
            tasks=tasks,
            removed_tasks=removed_tasks,
            peers=peers,
            removed_peers=removed_peers,
            ports=ports,
            removed_ports=removed_ports,
            overlays=overlays,
            removed_overlays=removed_overlays,
            files=files,
            removed_files=removed_files,
            overdue=overdue,
        )

    def _take_peers(self, table: EndpointTable) -> tuple[tuple[PeerRow, ...], tuple[str, ...]]:
        changed: list[PeerRow] = []
        removed: list[str] = []
        for node_id in sorted(self._dirty_peers):
            row = table.peers.get(node_id)
            if row is None:
                if self._sent_peers.pop(node_id, None) is not None:
                    removed.append(node_id)
            elif self._sent_peers.get(node_id) != row:
                self._sent_peers[node_id] = row
                changed.append(row)
        self._dirty_peers.clear()
        return tuple(changed), tuple(removed)

    def _take_ports(self, table: EndpointTable) -> tuple[tuple[PortRow, ...], tuple[PortKey, ...]]:
        changed: list[PortRow] = []
        removed: list[PortKey] = []
        for key in self._dirty_ports:
            full = table.ports.get(key)
            row = None if full is None else full.for_node(self.node_id)
            if row is None:
                if self._sent_ports.pop(key, None) is not None:
                    removed.append(key)
            elif self._sent_ports.get(key) != row:
                self._sent_ports[key] = row
                changed.append(row)
        self._dirty_ports.clear()
        return tuple(changed), tuple(removed)

    def _take_tasks(
        self, view: View, table: EndpointTable, acknowledged: int | None, now_s: float
    ) -> tuple[tuple[Task, ...], tuple[str, ...], tuple[str, ...]]:
        """Changed, removed and overdue ones."""
        changed: list[Task] = []
        removed: list[str] = []
        overdue: list[str] = []
        for task_id in list(self._dirty_tasks):
            if len(changed) + len(removed) >= CHANGES_PER_MESSAGE_MAX or self._files.is_full:
                break
            task = view.tasks.get(task_id)
            is_ours = task is not None and task.node_id == self.node_id and is_assigned(task)
            self._files.follow(view, task_id, task if is_ours else None)
            if task is not None and task.node_id == self.node_id:
                if self._may_be_balanced_to(task, table, acknowledged):
                    if self._hold(view, task, now_s):
                        changed += self._shown_as_wanted(task)
                        continue
                    if task_id in self._held_until_s:
                        overdue.append(task_id)
                if _differs(self._sent_tasks.get(task_id), task):
                    self._sent_tasks[task_id] = task
                    changed.append(task)
            elif self._sent_tasks.pop(task_id, None) is not None:
                removed.append(task_id)
            del self._dirty_tasks[task_id]
            self._held_until_s.pop(task_id, None)
        return tuple(changed), tuple(removed), tuple(overdue)

    def _may_be_balanced_to(
        self, task: Task, table: EndpointTable, acknowledged: int | None
    ) -> bool:
        """Whether the task is to hear of its end now, and a data plane may not know of it yet."""
        sent = self._sent_tasks.get(task.id)
        if is_wanted(task) or (sent is not None and not is_wanted(sent)):
            return False
        if task.status.state is not TaskState.RUNNING or acknowledged is None:
            return False
        return acknowledged < free_at(table, task)

    def _hold(self, view: View, task: Task, now_s: float) -> bool:
        timeout_s = drain_timeout_ns(view.services.get(task.service_id)) / NS_PER_S
        if not timeout_s:
            return False
        return now_s < self._held_until_s.setdefault(task.id, now_s + timeout_s)

    def _shown_as_wanted(self, task: Task) -> Iterable[Task]:
        """The task for a stream that has not sent it yet: what a node is not told of it removes."""
        if task.id in self._sent_tasks:
            return ()
        self._sent_tasks[task.id] = task.replaced(desired_state=TaskState.RUNNING)
        return (self._sent_tasks[task.id],)


def is_assigned(task: Task) -> bool:
    """Whether the task's node has to know of it."""
    return bool(task.node_id) and task.status.state >= TaskState.ASSIGNED


def _differs(sent: Task | None, task: Task) -> bool:
    """Whether the agent has to hear of the change; its own reports coming back are no news."""
    if not is_assigned(task):
        return False
    return sent is None or (sent.desired_state, sent.spec) != (task.desired_state, task.spec)
