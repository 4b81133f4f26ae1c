"""The call that plans changes of services, and its answer as one object for programs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc

from shoal.api.v1 import control_pb2 as pb
from shoal.api.v1 import control_pb2_grpc, specs_pb2, types_pb2
from shoal.docker.values import Record
from shoal.docker.words import spell
from shoal.errors import ERROR_BY_CODE, Code, SwarmError
from shoal.model.enums import TaskState, UpdateState
from shoal.model.objects import Service
from shoal.model.specs import ServiceSpec
from shoal.wire.objects import to_pb
from swarmctl.client import CALL_TIMEOUT_S, Client
from swarmctl.explain import explanation_json

_PAUSED = (types_pb2.UPDATE_STATE_PAUSED, types_pb2.UPDATE_STATE_ROLLBACK_PAUSED)


def creation(spec: ServiceSpec) -> pb.PlannedCall:
    """The call that creates a service."""
    request = pb.CreateServiceRequest(spec=to_pb(spec, specs_pb2.ServiceSpec))
    return pb.PlannedCall(create_service=request)


def change(service: Service, spec: ServiceSpec | int, *, version: int = 0) -> pb.PlannedCall:
    """The call that gives a service another spec, or that of a revision; 0: the one of before."""
    request = pb.UpdateServiceRequest(
        service=service.id,
        version=types_pb2.Version(index=version or service.meta.version.index),
        spec=None if isinstance(spec, int) else to_pb(spec, specs_pb2.ServiceSpec),
        rollback=isinstance(spec, int),
        rollback_to=spec if isinstance(spec, int) else 0,
    )
    return pb.PlannedCall(update_service=request)


def removal(reference: str, *, version: int = 0) -> pb.PlannedCall:
    """The call that removes a service."""
    request = pb.RemoveServiceRequest(service=reference, version=types_pb2.Version(index=version))
    return pb.PlannedCall(remove_service=request)


async def plan_changes(client: Client, calls: Iterable[pb.PlannedCall]) -> pb.PlanChangesResponse:
    """What these calls would do, one after the other."""
    stub: Any = control_pb2_grpc.ControlStub(client.channel)
    request = pb.PlanChangesRequest(calls=calls)
    try:
        answer: pb.PlanChangesResponse = await stub.PlanChanges(request, timeout=CALL_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        raise client.failure(error) from error
    return answer


def refusals(answer: pb.PlanChangesResponse) -> list[SwarmError]:
    """With what the calls would be refused, as they would raise it."""
    return [ERROR_BY_CODE[Code(one.code)](one.refusal) for one in answer.answers if one.code]


def changes_nothing(answer: pb.PlanChangesResponse) -> bool:
    """Whether every call would be accepted, and none would change a spec or a task."""
    plans = (*answer.services, *answer.others)
    refused = any(one.code for one in answer.answers)
    return not refused and not any(
        plan.removed or plan.fields or plan.made or plan.stopped or plan.placed for plan in plans
    )


def would_fail(answer: pb.PlanChangesResponse) -> bool:
    """Whether tasks that are made would not run, or an update would fail; or no end is known."""
    return bool(answer.broken_off) or any(
        plan.counts.waiting or plan.taken_back or plan.update_status.state in _PAUSED
        for plan in answer.services
    )


def plan_json(answer: pb.PlanChangesResponse) -> Record:
    """For programs."""
    return Record(
        {
            "Services": [_service(plan) for plan in answer.services],
            "Others": [_service(plan) for plan in answer.others],
            "Refusals": [
                Record({"Call": place, "Code": one.code, "Message": one.refusal})
                for place, one in enumerate(answer.answers)
                if one.code
            ],
            "WaitedNs": answer.waited_ns,
            "BrokenOff": answer.broken_off,
            "ChangesNothing": changes_nothing(answer),
        }
    )


def _service(plan: pb.ServicePlan) -> Record:
    counts = plan.counts
    return Record(
        {
            "ID": plan.service_id,
            "Name": plan.name,
            "Version": plan.version,
            "Removed": plan.removed,
            "Fields": [
                Record({"Path": one.path, "Old": one.old, "New": one.new}) for one in plan.fields
            ],
            "Created": counts.created,
            "Replaced": counts.replaced,
            "Stopped": counts.stopped,
            "Waiting": counts.waiting,
            "Placed": counts.placed,
            "Batches": counts.batches,
            "Made": [_task(one) for one in plan.made],
            "StoppedTasks": [_task(one) for one in plan.stopped],
            "PlacedTasks": [_task(one) for one in plan.placed],
            "TasksLeftOut": plan.tasks_left_out,
            "TakenBack": plan.taken_back,
            "UpdateState": spell(UpdateState(plan.update_status.state)),
            "UpdateMessage": plan.update_status.message,
            "Warnings": list(plan.warnings),
            "End": explanation_json(plan.end) if plan.HasField("end") else None,
        }
    )


def _task(one: pb.PlannedTask) -> Record:
    return Record(
        {
            "ID": one.task_id,
            "Slot": one.slot,
            "NodeID": one.node_id,
            "Hostname": one.hostname,
            "State": spell(TaskState(one.state)),
            "Reason": one.reason,
            "Batch": one.batch,
            "WaitedNs": one.waited_ns,
            "Replaces": one.replaces_task_id,
            "IsReplaced": one.replaced,
            "GivenUp": one.given_up,
        }
    )
