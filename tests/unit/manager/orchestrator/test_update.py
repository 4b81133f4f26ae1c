from __future__ import annotations

import pytest

from manager.controlapi.services import pause_update
from manager.orchestrator.update.dirty import is_dirty
from manager.reconcile.dirty import EVERYTHING, Dirty
from manager.reconcile.plan import Round, plan_round
from shoal.model.defaults import is_wanted
from shoal.model.enums import FailureAction, TaskState, UpdateOrder, UpdateState
from shoal.model.objects import Task
from shoal.model.specs import ContainerSpec, PullOptions, TaskSpec
from shoal.model.types import (
    ContainerStatus,
    Endpoint,
    EndpointSpec,
    Placement,
    PortConfig,
    ResourceRequirements,
    Resources,
    UpdateConfig,
    UpdateStatus,
    Version,
)
from tests.support.planning import SECOND_NS, Cell, a_node, a_port, a_service, a_task

NEW = TaskSpec(runtime=ContainerSpec(image="nginx:2"))


def _settle(cell: Cell) -> Round:
    """Until there is nothing more to do now; the result is the last, empty round."""
    plans = cell.settle(
        lambda tables: plan_round(tables, EVERYTHING, now_ns=cell.now_ns, ids=cell.ids)
    )
    last = plans[-1]
    assert isinstance(last, Round)
    return last


def _running(
    config: UpdateConfig,
    *,
    replicas: int = 4,
    nodes: int = 2,
    ports: tuple[PortConfig, ...] = (),
    task: TaskSpec | None = None,
) -> Cell:
    cell = Cell(a_node(f"n{number}") for number in range(nodes))
    cell.put(
        a_service(replicas=replicas, update=config, rollback=UpdateConfig(), ports=ports, task=task)
    )
    _settle(cell)
    _work(cell)
    return cell


def _update(cell: Cell, task: TaskSpec = NEW, **fields: object) -> None:
    """As the control API does it: the old spec is kept, the status cleared."""
    service = cell.service()
    cell.put(
        service.replaced(
            spec=service.spec.replaced(task=task, **fields),
            previous_spec=service.spec,
            update_status=None,
        )
    )
    _settle(cell)


def _work(cell: Cell, *, broken: str = "") -> None:
    """Every agent brings every task where it is wanted, but those of the broken image."""
    for task in cell.tasks():
        if not task.node_id or task.status.state > TaskState.RUNNING:
            continue
        if not is_wanted(task):
            cell.report(task.id, TaskState.SHUTDOWN)
        elif task.desired_state is TaskState.RUNNING:
            if task.container.image == broken:
                container = ContainerStatus(started_at_ns=cell.now_ns, finished_at_ns=cell.now_ns)
                cell.report(task.id, TaskState.FAILED, container=container)
            elif task.status.state is not TaskState.RUNNING:
                container = ContainerStatus(started_at_ns=cell.now_ns)
                cell.report(task.id, TaskState.RUNNING, container=container)
    _settle(cell)


def _images(cell: Cell) -> list[str]:
    return sorted(task.container.image for task in cell.tasks() if is_wanted(task))


def _state(cell: Cell) -> tuple[UpdateState, str]:
    status = cell.service().update_status
    assert status is not None
    return status.state, status.message


def _finish(cell: Cell, *, broken: str = "", rounds: int = 60) -> None:
    for _ in range(rounds):
        _work(cell, broken=broken)
        cell.advance(1)
        _settle(cell)


def test_an_update_replaces_as_many_slots_at_a_time_as_parallelism_says() -> None:
    cell = _running(UpdateConfig(parallelism=2))
    _update(cell)

    assert _state(cell) == (UpdateState.UPDATING, "update in progress")
    assert _images(cell) == ["nginx:1", "nginx:1", "nginx:2", "nginx:2"]
    _work(cell)  # the old ones stop, so the new ones may start
    _work(cell)  # they run, and the next two begin
    assert _images(cell) == ["nginx:2"] * 4


def test_parallelism_zero_updates_everything_at_once() -> None:
    cell = _running(UpdateConfig(parallelism=0))
    _update(cell)

    assert _images(cell) == ["nginx:2"] * 4


