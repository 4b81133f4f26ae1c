"""Why a service is not as it is wished: `service explain`.

Pure: one view and a time, put into words by the rules of the planners themselves, so what is said
here is what they go by. The answer is bounded whatever the cluster is like; what did not fit is
counted. Of a task that is placed the agent's own words are passed on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from manager.controlapi.services import status_of
from manager.orchestrator.gate import plan as gate
from manager.orchestrator.ground import Ground
from manager.orchestrator.handover.waits import hand_overs_of
from manager.orchestrator.slots import ended_at_ns, ended_by_itself, service_slots
from manager.orchestrator.update.waits import waits_of
from manager.scheduler.copies import copies_of
from manager.scheduler.preempt import yielding
from manager.scheduler.reasons import Reason, placement_reasons, reasons
from manager.scheduler.usage import HostPlace, Usage, host_places
from manager.store.view import View
from shoal.api.v1 import control_pb2 as pb
from shoal.api.v1 import types_pb2
from shoal.clock import NS_PER_S
from shoal.model.defaults import is_wanted, restart_policy
from shoal.model.enums import NodeState, RestartCondition, TaskState
from shoal.model.modes import is_global, is_job
from shoal.model.objects import Node, Service, Task

NODES_MAX = 2000
"""Nodes with reasons in one answer, which so stays below 4 MiB."""
GROUPS_MAX = 50
IDS_MAX = 10
"""Tasks named in one group, and nodes of one failure."""
FAILURES_MAX = 10
YIELDING_MAX = 20
TEXT_MAX = 1000

_CONDITIONS = {
    RestartCondition.ANY: "any",
    RestartCondition.ON_FAILURE: "on-failure",
    RestartCondition.NONE: "none",
}
GroupKey = tuple[TaskState, str, int, tuple[HostPlace, ...], str]
"""State, reason, spec version and host-mode ports; and the node that a task came with."""


def explain_service(view: View, service: Service, *, now_ns: int) -> pb.ExplainServiceResponse:
    """Everything that keeps a service from what was asked for."""
    tasks = view.tasks_of_service(service.id)
    down = {node.id for node in view.nodes if node.status.state is NodeState.DOWN}
    status = status_of(service, tasks, down)
    response = pb.ExplainServiceResponse(
        service_id=service.id,
        name=service.spec.annotations.name,
        running_tasks=status.running_tasks,
        desired_tasks=status.desired_tasks,
        update=[text[:TEXT_MAX] for text in waits_of(view, service, now_ns=now_ns)],
        held=[text[:TEXT_MAX] for text in gate.waits_of(view, service)],
        failures=_failures(tasks.values()),
        hand_overs=hand_overs_of(view, service, now_ns=now_ns),
    )
    nodes = _Nodes(view, response)
    groups = _waiting(view, service, now_ns=now_ns)
    for (state, reason, *_), group in list(groups.items())[:GROUPS_MAX]:
        message = response.waiting.add(
            count=len(group),
            task_ids=[task.id for task in group[:IDS_MAX]],
            state=types_pb2.TaskState.ValueType(state),
            since_ns=min(task.status.timestamp_ns for task in group),
            reason=reason[:TEXT_MAX],
        )
        if state is TaskState.PENDING:
            message.nodes.extend(nodes.against(group[0]))
    response.waiting_left_out = sum(len(group) for group in list(groups.values())[GROUPS_MAX:])
    if any(state is TaskState.PENDING for state, *_ in groups):
        response.preemption.extend(islice(yielding(view, service), YIELDING_MAX))
    if is_global(service.spec.mode):
        response.nodes_without.extend(nodes.without(service))
    return response


class _Nodes:
    """What the nodes have against tasks. Usage is counted once, when it is asked for."""

    def __init__(self, view: View, response: pb.ExplainServiceResponse) -> None:
        self._view = view
        self._response = response
        self._usage: dict[str, Usage] = {}
        self._nodes = sorted(view.nodes, key=lambda node: node.id)
        self._room = NODES_MAX

    def against(self, task: Task) -> Iterator[pb.NodeReasons]:
        """Reasons of each node that the task could be on: all, or the one that it came with."""
        copies = {} if task.node_id else copies_of(self._view, task)
        nodes = [node for node in self._nodes if task.node_id in {"", node.id}]
        for node in self._fitting(nodes):
            usage = self._usage_of(node)
            yield _node_reasons(node, reasons(self._view, task, usage, copies.get(node.id, 0)))

    def without(self, service: Service) -> Iterator[pb.NodeReasons]:
        """Nodes on which a global service has no task that shall be there."""
        tasks = self._view.tasks_of_service(service.id).values()
        has_one = {task.node_id for task in tasks if is_wanted(task)}
        nodes = [node for node in self._nodes if node.id not in has_one]
        for node in self._fitting(nodes):
            yield _node_reasons(node, placement_reasons(node, service.spec.task.placement))

    def _fitting(self, nodes: list[Node]) -> list[Node]:
        shown = nodes[: self._room]
        self._room -= len(shown)
        self._response.nodes_left_out += len(nodes) - len(shown)
        return shown

    def _usage_of(self, node: Node) -> Usage:
        if node.id not in self._usage:
            self._usage[node.id] = Usage(node, self._view.tasks_of_node(node.id).values())
        return self._usage[node.id]


def _node_reasons(node: Node, found: Iterable[Reason]) -> pb.NodeReasons:
    return pb.NodeReasons(
        node_id=node.id,
        hostname=node.description.hostname,
        reasons=[pb.FilterReason(filter=one.filter, text=one.text) for one in found],
    )


def _waiting(view: View, service: Service, *, now_ns: int) -> Mapping[GroupKey, list[Task]]:
    """Tasks that are on their way to running, or were given up, by what they wait for."""
    groups: dict[GroupKey, list[Task]] = {}
    for task in _tasks_behind(view, service):
        state = task.status.state
        pending = state is TaskState.PENDING
        key: GroupKey = (
            state,
            _reason(view, service, task, now_ns=now_ns),
            task.spec_version.index if pending else 0,
            host_places(task.endpoint) if pending else (),
            task.node_id if pending else "",
        )
        groups.setdefault(key, []).append(task)
    return groups


def _tasks_behind(view: View, service: Service) -> Iterator[Task]:
    """Wanted tasks that do not run yet; of slots that want none, the one that ended by itself."""
    ground = Ground(view, service)
    for slot in service_slots(view, service):
        if is_job(service.spec.mode) and slot.completed:
            continue
        yield from (task for task in slot.wanted if task.status.state < TaskState.RUNNING)
        if not slot.wanted and ended_by_itself(slot.newest) and ground.takes(slot):
            yield slot.newest


def _reason(view: View, service: Service, task: Task, *, now_ns: int) -> str:
    status = task.status
    said = status.error or status.message
    if ended_by_itself(task):
        return _not_replaced(service, said)
    if not task.node_id or status.state <= TaskState.PENDING:
        return said or "to be placed in a moment"
    node = view.nodes.get(task.node_id)
    if node is None:
        return "its node is gone"
    name = node.description.hostname or node.id
    if node.status.state is not NodeState.READY:
        return f"its node {name} is {node.status.state.name.lower()}"
    if task.desired_state is TaskState.READY:
        left_ns = task.start_after_ns - now_ns
        if left_ns > 0:
            return f"the delay before its start: {-(-left_ns // NS_PER_S)} s left"
        return "is prepared; it starts when the task that it replaces has stopped"
    return f"on node {name}: {said}" if said else f"on node {name}"


def _not_replaced(service: Service, said: str) -> str:
    policy = restart_policy(service.spec.task.restart)
    most = f", at most {policy.max_attempts} attempts" if policy.max_attempts else ""
    rule = f"restart condition {_CONDITIONS[policy.condition]}{most}"
    return f"ended and is not replaced by the {rule}: {said}"


def _failures(tasks: Iterable[Task]) -> list[pb.TaskFailure]:
    """Errors with which tasks ended, the most frequent first."""
    by_error: dict[str, list[Task]] = {}
    for task in tasks:
        if task.status.state in {TaskState.FAILED, TaskState.REJECTED, TaskState.ORPHANED}:
            by_error.setdefault((task.status.error or task.status.message)[:TEXT_MAX], []).append(
                task
            )
    ordered = sorted(by_error.items(), key=lambda item: (-len(item[1]), item[0]))
    return [
        pb.TaskFailure(
            error=error,
            count=len(failed),
            last_at_ns=max(ended_at_ns(task) for task in failed),
            node_ids=sorted({task.node_id for task in failed if task.node_id})[:IDS_MAX],
        )
        for error, failed in ordered[:FAILURES_MAX]
    ]
