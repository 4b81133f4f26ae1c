"""All tasks of a node: assigned, taken away, and found again by a new process."""

from __future__ import annotations

import asyncio

import pytest

from shoal.errors import FailedPrecondition, Unavailable
from shoal.model.enums import TaskState as S
from shoal.model.types import PortConfig
from tests.support.fakes import FakeRuntime
from tests.unit.worker.agent.support import FACTS, FakeNode, a_task, task_id, until
from worker.agent import runner, tasks
from worker.agent.container import IMAGE_ID_LABEL, TASK_ID_LABEL, container_config
from worker.agent.tasks import adopt
from worker.runtime.api import ContainerConfig, ContainerStatus

NOW_NS = 5


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(runner, "RETRY_PAUSE_S", 0.002)
    monkeypatch.setattr(tasks, "DISPOSAL_PAUSE_S", 0.002)


@pytest.fixture
async def node(tmp_path):
    async with FakeNode(tmp_path) as node:
        yield node


def container(state, **fields):
    return ContainerStatus(id=task_id(), state=state, created_at_ns=1, **fields)


@pytest.mark.parametrize("state", [S.ASSIGNED, S.ACCEPTED, S.PREPARING])
def test_a_task_without_a_container_begins_again(state):
    task = a_task(state=state)
    assert adopt(task, None, NOW_NS) == task


@pytest.mark.parametrize(
    ("state", "lost"), [(S.READY, S.REJECTED), (S.STARTING, S.FAILED), (S.RUNNING, S.FAILED)]
)
def test_a_task_whose_container_is_gone_has_failed(state, lost):
    status = adopt(a_task(state=state, address="10.1.0.9"), None, NOW_NS).status
    assert status.state is lost
    assert status.error == "the container is gone: the node was restarted"
    assert status.address == "10.1.0.9"


@pytest.mark.parametrize("state", [S.STARTING, S.READY])
def test_a_running_container_makes_its_task_running(state):
    status = adopt(a_task(state=state), container("running", pid=7), NOW_NS).status
    assert (status.state, status.container.pid) == (S.RUNNING, 7)


@pytest.mark.parametrize(
    ("state", "adopted"), [(S.READY, S.STARTING), (S.STARTING, S.STARTING), (S.RUNNING, S.RUNNING)]
)
def test_whether_a_program_listens_is_asked_again_when_no_record_says_so(state, adopted):
    task = a_task(state=state, published=(PortConfig(target_port=80, published_port=8080),))
    assert adopt(task, container("running", pid=7), NOW_NS).status.state is adopted


@pytest.mark.parametrize(
    ("state", "found"),
    [
        (S.RUNNING, "running"),
        (S.RUNNING, "exited"),
        (S.STARTING, "exited"),
        (S.STARTING, "created"),
        (S.READY, "created"),
        (S.PREPARING, "created"),
        (S.FAILED, "exited"),
    ],
)
def test_what_the_record_and_the_container_agree_on_is_left_alone(state, found):
    task = a_task(state=state)
    assert adopt(task, container(found), NOW_NS) == task


@pytest.mark.parametrize("state", [S.ACCEPTED, S.PREPARING, S.READY])
def test_a_record_that_is_behind_an_ended_container_starts_nothing_anew(state):
    status = adopt(a_task(state=state), container("exited", exit_code=3), NOW_NS).status
    assert (status.state, status.container.exit_code) == (S.STARTING, 3)


def test_a_running_task_cannot_have_a_container_that_never_started():
    assert adopt(a_task(state=S.RUNNING), container("created"), NOW_NS).status.state is S.FAILED


async def restarted(tmp_path, *numbers, while_down=lambda runtime: None):
    """A node on the records and containers of one that ran these tasks."""
    async with FakeNode(tmp_path) as first:
        for number in numbers:
            first.tasks.assign(a_task(number))
        for number in numbers:
            await first.reach(S.RUNNING, number)
    while_down(first.runtime)
    return FakeNode(tmp_path, first.runtime)


async def test_a_restart_adopts_what_runs(tmp_path):
    second = await restarted(tmp_path, 1, 2)
    before = dict(second.runtime.containers)
    async with second:
        assert second.state(1) is second.state(2) is S.RUNNING
        assert {key: task.status.address for key, task in second.tasks.attached().items()} == {
            task_id(1): "10.1.0.2",
            task_id(2): "10.1.0.3",
        }
        await asyncio.sleep(0)
        assert second.runtime.containers == before
        second.runtime.exit(task_id(1), 0)
        await second.reach(S.COMPLETE, 1)
    assert second.runtime.board.count("start") == 2, "nothing was started anew"