def test_stop_first_prepares_the_new_task_while_the_old_one_stops() -> None:
    cell = _running(UpdateConfig(parallelism=1), replicas=1)
    _update(cell)

    old, new = cell.tasks()
    assert (old.desired_state, new.desired_state) == (TaskState.SHUTDOWN, TaskState.READY)
    assert new.status.state is TaskState.ASSIGNED
    cell.report(old.id, TaskState.SHUTDOWN)
    _settle(cell)
    assert cell.tasks()[-1].desired_state is TaskState.RUNNING


def test_start_first_keeps_the_old_task_until_the_new_one_runs() -> None:
    cell = _running(UpdateConfig(parallelism=1, order=UpdateOrder.START_FIRST), replicas=1)
    _update(cell)
    assert [task.desired_state for task in cell.tasks()] == [TaskState.RUNNING] * 2
    _work(cell)

    assert [task.desired_state for task in cell.tasks()] == [
        TaskState.SHUTDOWN,
        TaskState.RUNNING,
    ]


def test_start_first_keeps_the_old_task_when_the_new_one_fails() -> None:
    config = UpdateConfig(parallelism=1, order=UpdateOrder.START_FIRST)
    cell = _running(config, replicas=1)
    _update(cell)
    _work(cell, broken="nginx:2")

    assert cell.tasks()[0].desired_state is TaskState.RUNNING
    assert _state(cell)[0] is UpdateState.PAUSED


@pytest.mark.parametrize(
    ("ports", "task"),
    [
        ((), TaskSpec(runtime=ContainerSpec(image="nginx:1"), placement=Placement(max_replicas=1))),
        ((a_port(80, 8080, host=True),), TaskSpec(runtime=ContainerSpec(image="nginx:1"))),
    ],
    ids=["max replicas (moby 40797)", "host port (moby 36934)"],
)
def test_start_first_does_not_hang_where_every_node_is_taken(
    ports: tuple[PortConfig, ...], task: TaskSpec
) -> None:
    config = UpdateConfig(parallelism=1, order=UpdateOrder.START_FIRST)
    cell = _running(config, replicas=2, ports=ports, task=task)
    _update(cell, task.replaced(runtime=ContainerSpec(image="nginx:2")))
    _finish(cell)

    assert _images(cell) == ["nginx:2"] * 2
    assert _state(cell)[0] is UpdateState.COMPLETED


def test_start_first_goes_to_another_node_where_one_is_free() -> None:
    task = TaskSpec(runtime=ContainerSpec(image="nginx:1"))
    config = UpdateConfig(parallelism=1, order=UpdateOrder.START_FIRST)
    cell = _running(config, replicas=1, ports=(a_port(80, 8080, host=True),), task=task)
    (old,) = cell.tasks()
    _update(cell)
    new = cell.tasks()[-1]
    assert is_wanted(cell.tasks()[0])
    assert new.status.state is TaskState.ASSIGNED
    assert new.node_id != old.node_id
    _finish(cell)
    assert _images(cell) == ["nginx:2"]


def _reserving(image: str, gigabytes: int) -> TaskSpec:
    wish = Resources(memory_bytes=gigabytes << 30)
    return TaskSpec(
        runtime=ContainerSpec(image=image), resources=ResourceRequirements(reservations=wish)
    )


def test_start_first_gives_way_in_the_slots_that_need_it_and_says_so() -> None:
    config = UpdateConfig(parallelism=1, order=UpdateOrder.START_FIRST)
    cell = _running(config, replicas=2, task=_reserving("nginx:1", 6))
    _update(cell, _reserving("nginx:2", 6))
    gave_way = [task for task in cell.tasks() if not is_wanted(task)]
    assert [task.slot for task in gave_way] == [1], "and no more than parallelism allows"
    (new,) = (task for task in cell.tasks() if task.container.image == "nginx:2")
    assert new.status.state is TaskState.PENDING, "the old one has its room until it has stopped"
    assert _state(cell) == (
        UpdateState.UPDATING,
        "update in progress; stop-first where no node takes both tasks of a slot",
    )
    _finish(cell)
    assert _images(cell) == ["nginx:2"] * 2
    assert _state(cell) == (UpdateState.COMPLETED, "update completed")


def test_start_first_keeps_the_old_task_where_giving_way_would_not_help() -> None:
    config = UpdateConfig(parallelism=1, order=UpdateOrder.START_FIRST)
    cell = _running(config, replicas=1)
    _update(cell, _reserving("nginx:2", 100))
    assert is_wanted(cell.tasks()[0])
    cell.advance(600)
    _settle(cell)
    assert _state(cell)[0] is UpdateState.PAUSED
    assert is_wanted(cell.tasks()[0]), "it goes on to serve"


