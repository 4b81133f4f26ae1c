"""The call that rebalances services, its answer as rows, and the wait for the moves to end."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import click
import grpc

from shoal.api.v1 import control_pb2 as pb
from shoal.api.v1 import control_pb2_grpc
from shoal.clock import SystemClock
from shoal.docker.values import Record
from shoal.errors import SwarmError
from shoal.model.defaults import is_terminal, is_wanted
from shoal.model.enums import TaskState
from shoal.model.objects import Task
from swarmctl.client import CALL_TIMEOUT_S, Client
from swarmctl.exits import CommandFailed
from swarmctl.types import Filters

MOVE_COLUMNS = {"Task": "TASK", "ID": "ID", "From": "FROM", "To": "TO"}
POLL_PERIOD_S = 0.5
SILENCE_MAX_S = 60.0
"""How long the wait bears that no manager answers, as when another one is about to lead."""


async def rebalance(
    client: Client, services: Sequence[str], *, plan_only: bool
) -> pb.RebalanceServicesResponse:
    """Move tasks of services, of all where none is named; or only say what would be moved."""
    stub: Any = control_pb2_grpc.ControlStub(client.channel)
    request = pb.RebalanceServicesRequest(services=services, all=not services, plan_only=plan_only)
    try:
        answer: pb.RebalanceServicesResponse = await stub.RebalanceServices(
            request, timeout=CALL_TIMEOUT_S
        )
    except grpc.aio.AioRpcError as error:
        raise client.failure(error) from error
    return answer


def move_row(move: pb.ServiceMove, names: Mapping[str, str]) -> Record:
    """One move. names: of nodes, by id."""
    return Record(
        {
            "Task": f"{move.service_name}.{move.slot}",
            "ID": move.task_id,
            "From": names.get(move.from_node_id, move.from_node_id),
            "To": names.get(move.to_node_id, move.to_node_id),
        }
    )


async def wait_moved(client: Client, service_ids: Sequence[str]) -> None:
    """Return when the moves of these services have ended. Raises CommandFailed if some failed."""
    clock, said = SystemClock(), ""
    heard_at_s, began_ns = clock.monotonic_s(), clock.now_ns()
    while True:
        try:
            entries = [await client.service(service_id) for service_id in service_ids]
            tasks = await client.tasks(Filters(services=tuple(service_ids)))
            heard_at_s = clock.monotonic_s()
        except SwarmError as error:
            if not error.retryable or clock.monotonic_s() - heard_at_s > SILENCE_MAX_S:
                raise
        else:
            moving = [task for task in tasks if task.takes_over and _is_on_its_way(task)]
            waiting = sum(bool(entry.service.rebalance_moves) for entry in entries)
            if not moving and not waiting:
                return _tell_failures(tasks, since_ns=began_ns)
            saying = f"{len(moving)} on their way, {waiting} services not even yet"
            if saying != said:
                said = saying
                click.echo(said, err=True)
        await asyncio.sleep(POLL_PERIOD_S)


def _is_on_its_way(task: Task) -> bool:
    return is_wanted(task) and not is_terminal(task) and task.status.state < TaskState.RUNNING


def _tell_failures(tasks: Sequence[Task], *, since_ns: int) -> None:
    failed = [
        task
        for task in tasks
        if task.takes_over
        and task.status.state in {TaskState.FAILED, TaskState.REJECTED}
        and task.status.timestamp_ns >= since_ns
    ]
    if failed:
        why = failed[0].status.error or failed[0].status.message
        raise CommandFailed(f"{len(failed)} moves failed, the tasks run on where they were: {why}")
