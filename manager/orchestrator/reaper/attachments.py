"""Remove attachments of containers whose node cannot give them back itself.

A node detaches its containers when they end. One that has left the cluster, or has been DOWN for a
day, does not: its containers may run on until then, so their addresses are kept for as long, as
those of services' tasks are. What a node says has ended, or is no longer wanted, goes at once.
"""

from __future__ import annotations

from manager.orchestrator.reaper.plan import ORPHAN_AFTER_NS
from manager.store.draft import Draft
from shoal.model.defaults import is_terminal
from shoal.model.enums import NodeState
from shoal.model.objects import Task


def advance(draft: Draft, *, now_ns: int) -> None:
    """Write the removals into a draft; asks to be woken for those that are due later."""
    for task in sorted(draft.view.tasks_of_service("").values(), key=lambda one: one.id):
        due_ns = _due_ns(draft, task)
        if due_ns is None:
            continue
        if now_ns < due_ns:
            draft.wake(due_ns)
        elif draft.room(task):
            draft.note("attachment.removed", task_id=task.id, node_id=task.node_id)
            draft.remove(task)


def _due_ns(draft: Draft, task: Task) -> int | None:
    """When the attachment is to be removed; None: not for anything that is known."""
    node = draft.view.nodes.get(task.node_id)
    if node is None or is_terminal(task):
        return 0
    if node.status.state is not NodeState.DOWN:
        return None
    return node.meta.updated_at_ns + ORPHAN_AFTER_NS