@pytest.mark.parametrize(("code", "state"), [(0, S.COMPLETE), (9, S.FAILED)])
async def test_an_exit_while_the_agent_was_down_is_reported_truly(tmp_path, code, state):
    second = await restarted(tmp_path, 1, while_down=lambda runtime: runtime.exit(task_id(), code))
    async with second:
        assert (await second.reach(state)).container.exit_code == code


async def test_a_container_that_went_while_the_agent_was_down(tmp_path):
    second = await restarted(tmp_path, 1, while_down=lambda runtime: runtime.vanish(task_id()))
    async with second:
        assert "gone" in (await second.reach(S.FAILED)).error
        await until(lambda: second.networks.board.count("detach"))


async def test_a_stop_that_was_under_way_is_taken_up_again(tmp_path):
    async with FakeNode(tmp_path) as first:
        first.tasks.assign(a_task())
        await first.reach(S.RUNNING)
        first.runtime.board.gate("stop")
        first.want(S.SHUTDOWN)
        await until(lambda: first.runtime.board.count("stop"))
    runtime = FakeRuntime()
    runtime.containers = first.runtime.containers
    async with FakeNode(tmp_path, runtime) as second:
        assert (await second.reach(S.SHUTDOWN)).container.exit_code == 143


async def test_restoring_twice_changes_nothing(tmp_path):
    second = await restarted(tmp_path, 1)
    async with second:
        runner_before = second.tasks._runners[task_id()]
        await second.tasks.restore()
        assert second.tasks._runners[task_id()] is runner_before
        assert second.runtime.containers


async def test_containers_of_nobody_are_removed_if_they_are_tasks(tmp_path):
    runtime = FakeRuntime()
    labelled = container_config(
        a_task(1), FakeNode(tmp_path).images.resolve("web"), (), None, FACTS, volumes={}
    )
    await runtime.create(labelled)
    await runtime.create(ContainerConfig(id="standalone", layers=("/",), args=("sh",)))
    async with FakeNode(tmp_path, runtime):
        assert [*runtime.containers] == ["standalone"]


async def test_a_runtime_without_answer_makes_restoring_fail_not_forget(tmp_path):
    second = await restarted(tmp_path, 1)
    second.runtime.board.fail("list", Unavailable("restarting"))
    with pytest.raises(Unavailable):
        await second.tasks.restore()
    assert second.records.tasks()


async def test_a_task_the_managers_think_runs_but_nobody_here_knows_has_failed(node):
    """The record was lost: without this the managers would wait for ever."""
    node.tasks.assign(a_task(state=S.RUNNING))
    assert "gone" in (await node.reach(S.FAILED)).error
    assert node.states() == ["FAILED"]


async def test_history_of_the_managers_is_not_taken_up(node):
    node.tasks.assign(a_task(state=S.FAILED))
    assert node.tasks.tasks() == []


async def test_sending_a_task_again_writes_nothing(node):
    node.tasks.assign(a_task())
    await node.reach(S.RUNNING)
    await node.tasks._writer.flush()
    path = node.directory / "tasks" / f"{task_id()}.task"
    written = path.stat().st_size
    node.tasks.assign(a_task())
    await node.tasks._writer.flush()
    assert path.stat().st_size == written
    node.want(S.SHUTDOWN)
    await node.tasks._writer.flush()
    assert path.stat().st_size != written


async def test_unassign_stops_gracefully_and_removes_every_trace(node):
    node.tasks.assign(a_task(stop_grace_period_ns=3_000_000_000))
    await node.reach(S.RUNNING)
    node.tasks.unassign(task_id())
    await until(lambda: not list(node.directory.glob("tasks/*")))
    assert ("grace 3", task_id()) in node.runtime.board.calls
    assert not node.runtime.containers
    assert not node.networks.attached
    await until(lambda: not node.tasks._disposals)


async def test_unassign_is_tried_until_the_runtime_answers(node):
    node.tasks.assign(a_task())
    await node.reach(S.RUNNING)
    node.runtime.board.fail("remove", Unavailable("restarting"), times=3)
    node.tasks.unassign(task_id())
    await until(lambda: not node.runtime.containers)


async def test_unassign_gives_up_what_can_never_work_and_says_so(node):
    node.tasks.assign(a_task())
    await node.reach(S.RUNNING)
    node.runtime.board.fail("remove", FailedPrecondition("busy"))
    node.tasks.unassign(task_id())
    await until(lambda: not node.tasks._disposals)
    await node.tasks._writer.flush()
    assert node.records.tasks() == []