def test_a_paused_update_begins_no_slot_and_a_resumed_one_goes_on() -> None:
    cell = _running(UpdateConfig(parallelism=1), replicas=3)
    _update(cell)
    cell.commit(pause_update(cell.tables, "web", version=0, now_ns=cell.now_ns, resume=False))
    for _ in range(3):
        cell.advance(10)
        _work(cell)
    assert _images(cell) == ["nginx:1", "nginx:1", "nginx:2"], "what was begun is finished"
    assert _state(cell) == (UpdateState.PAUSED, "update paused by request")
    cell.commit(pause_update(cell.tables, "web", version=0, now_ns=cell.now_ns, resume=True))
    _finish(cell)
    assert _images(cell) == ["nginx:2"] * 3
    assert _state(cell)[0] is UpdateState.COMPLETED


def test_a_resumed_update_forgives_what_failed_before() -> None:
    cell = _running(UpdateConfig(parallelism=1), replicas=2)
    _update(cell)
    _finish(cell, broken="nginx:2", rounds=3)
    assert _state(cell)[0] is UpdateState.PAUSED
    cell.advance(1)
    cell.commit(pause_update(cell.tables, "web", version=0, now_ns=cell.now_ns, resume=True))
    _finish(cell)
    assert _state(cell)[0] is UpdateState.COMPLETED
    assert _images(cell) == ["nginx:2"] * 2


def test_force_replaces_every_task_without_a_change() -> None:
    cell = _running(UpdateConfig(parallelism=1), replicas=2)
    old = {task.id for task in cell.tasks()}
    _update(cell, cell.service().spec.task.replaced(force_update=1))
    _finish(cell)
    assert not old & {task.id for task in cell.tasks() if is_wanted(task)}
    assert _images(cell) == ["nginx:1"] * 2


def test_the_delay_passes_between_slots() -> None:
    cell = _running(UpdateConfig(parallelism=1, delay_ns=10 * SECOND_NS), replicas=2)
    _update(cell)
    _work(cell)
    _work(cell)
    cell.advance(9)
    assert _settle(cell).wake_at_ns == cell.now_ns + SECOND_NS
    assert _images(cell) == ["nginx:1", "nginx:2"]
    cell.advance(1)
    _settle(cell)

    assert _images(cell) == ["nginx:2", "nginx:2"]


def test_an_update_is_completed_one_monitor_period_after_its_last_slot() -> None:
    cell = _running(UpdateConfig(parallelism=0, monitor_ns=7 * SECOND_NS))
    _update(cell)
    _work(cell)
    _work(cell)
    cell.advance(6)
    assert _settle(cell).wake_at_ns == cell.now_ns + SECOND_NS
    assert _state(cell)[0] is UpdateState.UPDATING
    cell.advance(1)
    _settle(cell)

    assert _state(cell) == (UpdateState.COMPLETED, "update completed")


def test_a_failure_pauses_the_update_and_names_the_task() -> None:
    cell = _running(UpdateConfig(parallelism=1))
    _update(cell)
    _work(cell)
    _work(cell, broken="nginx:2")

    failed = next(task for task in cell.tasks() if task.status.state is TaskState.FAILED)
    assert _state(cell) == (
        UpdateState.PAUSED,
        f"update paused due to failure or early termination of task {failed.id}",
    )
    _finish(cell, broken="nginx:2")
    assert _images(cell).count("nginx:1") == 3, "a paused update touches no other slot"


def test_an_end_after_the_monitor_period_is_no_failure_of_the_update() -> None:
    cell = _running(UpdateConfig(parallelism=1, delay_ns=60 * SECOND_NS, monitor_ns=SECOND_NS))
    _update(cell)
    _work(cell)
    _work(cell)
    new = next(task for task in cell.tasks() if task.container.image == "nginx:2")
    cell.advance(62)  # with a delay beyond the monitor, the monitor is the delay and a second
    container = new.status.container or ContainerStatus()
    cell.report(new.id, TaskState.FAILED, container=container.replaced(finished_at_ns=cell.now_ns))
    _settle(cell)

    assert _state(cell)[0] is UpdateState.UPDATING


