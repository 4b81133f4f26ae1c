"""A plan as text for people: what differs, which tasks come and go, what would wait and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from shoal.api.v1 import control_pb2 as pb
from shoal.clock import NS_PER_S
from swarmctl.explain import node_lines
from swarmctl.render.tables import align, one_line

TASKS_SHOWN = 40
"""Of each list of tasks of a service."""
NOTHING = "Nothing would change."


def plan_text(answer: pb.PlanChangesResponse) -> str:
    """Everything but refusals, which are errors."""
    lines: list[str] = []
    for plan in answer.services:
        lines += [*_service(plan), ""]
    if answer.others:
        lines += ["On account of that:", ""]
        for plan in answer.others:
            lines += [*_service(plan), ""]
    if answer.waited_ns:
        lines.append(f"Delays and monitoring alone take {_seconds(answer.waited_ns)} s.")
    if answer.broken_off:
        lines.append(f"The plan is not whole: {answer.broken_off}.")
    lines += _advice(answer.services)
    return "".join(f"{line}\n" for line in lines)


def _service(plan: pb.ServicePlan) -> Iterator[str]:
    yield f"{plan.name}: {_headline(plan)}"
    yield from (_field(one) for one in plan.fields)
    if plan.made:
        yield from _made(plan)
    yield from _list("stops", [one for one in plan.stopped if not one.replaced])
    yield from _list("gets a node", plan.placed)
    if plan.tasks_left_out:
        yield f"  {plan.tasks_left_out} more tasks are not listed"
    if plan.update_status.message:
        yield f"  At the end: {one_line(plan.update_status.message)}"
    if plan.taken_back:
        yield "  The update fails: the spec of before is in force again at the end"
    for entry in plan.end.waiting:
        yield f"  {_tasks(entry.count)} would wait: {one_line(entry.reason)}"
        yield from (f"  {line}" for line in node_lines(entry.nodes))
    yield from (f"  Warning: {one_line(text)}" for text in plan.warnings)


def _headline(plan: pb.ServicePlan) -> str:
    counts = plan.counts
    what = [
        f"{_tasks(number)} {verb}"
        for number, verb in (
            (counts.created, "made"),
            (counts.replaced, "replaced"),
            (counts.stopped, "stopped"),
            (counts.placed, "placed"),
        )
        if number
    ]
    text = ", ".join(what) or "no task is made, replaced or stopped"
    if counts.batches > 1:
        text += f", in {counts.batches} batches"
    if plan.removed:
        return f"removed; {text}"
    return text if plan.version else f"new; {text}"


def _field(one: pb.FieldChange) -> str:
    old, new = one_line(one.old), one_line(one.new)
    if not old:
        return f"  + {one.path}: {new}"
    return f"  ~ {one.path}: {old} → {new}" if new else f"  - {one.path}: {old}"


def _made(plan: pb.ServicePlan) -> Iterator[str]:
    stopped = {one.task_id: one for one in plan.stopped}
    rows = ["  BATCH\tSLOT\tNODE\tIN PLACE OF\tNOTE"]
    for one in plan.made[:TASKS_SHOWN]:
        old = stopped.get(one.replaces_task_id)
        place = one.replaces_task_id[:12] or "-"
        if old is not None:
            place += f" on {_node(old)}"
        rows.append(f"  {one.batch}\t{_slot(one)}\t{_node(one)}\t{place}\t{_note(one)}")
    yield from align(rows).splitlines()
    if len(plan.made) > TASKS_SHOWN:
        yield f"  … {len(plan.made) - TASKS_SHOWN} more: --format json lists them"


def _list(what: str, tasks: Sequence[pb.PlannedTask]) -> Iterator[str]:
    for one in tasks[:TASKS_SHOWN]:
        slot = f"slot {one.slot}" if one.slot else "task"
        yield f"  {slot} on {_node(one)} {what} ({one.task_id[:12]})"
    if len(tasks) > TASKS_SHOWN:
        yield f"  … {len(tasks) - TASKS_SHOWN} more: --format json lists them"


def _note(one: pb.PlannedTask) -> str:
    notes = [f"after {_seconds(one.waited_ns)} s"] if one.waited_ns else []
    if one.given_up:
        notes.append("given up again")
    elif one.reason:
        notes.append(f"waits: {one_line(one.reason)}")
    return ", ".join(notes)


def _advice(plans: Sequence[pb.ServicePlan]) -> Iterator[str]:
    for plan in plans:
        if plan.version:
            yield f"Planned from version {plan.version} of {plan.name}: --check-version " + (
                f"{plan.version} makes the change only if it is the same then"
            )


def _tasks(number: int) -> str:
    return f"{number} task" + ("" if number == 1 else "s")


def _slot(one: pb.PlannedTask) -> str:
    return str(one.slot) if one.slot else "-"


def _node(one: pb.PlannedTask) -> str:
    return one_line(one.hostname) or one.node_id or "-"


def _seconds(duration_ns: int) -> str:
    return f"{duration_ns / NS_PER_S:.3g}"