async def test_a_task_that_comes_back_while_it_is_removed_starts_afterwards(node):
    node.tasks.assign(a_task())
    await node.reach(S.RUNNING)
    gate = node.runtime.board.gate("stop")
    node.tasks.unassign(task_id())
    await until(lambda: node.runtime.board.count("stop"))
    node.tasks.assign(a_task())
    await asyncio.sleep(0)
    assert node.state() is S.ASSIGNED
    gate.set()
    await node.reach(S.RUNNING)
    await node.tasks._writer.flush()
    assert node.records.tasks()
    assert node.runtime.containers[task_id()].state == "running"


async def test_keep_only_removes_what_the_managers_do_not_know(node):
    for number in (1, 2, 3):
        node.tasks.assign(a_task(number))
        await node.reach(S.RUNNING, number)
    node.tasks.keep_only({task_id(2)})
    await until(lambda: [*node.runtime.containers] == [task_id(2)])


async def test_leaving_the_cluster_bounds_the_grace(node):
    node.tasks.assign(a_task(stop_grace_period_ns=3_600_000_000_000))
    await node.reach(S.RUNNING)
    await node.tasks.remove_all()
    assert ("grace 10", task_id()) in node.runtime.board.calls
    assert not node.runtime.containers


async def test_stopping_the_agent_waits_for_nothing_and_stops_nothing(node):
    node.tasks.assign(a_task(1))
    node.tasks.assign(a_task(2))
    await node.reach(S.RUNNING, 1)
    await node.reach(S.RUNNING, 2)
    node.runtime.board.gate("stop")  # never opened
    node.tasks.unassign(task_id(2))
    await until(lambda: node.runtime.board.count("stop"))
    await node.tasks.stop()
    assert {status.state for status in node.runtime.containers.values()} == {"running"}
    assert len(node.records.tasks()) == 2, "the removal is taken up again after the restart"


async def test_a_full_disk_does_not_hide_what_happens(node):
    def full(task):
        raise OSError(28, "No space left on device")

    node.records.save_task = full
    node.tasks.assign(a_task(1))
    await node.reach(S.RUNNING, 1)
    assert node.states(1)[-1] == "RUNNING"


async def test_images_in_use_follow_the_containers_not_the_names(node):
    node.images.ids["web"] = "sha256:old"
    gate = node.networks.board.gate("attach")
    node.tasks.assign(a_task())
    await until(lambda: node.state() is S.PREPARING)
    assert node.tasks.images_needed() == {task_id(): "sha256:old"}
    gate.set()
    await node.reach(S.RUNNING)
    node.images.ids["web"] = "sha256:new"  # the name was given to another image
    labels = node.runtime.containers[task_id()].labels
    assert labels[IMAGE_ID_LABEL] == "sha256:old"
    assert labels[TASK_ID_LABEL] == task_id()
    assert node.tasks.images_needed() == {}


async def test_the_record_is_on_disk_before_the_container_is_made(node):
    """What is unknown after a crash is removed: a container must never be ahead of its record."""
    gate = node.runtime.board.gate("create")
    node.tasks.assign(a_task())
    await until(lambda: node.runtime.board.count("create"))
    (record,) = node.records.tasks()
    assert (record.status.state, record.status.address) == (S.PREPARING, "10.1.0.2")
    gate.set()
    await node.reach(S.RUNNING)


async def test_states_in_quick_succession_are_written_once(node):
    writes = []
    save = node.records.save_task
    node.records.save_task = lambda task: writes.append(task.id) or save(task)
    for _ in range(3):
        for number in range(100):
            node.tasks._writer.save(a_task(number))
    node.tasks._writer.forget(task_id(7))
    await node.tasks._writer.flush()
    assert len(writes) == 99
    assert len(node.records.tasks()) == 99
    await node.tasks._writer.flush()


async def test_nothing_grows_with_the_tasks_that_came_and_went(node):
    for number in range(40):
        node.tasks.assign(a_task(number))
        await node.reach(S.RUNNING, number)
        if number % 2:
            node.runtime.exit(task_id(number), 1)
            await node.reach(S.FAILED, number)
        node.tasks.unassign(task_id(number))
    await until(lambda: not node.tasks._disposals)
    await node.tasks._writer.flush()
    assert not node.tasks._runners
    assert not node.tasks._running
    assert not node.tasks._writer._pending
    assert not node.reporter._pending
    assert not node.runtime.containers
    assert not node.networks.attached
    assert not list((node.directory / "tasks").iterdir())