def test_the_ratio_must_be_exceeded() -> None:
    cell = _running(UpdateConfig(parallelism=1, max_failure_ratio=0.25))
    _update(cell)
    _work(cell)
    _work(cell, broken="nginx:2")
    assert _state(cell)[0] is UpdateState.UPDATING, "one of four is not more than a quarter"
    _finish(cell, broken="nginx:2")

    assert _state(cell)[0] is UpdateState.PAUSED


def test_continue_goes_on_to_the_end() -> None:
    cell = _running(UpdateConfig(parallelism=1, failure_action=FailureAction.CONTINUE))
    _update(cell)
    _finish(cell, broken="nginx:2")

    assert _state(cell)[0] is UpdateState.COMPLETED
    assert _images(cell) == ["nginx:2"] * 4


def test_rollback_returns_every_slot_to_the_previous_spec() -> None:
    cell = _running(UpdateConfig(parallelism=1, failure_action=FailureAction.ROLLBACK))
    _update(cell)
    _work(cell)
    _work(cell, broken="nginx:2")
    state, message = _state(cell)
    assert state is UpdateState.ROLLBACK_STARTED
    assert message.startswith("update rolled back due to failure or early termination of task ")
    _finish(cell, broken="nginx:2")

    assert _state(cell) == (UpdateState.ROLLBACK_COMPLETED, "rollback completed")
    assert _images(cell) == ["nginx:1"] * 4
    assert cell.service().previous_spec is None


def test_a_rollback_is_never_rolled_back() -> None:
    cell = _running(UpdateConfig(parallelism=1, failure_action=FailureAction.ROLLBACK))
    _update(cell)
    _work(cell)
    _work(cell, broken="nginx:2")
    _finish(cell, broken="nginx:1")

    state, message = _state(cell)
    assert state is UpdateState.ROLLBACK_PAUSED
    assert message.startswith("rollback paused due to failure or early termination of task ")


def test_without_a_previous_spec_a_rollback_pauses() -> None:
    cell = _running(UpdateConfig(parallelism=1, failure_action=FailureAction.ROLLBACK))
    _update(cell)
    cell.put(cell.service().replaced(previous_spec=None))
    _work(cell)
    _work(cell, broken="nginx:2")

    assert _state(cell)[0] is UpdateState.PAUSED
    assert "no previous spec" in _state(cell)[1]


def test_an_update_in_the_middle_of_another_goes_on_to_the_newest_spec() -> None:
    cell = _running(UpdateConfig(parallelism=1))
    _update(cell)
    _work(cell)
    _update(cell, TaskSpec(runtime=ContainerSpec(image="nginx:3")))
    _finish(cell)

    assert _images(cell) == ["nginx:3"] * 4


def test_a_change_of_ports_alone_is_rolled_out() -> None:
    cell = _running(UpdateConfig(parallelism=1), ports=(a_port(80, 8080),))
    _update(cell, cell.service().spec.task, endpoint=EndpointSpec(ports=(a_port(80, 9090),)))
    _finish(cell)

    wanted = [task for task in cell.tasks() if is_wanted(task)]
    assert [task.endpoint.ports[0].published_port for task in wanted if task.endpoint] == [9090] * 4
    assert _state(cell)[0] is UpdateState.COMPLETED


TAKEN = "port 8080/tcp is already in use by service other: publish another one, or remove it there"


def _take_port(cell: Cell) -> None:
    """Let another service have the port that `web` gave up."""
    cell.put(a_service("other", replicas=0, ports=(a_port(80, 8080),)))
    _settle(cell)
    assert cell.service("other").endpoint is not None


def _to_dynamic_port(action: FailureAction) -> Cell:
    """`web` moves from port 8080 to any, with an image that is broken; `other` takes 8080."""
    cell = _running(
        UpdateConfig(parallelism=1, failure_action=action), ports=(a_port(80, 8080),), replicas=2
    )
    _update(cell, endpoint=EndpointSpec(ports=(a_port(80),)))
    _take_port(cell)
    return cell


