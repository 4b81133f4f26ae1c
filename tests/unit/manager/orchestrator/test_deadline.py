"""The progress deadline: no update waits for ever for a task that does not come up."""

from __future__ import annotations

import pytest

from manager.orchestrator.update.waits import waits_of
from shoal.model.enums import FailureAction, NodeAvailability, TaskState, UpdateState
from shoal.model.specs import ContainerSpec, TaskSpec
from shoal.model.types import HealthCheck, Placement, UpdateConfig
from tests.support.planning import SECOND_NS, Cell
from tests.unit.manager.orchestrator import test_update as updating

NEW = updating.NEW
NOWHERE = NEW.replaced(placement=Placement(constraints=("node.labels.disk==ssd",)))


def new_tasks(cell: Cell) -> list[str]:
    return [one.id for one in cell.tasks() if one.container.image == "nginx:2"]


def begun(config: UpdateConfig, *, task: TaskSpec = NEW, state: TaskState | None = None) -> Cell:
    """An update of which the first slot's new task stays in a state."""
    cell = updating._running(config, replicas=2)
    updating._update(cell, task)
    (first,) = new_tasks(cell)
    if state is not None:
        for old in cell.tasks():
            if old.desired_state is TaskState.SHUTDOWN:
                cell.report(old.id, TaskState.SHUTDOWN)
        updating._settle(cell)
        cell.report(first, state, message="pulling image nginx:2")
    return cell


def after(cell: Cell, seconds: float) -> tuple[UpdateState, str]:
    cell.advance(seconds)
    updating._settle(cell)
    return updating._state(cell)


@pytest.mark.parametrize(
    ("task", "state", "stage"),
    [
        (NOWHERE, None, "PENDING (no suitable node ("),
        (NEW, TaskState.PREPARING, "PREPARING (pulling image nginx:2)"),
        (NEW, TaskState.STARTING, "STARTING (pulling image nginx:2)"),
    ],
    ids=["place", "pull", "start"],
)
def test_each_stage_has_its_limit_and_its_reason(task, state, stage) -> None:
    cell = begun(UpdateConfig(parallelism=1), task=task, state=state)
    (first,) = new_tasks(cell)
    assert after(cell, 599) == (UpdateState.UPDATING, "update in progress")
    service = cell.service()
    said = waits_of(cell.tables, service, now_ns=cell.now_ns)
    assert "slot 1: counts as failed in 1 s unless it makes progress" in said
    paused, message = after(cell, 1)
    assert paused is UpdateState.PAUSED
    assert message.startswith(f"update paused for lack of progress: task {first} still {stage}")
    assert message.endswith(" after 10m")


def test_progress_starts_the_time_anew_and_the_loop_is_woken_when_it_is_over() -> None:
    cell = begun(
        UpdateConfig(parallelism=1, progress_deadline_ns=30 * SECOND_NS), state=TaskState.PREPARING
    )
    (first,) = new_tasks(cell)
    cell.advance(29)
    cell.report(first, TaskState.STARTING, message="starting")
    woken = updating._settle(cell).wake_at_ns
    assert woken == cell.now_ns + 30 * SECOND_NS
    assert after(cell, 29.9)[0] is UpdateState.UPDATING
    assert after(cell, 0.1)[1].endswith(f"task {first} still STARTING (starting) after 30s")


def test_a_health_checks_start_period_is_no_lack_of_progress() -> None:
    checked = ContainerSpec(
        image="nginx:2", health_check=HealthCheck(("CMD", "x"), start_period_ns=60 * SECOND_NS)
    )
    config = UpdateConfig(parallelism=1, progress_deadline_ns=30 * SECOND_NS)
    cell = begun(config, task=TaskSpec(runtime=checked), state=TaskState.STARTING)
    assert after(cell, 89)[0] is UpdateState.UPDATING
    assert after(cell, 1)[0] is UpdateState.PAUSED


def test_zero_waits_for_ever() -> None:
    config = UpdateConfig(parallelism=1, progress_deadline_ns=0)
    cell = begun(config, state=TaskState.PREPARING)
    assert after(cell, 1e7)[0] is UpdateState.UPDATING


def test_the_failure_action_applies() -> None:
    config = UpdateConfig(parallelism=1, failure_action=FailureAction.ROLLBACK)
    cell = begun(config, state=TaskState.PREPARING)
    state, message = after(cell, 600)
    assert state is UpdateState.ROLLBACK_STARTED
    assert message.startswith("update rolled back for lack of progress: task ")
    updating._finish(cell)
    assert updating._state(cell)[0] is UpdateState.ROLLBACK_COMPLETED
    assert updating._images(cell) == ["nginx:1"] * 2


def test_continue_leaves_the_slot_behind_and_finishes() -> None:
    config = UpdateConfig(parallelism=1, failure_action=FailureAction.CONTINUE)
    cell = begun(config, state=TaskState.PREPARING)
    (first,) = new_tasks(cell)
    assert after(cell, 600)[0] is UpdateState.UPDATING
    (second,) = set(new_tasks(cell)) - {first}
    cell.report(second, TaskState.RUNNING)
    assert after(cell, 5)[0] is UpdateState.COMPLETED
    assert new_tasks(cell) == [first, second], "the first is left to come up when it can"


def test_a_rollback_that_makes_no_progress_is_paused() -> None:
    cell = begun(UpdateConfig(parallelism=1, failure_action=FailureAction.ROLLBACK))
    for node in list(cell.tables.nodes):
        cell.put(node.replaced(spec=node.spec.replaced(availability=NodeAvailability.PAUSE)))
    assert after(cell, 600)[0] is UpdateState.ROLLBACK_STARTED
    state, message = after(cell, 600)
    assert state is UpdateState.ROLLBACK_PAUSED
    assert message.startswith("rollback paused for lack of progress: task ")
