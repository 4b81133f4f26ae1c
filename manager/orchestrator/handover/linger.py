"""Which tasks may stay on a node that is emptied, and until when.

With a drain policy a node's running tasks stay until they are replaced, at most until the node's
deadline. Not those of global services: nothing replaces them. Not those of services that wait for
lost nodes (disconnect action `wait`): they have said that two of a slot must not run at once. Tasks
that do not run yet serve nobody and are answered at once.
"""

from __future__ import annotations

from manager.store.view import View
from shoal.model.defaults import is_wanted
from shoal.model.enums import DisconnectAction, NodeAvailability, NodeState, TaskState
from shoal.model.modes import is_global, is_job
from shoal.model.objects import Node, Service, Task


def is_emptied(node: Node, *, now_ns: int) -> bool:
    """Whether the node's tasks are being started elsewhere before they stop there."""
    return (
        node.spec.availability is NodeAvailability.DRAIN
        and node.spec.drain is not None
        and node.status.state is not NodeState.DOWN
        and now_ns < node.drain_until_ns
    )


def lingers(view: View, service: Service, task: Task, *, now_ns: int) -> bool:
    """Whether the task stays on a node that is emptied. Of a job: to end its work there."""
    if task.status.state is not TaskState.RUNNING or not is_wanted(task):
        return False
    node = view.nodes.get(task.node_id)
    return node is not None and is_emptied(node, now_ns=now_ns) and not stops_first(service)


def stops_first(service: Service) -> bool:
    """Whether the service's tasks leave a node that is emptied before others are started."""
    if is_global(service.spec.mode) and not is_job(service.spec.mode):
        return True
    policy = service.spec.task.disconnect
    return policy is not None and policy.action is DisconnectAction.WAIT


def linger_until_ns(view: View, task: Task) -> int:
    """The deadline of the node on which the task is; 0 when there is none."""
    node = view.nodes.get(task.node_id)
    return 0 if node is None else node.drain_until_ns
