"""The agents of a rehearsal: they obey, at once, and nothing fails.

A task goes to what is wanted of it in one step: its node's agent prepares it, runs it, lets it
complete, stops it. What an agent could not do is not done: tasks on nodes that are not READY stay
as they are, and so do those below ASSIGNED, which are the managers'. Places that containers hold
on networks by hand are the business of whoever runs the container.
"""

from __future__ import annotations

from manager.store.view import View
from shoal.model.defaults import is_terminal
from shoal.model.enums import NodeState, TaskState
from shoal.model.objects import Task
from shoal.model.types import TaskStatus


def next_report(view: View, task: Task, *, now_ns: int) -> Task | None:
    """The task as its agent reports it next; None: the agent has nothing to do."""
    if not task.service_id or task.status.state < TaskState.ASSIGNED or is_terminal(task):
        return None
    node = view.nodes.get(task.node_id)
    if node is None or node.status.state is not NodeState.READY:
        return None
    state = _next_state(task)
    if state <= task.status.state:
        return None
    return task.with_status(
        TaskStatus(
            state=state, timestamp_ns=now_ns, applied_at_ns=now_ns, address=task.status.address
        )
    )


def _next_state(task: Task) -> TaskState:
    match task.desired_state:
        case TaskState.READY:
            return TaskState.READY
        case TaskState.RUNNING:
            return TaskState.RUNNING
        case TaskState.COMPLETE:
            runs = task.status.state is TaskState.RUNNING
            return TaskState.COMPLETE if runs else TaskState.RUNNING
        case _:
            return TaskState.SHUTDOWN
