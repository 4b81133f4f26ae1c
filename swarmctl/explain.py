"""The call that explains a service, and its answer as text for people or as one object."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grpc

from shoal.api.v1 import control_pb2 as pb
from shoal.api.v1 import control_pb2_grpc
from shoal.docker.values import Record
from shoal.docker.words import spell, timestamp
from shoal.model.enums import TaskState
from swarmctl.client import CALL_TIMEOUT_S, Client
from swarmctl.render.tables import align, one_line
from swarmctl.render.times import distance

FITS = "would do: a task is placed in a moment"
LIMIT = "what is missing here is more than an answer holds"


async def explain_service(client: Client, reference: str) -> pb.ExplainServiceResponse:
    """Why a service, by id, name or unique id prefix, is not as it is wished."""
    stub: Any = control_pb2_grpc.ControlStub(client.channel)
    request = pb.ExplainServiceRequest(service=reference)
    try:
        answer: pb.ExplainServiceResponse = await stub.ExplainService(
            request, timeout=CALL_TIMEOUT_S
        )
    except grpc.aio.AioRpcError as error:
        raise client.failure(error) from error
    return answer


def explanation_text(
    answer: pb.ExplainServiceResponse, names: Mapping[str, str], *, now_ns: int
) -> str:
    """For people. names: of nodes, by id."""
    lines = [f"{answer.name}: {answer.running_tasks} of {answer.desired_tasks} tasks run"]
    for entry in answer.waiting:
        lines += ["", *_waiting(entry, now_ns=now_ns), *node_lines(entry.nodes)]
    if answer.nodes_without:
        lines += ["", "Nodes without a task:", *node_lines(answer.nodes_without)]
    if answer.preemption:
        lines += ["", "Less important:", *(f"  {one_line(line)}" for line in answer.preemption)]
    if answer.held:
        lines += ["", "Held back:", *(f"  {one_line(line)}" for line in answer.held)]
    if answer.update:
        lines += ["", "Update:", *(f"  {one_line(line)}" for line in answer.update)]
    if answer.hand_overs:
        lines += ["", "Moving:", *(f"  {one_line(line)}" for line in answer.hand_overs)]
    if answer.failures:
        lines += ["", "Failures of the tasks that are kept:"]
        lines += [_failure(entry, names, now_ns=now_ns) for entry in answer.failures]
    if answer.nodes_left_out or answer.waiting_left_out:
        left_out = f"{answer.waiting_left_out} tasks and {answer.nodes_left_out} lines of nodes"
        lines += ["", f"Left out: {left_out}, {LIMIT}"]
    return "".join(f"{line}\n" for line in lines)


def explanation_json(answer: pb.ExplainServiceResponse) -> Record:
    """For programs."""
    return Record(
        {
            "ID": answer.service_id,
            "Name": answer.name,
            "RunningTasks": answer.running_tasks,
            "DesiredTasks": answer.desired_tasks,
            "Waiting": [
                Record(
                    {
                        "Count": entry.count,
                        "Tasks": list(entry.task_ids),
                        "State": spell(TaskState(entry.state)),
                        "Since": timestamp(entry.since_ns),
                        "Reason": entry.reason,
                        "Nodes": [_node_json(node) for node in entry.nodes],
                    }
                )
                for entry in answer.waiting
            ],
            "NodesWithout": [_node_json(node) for node in answer.nodes_without],
            "Preemption": list(answer.preemption),
            "Held": list(answer.held),
            "Update": list(answer.update),
            "HandOvers": list(answer.hand_overs),
            "Failures": [
                Record(
                    {
                        "Error": entry.error,
                        "Count": entry.count,
                        "Last": timestamp(entry.last_at_ns),
                        "Nodes": list(entry.node_ids),
                    }
                )
                for entry in answer.failures
            ],
            "NodesLeftOut": answer.nodes_left_out,
            "WaitingLeftOut": answer.waiting_left_out,
        }
    )


def _waiting(entry: pb.WaitingTasks, *, now_ns: int) -> Iterator[str]:
    count = f"{entry.count} task" + ("" if entry.count == 1 else "s")
    state, since = spell(TaskState(entry.state)), distance(now_ns - entry.since_ns).lower()
    yield f"{count} {state} for {since}: {one_line(entry.reason)}"
    more = entry.count - len(entry.task_ids)
    yield "  " + ", ".join([*entry.task_ids, *([f"{more} more"] if more else [])])


def node_lines(nodes: Sequence[pb.NodeReasons]) -> list[str]:
    """A table of what each node has against a task; nothing where no node is named."""
    if not nodes:
        return []
    rows = ["  NODE\tFILTER\tREASON"]
    for node in nodes:
        name = one_line(node.hostname) or node.node_id
        for reason in node.reasons or [pb.FilterReason(filter="-", text=FITS)]:
            rows.append(f"  {name}\t{reason.filter.replace('_', ' ')}\t{one_line(reason.text)}")
            name = ""
    return align(rows).splitlines()


def _failure(entry: pb.TaskFailure, names: Mapping[str, str], *, now_ns: int) -> str:
    where = ", ".join(names.get(node_id, node_id) for node_id in entry.node_ids)
    last = f"the last {distance(now_ns - entry.last_at_ns).lower()} ago"
    on = f" on {where}" if where else ""
    return f"  {entry.count} times {one_line(entry.error)}: {last}{on}"


def _node_json(node: pb.NodeReasons) -> Record:
    reasons = [Record({"Filter": one.filter, "Text": one.text}) for one in node.reasons]
    return Record({"ID": node.node_id, "Hostname": node.hostname, "Reasons": reasons})
