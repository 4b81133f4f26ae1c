"""What a service's mode may be combined with, what its counts are, and when a job begins again."""

from __future__ import annotations

import pytest

from manager.controlapi.services import (
    create_service,
    roll_back_service,
    status_of,
    update_service,
)
from manager.controlapi.validate import service_spec
from shoal.errors import InvalidArgument
from shoal.model.enums import PlacementStrategy, TaskState
from shoal.model.objects import Service, Task
from shoal.model.plan import Change
from shoal.model.specs import (
    ContainerSpec,
    GlobalJobMode,
    GlobalMode,
    ReplicatedJobMode,
    ReplicatedMode,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
)
from shoal.model.types import (
    Annotations,
    NetworkAttachmentConfig,
    Placement,
    PlacementPreference,
    UpdateConfig,
)
from tests.support.planning import SECOND_NS, Cell, a_task

JOB = ReplicatedJobMode(max_concurrent=2, total_completions=5)
RUNNING, COMPLETE, FAILED = TaskState.RUNNING, TaskState.COMPLETE, TaskState.FAILED
PACKED = TaskSpec(
    runtime=ContainerSpec(image="a"), placement=Placement(strategy=PlacementStrategy.BINPACK)
)
CHOOSY = TaskSpec(
    runtime=ContainerSpec(image="a"),
    placement=Placement(preferences=(PlacementPreference(avoid="node.role==manager"),)),
)
PLACE = TaskSpec(runtime=ContainerSpec(image="a"), placement=Placement(max_replicas=1))
FIXED = TaskSpec(
    runtime=ContainerSpec(image="a"),
    networks=(NetworkAttachmentConfig("net", addresses=("10.0.0.9",)),),
)


def _spec(mode: ServiceMode, **fields: object) -> ServiceSpec:
    spec = ServiceSpec(
        annotations=Annotations(name="web"),
        task=TaskSpec(runtime=ContainerSpec(image="a")),
        mode=mode,
    )
    return spec.replaced(**fields)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (_spec(GlobalMode(), task=PLACE), "replicas-max-per-node can only be used with"),
        (_spec(GlobalJobMode(), task=PLACE), "replicas-max-per-node can only be used with"),
        (_spec(GlobalMode(), task=PACKED), "placement strategy: can only be used with"),
        (_spec(GlobalJobMode(), task=PACKED), "placement strategy: can only be used with"),
        (_spec(GlobalMode(), task=CHOOSY), "placement preference: prefer and avoid can only be"),
        (_spec(JOB, update=UpdateConfig()), "configuration is not supported for jobs"),
        (_spec(GlobalJobMode(), rollback=UpdateConfig()), "is not supported for jobs"),
        (_spec(GlobalMode(), task=FIXED), r"addresses \(ip=\) can only be used with replicated"),
        (_spec(JOB, task=FIXED), r"addresses \(ip=\) can only be used with replicated"),
        (_spec(GlobalMode(), ttl_after_finish_ns=1), "ttl after finish: only jobs finish"),
        (_spec(JOB, ttl_after_finish_ns=-1), "ttl after finish: must be from 0s to 8760h"),
        (_spec(JOB, ttl_after_finish_ns=1 << 62), "ttl after finish: must be from 0s to 8760h"),
        (_spec(ReplicatedJobMode(1, 100_001)), "replicas: 100001 is more than 100000"),
        (_spec(ReplicatedJobMode(100_001, 1)), "max concurrent: 100001 is more than 100000"),
    ],
)
def test_what_a_mode_cannot_be_combined_with_is_refused(spec: ServiceSpec, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        service_spec(spec)


@pytest.mark.parametrize(
    "spec",
    [
        _spec(ReplicatedMode(3), task=PLACE),
        _spec(GlobalMode(), update=UpdateConfig(), rollback=UpdateConfig()),
        _spec(JOB, task=PLACE, ttl_after_finish_ns=0),
        _spec(GlobalJobMode(), ttl_after_finish_ns=3600 * SECOND_NS),
    ],
)
def test_what_goes_together_is_accepted(spec: ServiceSpec) -> None:
    service_spec(spec)


def test_each_change_of_a_job_begins_it_again() -> None:
    cell = Cell()
    cell.commit(create_service(cell.tables, _spec(JOB), service_id="s", now_ns=7))
    assert _job(cell) == (0, 7)
    labelled = _spec(JOB, annotations=Annotations(name="web", labels={"a": "b"}))
    cell.commit(update_service(cell.tables, "web", labelled, version=0, now_ns=8))
    assert _job(cell) == (1, 8)
    cell.commit(roll_back_service(cell.tables, "web", version=0, now_ns=9))
    assert _job(cell) == (2, 9)
    assert cell.service("s").update_status is None


def test_other_services_have_no_iterations() -> None:
    cell = Cell()
    changes: list[Change] = create_service(
        cell.tables, _spec(GlobalMode()), service_id="s", now_ns=7
    )
    cell.commit(changes)
    cell.commit(update_service(cell.tables, "web", _spec(GlobalMode()), version=0, now_ns=8))
    assert cell.service("s").job_status is None


def _job(cell: Cell) -> tuple[int, int]:
    status = cell.service("s").job_status
    assert status is not None
    return status.iteration, status.last_execution_at_ns


def _count(mode: ServiceMode, *tasks: Task) -> tuple[int, int, int]:
    service = Service(id="web", spec=_spec(mode))
    status = status_of(service, {task.id: task for task in tasks}, {"down"})
    return status.running_tasks, status.desired_tasks, status.completed_tasks


def _work(task_id: str, slot: int, state: TaskState, **fields: object) -> Task:
    fields = {"job_iteration": 0, "desired": COMPLETE} | fields
    return a_task(task_id, slot=slot, state=state, **fields)


def test_counts_of_a_replicated_job() -> None:
    tasks = [
        _work("a", 0, COMPLETE),
        _work("b", 1, COMPLETE),
        _work("c", 1, COMPLETE, desired=TaskState.SHUTDOWN),  # done on a node that was lost, too
        _work("d", 2, RUNNING),
        _work("e", 3, FAILED, desired=TaskState.SHUTDOWN),
        _work("f", 4, RUNNING, job_iteration=None),
        _work("g", 4, RUNNING, node_id="down"),
    ]
    assert _count(JOB, *tasks) == (1, 2, 2)
    assert _count(ReplicatedJobMode(total_completions=5)) == (0, 5, 0)


def test_counts_of_a_global_job() -> None:
    tasks = [
        _work("a", 0, COMPLETE, node_id="n1"),
        _work("b", 0, RUNNING, node_id="n2"),
        _work("c", 0, FAILED, node_id="n3", desired=TaskState.SHUTDOWN),
        _work("d", 0, TaskState.NEW, node_id="n3", desired=TaskState.READY),
    ]
    assert _count(GlobalJobMode(), *tasks) == (1, 3, 1)


def test_counts_of_a_global_service() -> None:
    tasks = [
        a_task("a", slot=0, node_id="n1"),
        a_task("b", slot=0, node_id="n2", state=TaskState.STARTING),
        a_task("c", slot=0, node_id="n3", desired=TaskState.SHUTDOWN),
    ]
    assert _count(GlobalMode(), *tasks) == (1, 2, 0)