def test_a_rollback_to_a_port_that_was_taken_waits_and_says_so() -> None:
    cell = _to_dynamic_port(FailureAction.ROLLBACK)
    _finish(cell, broken="nginx:2")

    state, message = _state(cell)
    assert state is UpdateState.ROLLBACK_STARTED
    assert message.startswith("update rolled back due to failure or early termination of task ")
    assert message.endswith(f"; waiting: {TAKEN}")
    new, kept = (task for task in cell.tasks() if is_wanted(task))
    # The slot that the update had not come to goes on with its task, as it was.
    assert (kept.slot, kept.status.state, kept.container.image) == (2, TaskState.RUNNING, "nginx:1")
    assert (new.status.state, new.status.error) == (TaskState.NEW, TAKEN)


def test_a_rollback_goes_on_when_its_port_is_free() -> None:
    cell = _to_dynamic_port(FailureAction.ROLLBACK)
    _finish(cell, broken="nginx:2")
    cell.remove(cell.service("other"))
    last = plan_round(
        cell.tables, Dirty(services=frozenset({"other"})), now_ns=cell.now_ns, ids=cell.ids
    )
    assert "web" in {change.object.id for change in last.changes}  # nobody but "other" changed
    _finish(cell)

    assert _state(cell) == (UpdateState.ROLLBACK_COMPLETED, "rollback completed")
    wanted = [task for task in cell.tasks() if is_wanted(task)]
    assert [task.status.state for task in wanted] == [TaskState.RUNNING] * 2
    assert [task.endpoint.ports[0].published_port for task in wanted if task.endpoint] == [8080] * 2


def test_an_update_to_a_port_that_was_taken_meanwhile_touches_no_task() -> None:
    cell = _running(UpdateConfig(parallelism=1))
    _take_port(cell)
    before = cell.tasks()
    _update(cell, endpoint=EndpointSpec(ports=(a_port(80, 8080),)))
    _finish(cell)

    assert _state(cell) == (UpdateState.UPDATING, f"update in progress; waiting: {TAKEN}")
    assert cell.tasks() == before
    cell.remove(cell.service("other"))
    _finish(cell)
    assert _state(cell) == (UpdateState.COMPLETED, "update completed")


def test_a_rollback_ends_where_the_task_it_made_was_let_go_for_one_that_runs() -> None:
    # The old task was never stopped: what it was to be replaced by came to nothing.
    ports = EndpointSpec(ports=(a_port(80, 8080),))
    cell = _running(UpdateConfig(), replicas=1)
    (old,) = cell.tasks()
    now_ns = cell.now_ns + SECOND_NS
    failed = a_task("x1", state=TaskState.REJECTED, desired=TaskState.SHUTDOWN,
                    created_at_ns=now_ns, endpoint=Endpoint(spec=ports))  # fmt: skip
    made = a_task("x2", state=TaskState.SHUTDOWN, desired=TaskState.SHUTDOWN,
                  created_at_ns=now_ns + 1, replaces_task_id="x1")  # fmt: skip
    version = cell.service().spec_version
    cell.put(failed.replaced(spec_version=version), made.replaced(spec_version=version))
    status = UpdateStatus(state=UpdateState.ROLLBACK_STARTED, started_at_ns=now_ns)
    cell.put(cell.service().replaced(update_status=status))
    _finish(cell)

    assert _state(cell) == (UpdateState.ROLLBACK_COMPLETED, "rollback completed")
    assert [task.id for task in cell.tasks() if is_wanted(task)] == [old.id]


def test_scaling_alone_is_no_update() -> None:
    cell = _running(UpdateConfig(parallelism=1))
    _update(cell, cell.service().spec.task)

    assert cell.service().update_status is None


def _dirty(change: TaskSpec, task: Task, *labels: str) -> bool:
    node = a_node("n1", labels=dict.fromkeys(labels, "yes"))
    cell = Cell([node, a_service(task=change)])
    return is_dirty(cell.tables, cell.service(), task.replaced(spec_version=Version(index=0)))


def test_what_makes_a_task_out_of_date() -> None:
    task = a_task("t0")
    spec = task.spec
    placed = spec.replaced(placement=Placement(constraints=("node.labels.ssd == yes",)))
    pulled = spec.replaced(runtime=task.container.replaced(pull_options=PullOptions("secret")))

    assert not _dirty(spec, task)
    assert _dirty(NEW, task)
    assert _dirty(spec.replaced(force_update=1), task)
    assert _dirty(placed, task)
    assert not _dirty(placed, task, "ssd")
    assert not _dirty(pulled, task)
    assert _dirty(pulled, a_task("t0", state=TaskState.PREPARING))
