"""Delays that grow: read from the last task alone, so neither leaders nor the reaper matter."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from manager.orchestrator.reaper import plan as reaper
from manager.orchestrator.restart.plan import plan
from shoal.model.enums import NodeState, TaskState
from shoal.model.objects import Task
from shoal.model.specs import ContainerSpec, TaskSpec
from shoal.model.types import ContainerStatus, RestartPolicy
from tests.support.planning import SECOND_NS, Cell, a_node, a_service, a_task


def a_cell(**policy: object) -> Cell:
    spec = TaskSpec(
        runtime=ContainerSpec(image="nginx:1"),
        restart=RestartPolicy(backoff_factor=2.0).replaced(**policy),
    )
    cell = Cell([a_service(replicas=1, task=spec), a_node("n1"), a_node("n2")])
    version = cell.service().spec_version.index
    cell.put(a_task("t0", spec=spec, version=version, created_at_ns=cell.now_ns))
    return cell


def settle(cell: Cell) -> None:
    cell.settle(lambda view: plan(view, ["web"], now_ns=cell.now_ns, ids=cell.ids))
    cell.settle(lambda view: reaper.plan(view, ["web"], now_ns=cell.now_ns, ids=cell.ids))


def newest(cell: Cell) -> Task:
    return max(cell.tasks(), key=lambda task: (task.meta.created_at_ns, task.id))


def fail(cell: Cell, *, after_s: float = 0.1) -> float:
    """The newest task runs, and fails: seconds until what follows it may start. It does."""
    begun_ns = cell.now_ns
    cell.advance(after_s)
    container = ContainerStatus(started_at_ns=begun_ns, finished_at_ns=cell.now_ns)
    cell.report(newest(cell).id, TaskState.FAILED, container=container)
    return start_next(cell)


def start_next(cell: Cell) -> float:
    settle(cell)
    delay_ns = newest(cell).start_after_ns - cell.now_ns
    cell.advance(delay_ns / SECOND_NS)
    settle(cell)
    if newest(cell).status.state is TaskState.NEW:
        task = newest(cell)
        cell.put(task.replaced(node_id="n1", status=task.status.replaced(state=TaskState.RUNNING)))
    return delay_ns / SECOND_NS


def test_each_delay_is_a_multiple_of_the_one_before_up_to_the_longest() -> None:
    cell = a_cell(backoff_max_ns=60 * SECOND_NS)
    assert [fail(cell) for _ in range(7)] == [5, 10, 20, 40, 60, 60, 60]
    assert len(cell.tasks()) <= 7, "the reaper keeps five that ended, and that is no matter"


def test_without_a_factor_all_are_equal() -> None:
    cell = a_cell(backoff_factor=0.0)
    assert [fail(cell) for _ in range(3)] == [5, 5, 5]
    assert newest(cell).restart_delay_ns == 0


def test_a_task_that_ran_for_longer_than_the_longest_delay_starts_over() -> None:
    cell = a_cell(backoff_max_ns=60 * SECOND_NS)
    assert [fail(cell), fail(cell), fail(cell, after_s=60)] == [5, 10, 20]
    assert fail(cell, after_s=61) == 5


def test_a_task_that_is_moved_takes_its_delay_along_but_does_not_wait_for_it() -> None:
    cell = a_cell()
    assert [fail(cell), fail(cell)] == [5, 10]
    node = cell.tables.nodes.get("n1")
    assert node is not None
    cell.put(node.replaced(status=node.status.replaced(state=NodeState.DOWN)))
    assert start_next(cell) == 0
    assert fail(cell) == 20


def test_another_spec_begins_anew() -> None:
    cell = a_cell()
    assert [fail(cell), fail(cell)] == [5, 10]
    service = cell.service()
    changed = service.spec.task.replaced(force_update=1)
    cell.put(service.replaced(spec=service.spec.replaced(task=changed)))
    fail(cell)
    assert newest(cell).restart_delay_ns == 0
    assert fail(cell) == 5


@settings(deadline=None)
@given(
    factor=st.floats(1.01, 10),
    delay_s=st.integers(1, 100),
    longest_s=st.integers(100, 10_000),
    failures=st.integers(1, 12),
)
def test_delays_rise_within_their_bounds(factor, delay_s, longest_s, failures) -> None:
    cell = a_cell(
        backoff_factor=factor, delay_ns=delay_s * SECOND_NS, backoff_max_ns=longest_s * SECOND_NS
    )
    delays = [fail(cell) for _ in range(failures)]
    assert delays[0] == delay_s
    assert delays == sorted(delays)
    assert delays[-1] <= longest_s
    for before, after in pairwise(delays):
        assert after == longest_s or abs(after - before * factor) < 1e-3
