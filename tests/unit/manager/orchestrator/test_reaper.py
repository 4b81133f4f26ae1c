from __future__ import annotations

import pytest

from manager.orchestrator.reaper.plan import ORPHAN_AFTER_NS, plan
from shoal.model.enums import NodeState, TaskState
from shoal.model.objects import AnyObject, Cluster
from shoal.model.plan import Plan
from shoal.model.specs import ClusterSpec, OrchestrationConfig
from tests.support.planning import START_NS, Cell, a_node, a_service, a_task


def _settle(cell: Cell) -> Plan:
    return cell.settle(lambda _: plan(cell.tables, ["web"], now_ns=cell.now_ns, ids=cell.ids))[-1]


def _ids(cell: Cell) -> list[str]:
    return [task.id for task in cell.tasks()]


def _history(count: int) -> list[AnyObject]:
    return [
        a_task(
            f"dead{number}",
            state=TaskState.FAILED,
            desired=TaskState.SHUTDOWN,
            created_at_ns=START_NS - 100 + number,
        )
        for number in range(count)
    ]


@pytest.mark.parametrize(("limit", "kept"), [(None, 5), (0, 0), (2, 2), (-1, 8)])
def test_the_history_of_a_slot_is_bounded(limit: int | None, kept: int) -> None:
    settings = ClusterSpec(orchestration=OrchestrationConfig(task_history_retention_limit=limit))
    cell = Cell([Cluster(id="c", spec=settings), a_node("n1"), a_service(), *_history(8)])
    cell.put(a_task("alive"))
    _settle(cell)

    assert _ids(cell) == [f"dead{number}" for number in range(8 - kept, 8)] + ["alive"]


def test_the_last_task_of_a_finished_slot_stays_whatever_the_limit() -> None:
    settings = ClusterSpec(orchestration=OrchestrationConfig(task_history_retention_limit=0))
    cell = Cell([Cluster(id="c", spec=settings), a_node("n1"), a_service(), *_history(3)])
    _settle(cell)

    assert _ids(cell) == ["dead2"]


@pytest.mark.parametrize(
    ("state", "desired", "goes"),
    [
        (TaskState.NEW, TaskState.REMOVE, True),
        (TaskState.PENDING, TaskState.REMOVE, True),
        (TaskState.ASSIGNED, TaskState.REMOVE, False),
        (TaskState.RUNNING, TaskState.REMOVE, False),
        (TaskState.COMPLETE, TaskState.REMOVE, True),
        (TaskState.SHUTDOWN, TaskState.REMOVE, True),
        (TaskState.ORPHANED, TaskState.REMOVE, True),
        (TaskState.PENDING, TaskState.SHUTDOWN, True),
        (TaskState.RUNNING, TaskState.SHUTDOWN, False),
        (TaskState.PENDING, TaskState.RUNNING, False),
    ],
)
def test_what_is_deleted(state: TaskState, desired: TaskState, goes: bool) -> None:
    node_id = "n1" if state >= TaskState.ASSIGNED else ""
    cell = Cell([a_node("n1"), a_service()])
    cell.put(a_task("t0", state=state, desired=desired, node_id=node_id))
    _settle(cell)

    assert _ids(cell) == ([] if goes else ["t0"])


def test_a_task_is_orphaned_when_its_node_was_down_for_a_day() -> None:
    cell = Cell([a_node("n1", state=NodeState.DOWN), a_service()])
    cell.put(a_task("t0", desired=TaskState.SHUTDOWN))
    assert _settle(cell).wake_at_ns == START_NS + ORPHAN_AFTER_NS
    cell.advance(24 * 3600)
    _settle(cell)

    assert [task.status.state for task in cell.tasks()] == [TaskState.ORPHANED]


def test_a_task_of_a_removed_node_is_orphaned_at_once() -> None:
    cell = Cell([a_service(), a_task("t0", node_id="gone", desired=TaskState.SHUTDOWN)])
    _settle(cell)

    assert [task.status.state for task in cell.tasks()] == [TaskState.ORPHANED]


def test_a_removed_service_goes_after_its_last_task() -> None:
    cell = Cell([a_node("n1"), a_service().replaced(pending_delete=True)])
    cell.put(a_task("t0", desired=TaskState.REMOVE))
    _settle(cell)
    assert cell.tables.services.get("web") is not None
    cell.report("t0", TaskState.SHUTDOWN)
    _settle(cell)

    assert cell.tables.services.get("web") is None
    assert not cell.tasks()


def test_a_node_that_is_down_does_not_hold_up_the_name_of_a_removed_service() -> None:
    cell = Cell([a_node("n1", state=NodeState.DOWN), a_service().replaced(pending_delete=True)])
    cell.put(a_task("t0", desired=TaskState.REMOVE))
    _settle(cell)

    assert cell.tables.services.get("web") is None
    assert _ids(cell) == ["t0"], "its agent is told to stop it when the node returns"
