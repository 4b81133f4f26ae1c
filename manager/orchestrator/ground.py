"""Where the tasks of a service may be, and which must go.

A global service has a task on every node that is READY, ACTIVE, let in, and fits its constraints
and platforms. A node on PAUSE keeps what it has and gets nothing; from one that is DOWN, gone, on
DRAIN or does not fit any more, tasks go without a replacement. The task of a global job waits for
its node while that is DOWN: no other can do its work, and that it be done twice helps nobody.

Services of the other modes only care whether a task's node is still there: their tasks may go
anywhere.
"""

from __future__ import annotations

from manager.orchestrator.slots import Slot, node_is_invalid
from manager.scheduler.constraints import node_matches
from manager.scheduler.filters import constraints_of, fits_platforms, is_ready
from manager.store.view import View
from shoal.model.enums import NodeAvailability
from shoal.model.modes import is_global, is_job
from shoal.model.objects import Node, Service, Task


class Ground:
    """What one service thinks of the nodes at one moment."""

    def __init__(self, view: View, service: Service) -> None:
        placement = service.spec.task.placement
        self._view = view
        self._is_global = is_global(service.spec.mode)
        self._is_job = is_job(service.spec.mode)
        self._platforms = placement.platforms
        self._constraints = constraints_of(placement)

    def node_ids(self) -> list[str]:
        """Nodes on which a global service has a task."""
        if not self._is_global:
            return []
        return sorted(node.id for node in self._view.nodes if is_ready(node) and self._fits(node))

    def takes(self, slot: Slot) -> bool:
        """Whether a task may be put into the slot now."""
        if not self._is_global:
            return True
        node = self._view.nodes.get(slot.node_id)
        return node is not None and is_ready(node) and self._fits(node)

    def must_leave(self, task: Task) -> bool:
        """Whether the task may not stay where it is."""
        if not self._is_global:
            return node_is_invalid(self._view, task)
        node = self._view.nodes.get(task.node_id)
        if node is None or not self._fits(node):
            return True
        if self._is_job:
            return node.spec.availability is NodeAvailability.DRAIN
        return node_is_invalid(self._view, task)

    def _fits(self, node: Node) -> bool:
        if self._constraints is None or not node_matches(node, self._constraints):
            return False
        return fits_platforms(node, self._platforms)
