"""A rehearsal as the answer to PlanChanges: bounded, whatever the cluster is like.

Tasks are listed up to TASKS_MAX in all, and explanations as far as the answer stays well below
gRPC's 4 MiB; what is left out is counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from manager.rehearsal.changes import field_changes
from manager.rehearsal.outcome import EndedTask, MadeTask, ServiceOutcome
from manager.rehearsal.plan import Rehearsal
from manager.scheduler import outlook
from manager.store.view import View
from shoal.api.v1 import control_pb2 as pb
from shoal.api.v1 import types_pb2
from shoal.errors import SwarmError
from shoal.model.defaults import update_config
from shoal.model.enums import PublishMode, TaskState, UpdateOrder, UpdateState
from shoal.model.modes import is_job
from shoal.model.objects import Service, Task
from shoal.wire.objects import fill_pb

TASKS_MAX = 2000
FIELDS_MAX = 1000
ANSWER_BYTES_MAX = 2 << 20
TEXT_MAX = 1000
BROKEN_OFF = "it takes more time to work out than a plan may take: what follows is missing"

ItemT = TypeVar("ItemT")
_UNDER_WAY = (UpdateState.UPDATING, UpdateState.ROLLBACK_STARTED)
_PAUSED = (UpdateState.PAUSED, UpdateState.ROLLBACK_PAUSED)
_ENDED_BADLY = frozenset({TaskState.FAILED, TaskState.REJECTED, TaskState.ORPHANED})


class PlanAnswer:
    """The message in the making. `explain` is called for services of it afterwards."""

    def __init__(self, done: Rehearsal) -> None:
        self.message = pb.PlanChangesResponse(
            answers=[_planned_answer(one) for one in done.answers],
            waited_ns=done.waited_ns,
            broken_off="" if done.is_complete else BROKEN_OFF,
        )
        self._view = done.end
        self._room = TASKS_MAX
        self._plans = {
            outcome.service_id: self._fill(into.add(), outcome, asked=into is self.message.services)
            for into, outcomes in (
                (self.message.services, done.services),
                (self.message.others, done.others),
            )
            for outcome in outcomes
        }

    def explain(self, service_id: str, explained: pb.ExplainServiceResponse) -> None:
        """Add what is not as wished at the end; without what each node has against it if large."""
        if self.message.ByteSize() + explained.ByteSize() > ANSWER_BYTES_MAX:
            for waiting in explained.waiting:
                explained.nodes_left_out += len(waiting.nodes)
                del waiting.nodes[:]
            explained.nodes_left_out += len(explained.nodes_without)
            del explained.nodes_without[:]
        self._plans[service_id].end.CopyFrom(explained)

    def _fill(
        self, plan: pb.ServicePlan, outcome: ServiceOutcome, *, asked: bool
    ) -> pb.ServicePlan:
        before, after = outcome.before, outcome.after
        shown = after or before or Service()
        plan.service_id = outcome.service_id
        plan.name = shown.spec.annotations.name
        plan.version = 0 if before is None else before.meta.version.index
        plan.removed = after is None or after.pending_delete
        plan.taken_back = outcome.is_taken_back
        if outcome.asked is not None:
            fields = field_changes(None if before is None else before.spec, outcome.asked.spec)
            plan.fields.extend(
                pb.FieldChange(path=one.path, old=one.old, new=one.new)
                for one in fields[:FIELDS_MAX]
            )
        if after is not None and after.update_status is not None and outcome.made:
            fill_pb(after.update_status, plan.update_status)
        plan.made.extend(map(self._made, self._fitting(plan, outcome.made)))
        plan.stopped.extend(map(self._stopped, self._fitting(plan, outcome.ended)))
        plan.placed.extend(map(self._task, self._fitting(plan, outcome.placed)))
        plan.counts.CopyFrom(_counts(outcome))
        if asked:
            plan.warnings.extend(_warnings(self._view, outcome))
        return plan

    def _fitting(self, plan: pb.ServicePlan, items: Sequence[ItemT]) -> Sequence[ItemT]:
        shown = items[: self._room]
        self._room -= len(shown)
        plan.tasks_left_out += len(items) - len(shown)
        return shown

    def _made(self, one: MadeTask) -> pb.PlannedTask:
        message = self._task(one.task)
        message.task_id = ""
        message.batch = one.batch
        message.waited_ns = one.waited_ns
        message.given_up = one.gone
        message.replaces_task_id = "" if one.replaces is None else one.replaces.id
        return message

    def _stopped(self, one: EndedTask) -> pb.PlannedTask:
        message = self._task(one.task)
        message.replaced = one.has_heir
        return message

    def _task(self, task: Task) -> pb.PlannedTask:
        node = self._view.nodes.get(task.node_id) if task.node_id else None
        waits = task.status.state < TaskState.RUNNING
        return pb.PlannedTask(
            task_id=task.id,
            slot=task.slot,
            node_id=task.node_id,
            hostname="" if node is None else node.description.hostname,
            state=types_pb2.TaskState.ValueType(task.status.state),
            reason=task.status.error[:TEXT_MAX] if waits else "",
        )


def _planned_answer(answer: str | SwarmError) -> pb.PlannedAnswer:
    if isinstance(answer, SwarmError):
        return pb.PlannedAnswer(refusal=answer.message[:TEXT_MAX], code=answer.code.value)
    return pb.PlannedAnswer(service_id=answer)


def _counts(outcome: ServiceOutcome) -> pb.PlannedCounts:
    replaced = sum(one.replaces is not None for one in outcome.made)
    return pb.PlannedCounts(
        created=len(outcome.made) - replaced,
        replaced=replaced,
        stopped=sum(not one.has_heir for one in outcome.ended),
        waiting=sum(
            not one.gone and one.task.status.state < TaskState.RUNNING for one in outcome.made
        ),
        placed=len(outcome.placed),
        batches=max((one.batch for one in outcome.made), default=0),
    )


def _warnings(view: View, outcome: ServiceOutcome) -> Iterator[str]:
    """What a reader of the plan should know besides."""
    before, after = outcome.before, outcome.after
    state = UpdateState.UNKNOWN
    if before is not None and before.update_status is not None:
        state = before.update_status.state
    if state in _UNDER_WAY:
        yield "an update or rollback is under way: what is left of it takes the new spec"
    elif state in _PAUSED and after is not None:
        yield "its update is paused: the change resumes it"
    if after is None:
        return
    yield from outlook.warnings(view, after.spec)
    tasks = view.tasks_of_service(after.id).values()
    failed = sum(task.status.state in _ENDED_BADLY for task in tasks)
    if failed:
        yield f"{failed} of its tasks that are kept have failed: the plan takes it that none will"
    if _falls_back(after) and any(one.replaces for one in outcome.made):
        yield "host-mode ports: its tasks are replaced stop-first, although start-first is set"


def _falls_back(service: Service) -> bool:
    if is_job(service.spec.mode):
        return False
    first = update_config(service.spec.update).order is UpdateOrder.START_FIRST
    ports = service.spec.endpoint.ports
    return first and any(port.publish_mode is PublishMode.HOST for port in ports)
