"""One task up its ladder, over a runtime and a network that can be blocked and made to fail."""

from __future__ import annotations

import asyncio

import pytest

from shoal.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from shoal.model.enums import TaskState as S
from shoal.model.specs import PullOptions
from shoal.model.types import PortConfig
from tests.unit.worker.agent.support import FakeNode, a_task, task_id, until
from worker.agent import runner
from worker.runtime.api import ContainerConfig

LADDER = ["ACCEPTED", "PREPARING", "READY", "STARTING", "RUNNING"]


@pytest.fixture
async def node(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "RETRY_PAUSE_S", 0.002)
    async with FakeNode(tmp_path) as node:
        yield node


async def test_climbs_the_ladder_in_order(node):
    node.tasks.assign(a_task())
    status = await node.reach(S.RUNNING)
    assert node.states() == LADDER
    assert status.address == "10.1.0.2"
    assert (status.message, status.error) == ("started", "")
    assert status.container.pid == 4_711
    assert status.container.started_at_ns
    assert [call[0] for call in node.runtime.board.calls if call[0] != "list"] == [
        "create", "start",
    ]  # fmt: skip


async def test_waits_at_ready_until_more_is_wanted(node):
    node.tasks.assign(a_task(desired=S.READY))
    await node.reach(S.READY)
    assert node.runtime.board.count("start") == 0
    node.want(S.RUNNING)
    await node.reach(S.RUNNING)


async def test_a_wish_never_goes_back(node):
    node.tasks.assign(a_task())
    await node.reach(S.RUNNING)
    node.want(S.SHUTDOWN)
    node.want(S.RUNNING)  # sent by a manager that is behind
    await node.reach(S.SHUTDOWN)


@pytest.mark.parametrize(
    ("exit_", "state", "error"),
    [
        ({"code": 0}, S.COMPLETE, ""),
        ({"code": 3}, S.FAILED, "task: non-zero exit (3)"),
        ({"code": 137, "oom": True}, S.FAILED, "task: out of memory (exit 137)"),
        ({"code": 127, "error": "exec: no such file"}, S.FAILED, "exec: no such file"),
    ],
)
async def test_an_exit_is_reported_as_it_was(node, exit_, state, error):
    node.tasks.assign(a_task())
    await node.reach(S.RUNNING)
    node.runtime.exit(task_id(), **exit_)
    status = await node.reach(state)
    assert status.error == error
    assert status.container.exit_code == exit_["code"]
    assert status.container.oom_killed == exit_.get("oom", False)
    await until(lambda: task_id() not in node.networks.attached)
    assert task_id() in node.runtime.containers, "its files hold the logs"


async def test_an_exit_seen_before_the_answer_to_start_is_not_lost(node):
    """The exit comes over another socket than the answer, and may win."""
    node.runtime.exit_at_once[task_id()] = 5
    answered = node.runtime.start

    async def slow_answer(container):
        status = await answered(container)
        assert status.state == "running"
        for _ in range(20):
            await asyncio.sleep(0)  # the event is seen meanwhile
        return status

    node.runtime.start = slow_answer
    node.tasks.assign(a_task())
    status = await node.reach(S.FAILED)
    assert status.container.exit_code == 5


async def test_old_events_do_not_hide_new_states(node):
    node.tasks.assign(a_task())
    await node.reach(S.RUNNING)
    running = node.runtime.containers[task_id()]
    node.runtime.hold_events = True
    node.runtime.exit(task_id(), 4)
    node.runtime.publish_all()  # a reconnect is all it takes
    await node.reach(S.FAILED)
    node.runtime.containers[task_id()] = running
    node.runtime.publish_all()
    assert node.state() is S.FAILED


async def test_without_its_image_the_task_is_rejected(node):
    node.tasks.assign(a_task(image="gone"))
    status = await node.reach(S.REJECTED)
    assert status.error == "No such image: gone:latest"
    await until(lambda: not node.networks.attached)
    assert not node.runtime.containers


async def test_a_full_disk_while_preparing_rejects_and_undoes(node):
    node.runtime.board.fail("create", OSError(28, "No space left on device"))
    node.tasks.assign(a_task())
    status = await node.reach(S.REJECTED)
    assert "No space left on device" in status.error
    await until(lambda: not node.networks.attached)


async def test_no_address_left_rejects(node):
    node.networks.board.fail("attach", ResourceExhausted("the subnet has no free address"))
    node.tasks.assign(a_task())
    assert (await node.reach(S.REJECTED)).error == "the subnet has no free address"


async def test_a_failed_start_fails_the_task_with_the_reason_and_its_exit_code(node):
    async def start(container):
        node.runtime.exit(container, 127, error='exec "/serve": no such file')
        raise FailedPrecondition('exec "/serve": no such file')

    node.runtime.start = start
    node.tasks.assign(a_task())
    status = await node.reach(S.FAILED)
    assert status.error == 'exec "/serve": no such file'
    assert status.container.exit_code == 127
    assert "RUNNING" not in node.states()


async def test_an_unknown_error_fails_the_task_and_nothing_else(node):
    node.runtime.board.fail("create", ValueError("surprise"))
    node.tasks.assign(a_task(1))
    node.tasks.assign(a_task(2))
    assert "internal error: ValueError: surprise" in (await node.reach(S.REJECTED)).error
    await node.reach(S.RUNNING, 2)


@pytest.mark.parametrize("error", [Unavailable("restarting"), DeadlineExceeded("too slow")])
async def test_what_may_pass_is_tried_again_and_shown(node, error):
    node.runtime.board.fail("create", error, times=3)
    node.tasks.assign(a_task())
    await node.reach(S.RUNNING)
    assert node.runtime.board.count("create") == 4
    noted = [s.error for _, s in node.reporter.reports if s.state is S.PREPARING]
    assert noted == ["", error.message], "shown once, not at every attempt"
    assert node.status().error == ""


async def test_a_start_that_was_cut_short_but_worked_is_found_running(node):
    async def start(container):
        node.runtime.run(container)
        raise Unavailable("the supervisor is restarting")

    node.runtime.start = start
    node.tasks.assign(a_task())
    status = await node.reach(S.RUNNING)
    assert status.error == ""
    assert node.states() == LADDER


async def test_already_running_is_as_good_as_started(node):
    async def start(container):
        node.runtime.run(container)
        raise FailedPrecondition(f"container {container} is already running")

    node.runtime.start = start
    node.tasks.assign(a_task())
    await node.reach(S.RUNNING)


async def test_a_stop_while_preparing_cancels_and_undoes(node):
    gate = node.networks.board.gate("attach")
    node.tasks.assign(a_task())
    await until(lambda: node.networks.board.count("attach"))
    node.want(S.SHUTDOWN)
    await node.reach(S.SHUTDOWN)
    gate.set()
    await until(lambda: node.networks.board.count("detach"))
    assert not node.networks.attached
    assert not node.runtime.containers
    assert node.states() == ["ACCEPTED", "PREPARING", "SHUTDOWN"]


async def test_preparing_is_bounded_and_a_stopped_waiter_frees_its_place(node):
    gate = node.networks.board.gate("attach")
    for number in range(1, 13):
        node.tasks.assign(a_task(number))
    await until(lambda: node.networks.board.count("attach") == 8)
    await until(lambda: node.state(12) is S.PREPARING)
    assert node.networks.board.count("attach") == 8
    for number in range(1, 13):
        node.want(S.SHUTDOWN, number)
        await node.reach(S.SHUTDOWN, number)
    gate.set()
    node.tasks.assign(a_task(20))
    await node.reach(S.RUNNING, 20)


async def test_a_stop_gives_the_grace_period_and_keeps_the_exit_code(node):
    node.runtime.ignore_sigterm.add(task_id())
    node.tasks.assign(a_task(stop_grace_period_ns=2_500_000_000))
    await node.reach(S.RUNNING)
    node.want(S.SHUTDOWN)
    status = await node.reach(S.SHUTDOWN)
    assert status.container.exit_code == 137
    assert ("grace 2.5", task_id()) in node.runtime.board.calls


async def test_a_stop_that_may_pass_is_tried_again(node):
    node.tasks.assign(a_task())
    await node.reach(S.RUNNING)
    node.runtime.board.fail("stop", DeadlineExceeded("no answer in time"), times=2)
    node.want(S.SHUTDOWN)
    assert (await node.reach(S.SHUTDOWN)).container.exit_code == 143
    assert "FAILED" not in node.states()


async def test_a_stop_signal_that_cannot_be_sent_ends_in_a_kill(node):
    """A task must never count as ended while its container runs."""
    node.tasks.assign(a_task())
    await node.reach(S.RUNNING)
    node.runtime.board.fail("stop", InvalidArgument("stop_signal: unknown signal 'SIGFOO'"))
    node.want(S.SHUTDOWN)
    assert (await node.reach(S.SHUTDOWN)).container.exit_code == 137


async def test_an_ended_task_is_not_released_before_its_container_has_ended(node):
    async def start(container):
        node.runtime.run(container)
        node.runtime.board.fail("status", Unavailable("restarting"), times=3)
        raise ValueError("surprise")

    node.runtime.start = start
    node.tasks.assign(a_task())
    await node.reach(S.FAILED)
    await until(lambda: not node.networks.attached)
    assert node.runtime.board.count("status") == 4
    assert node.runtime.containers[task_id()].state == "exited"


async def test_a_container_that_somebody_removed_fails_the_task(node):
    node.tasks.assign(a_task())
    await node.reach(S.RUNNING)
    node.runtime.vanish(task_id())
    assert "removed by somebody else" in (await node.reach(S.FAILED)).error


async def test_a_lost_network_stops_the_container_and_fails_the_task(node):
    node.tasks.assign(a_task())
    await node.reach(S.RUNNING)
    node.tasks.lose_networks({task_id(): "its interface is gone", task_id(9): "unknown here"})
    assert (await node.reach(S.FAILED)).error == "its interface is gone"
    assert node.runtime.containers[task_id()].state == "exited"


async def test_a_host_port_in_use_rejects_before_the_start(node):
    reason = "port 8080/tcp is in use by another process on this node"
    node.networks.taken["tcp", 8080] = reason
    node.tasks.assign(a_task(host_port=8080))
    status = await node.reach(S.REJECTED)
    assert status.error == reason
    assert node.runtime.board.count("start") == 0


async def test_a_free_host_port_is_reported_with_the_running_task(node):
    node.tasks.assign(a_task(host_port=8080))
    status = await node.reach(S.RUNNING)
    assert [port.published_port for port in status.port_status.ports] == [8080]


async def test_a_detach_that_fails_does_not_hide_the_end(node):
    node.tasks.assign(a_task())
    await node.reach(S.RUNNING)
    node.networks.board.fail("detach", OSError(16, "busy"))
    node.runtime.exit(task_id(), 0)
    await node.reach(S.COMPLETE)
    node.tasks.unassign(task_id())
    await until(lambda: not node.networks.attached)


async def test_what_a_cut_short_attempt_left_is_removed_and_made_anew(node):
    left = ContainerConfig(id=task_id(), layers=("/",), args=("left",))
    await node.runtime.create(left)

    node.tasks.assign(a_task())
    await node.reach(S.RUNNING)

    assert node.runtime.board.count("remove") == 1
    assert node.runtime.configs[task_id()].args != left.args


async def test_the_image_is_asked_for_with_the_service_s_login(node):
    node.tasks.assign(a_task(pull_options=PullOptions(registry_auth="secret")))
    await node.reach(S.RUNNING)
    assert node.images.fetched == [("web", "secret")]


WEB = (PortConfig(target_port=80, published_port=8080),)


async def test_a_task_with_published_ports_runs_when_its_program_listens(node):
    gate = node.networks.board.gate("await_listeners")
    node.tasks.assign(a_task(published=WEB))
    status = await node.reach(S.STARTING)
    await until(lambda: node.status().message == "waiting for a listener on 80/tcp")
    assert "RUNNING" not in node.states()
    gate.set()
    status = await node.reach(S.RUNNING)
    assert (status.message, status.container.pid) == ("started", 4_711)


async def test_a_program_that_never_listens_runs_all_the_same_and_is_told_of(node):
    node.networks.silent = frozenset({("tcp", 80)})
    node.tasks.assign(a_task(published=WEB))
    status = await node.reach(S.RUNNING)
    assert status.message == "started; nothing listens on 80/tcp"


async def test_without_a_listen_timeout_nobody_asks(node):
    node.tasks.assign(a_task(published=WEB, listen_timeout_ns=0))
    await node.reach(S.RUNNING)
    assert node.networks.board.count("await_listeners") == 0


async def test_where_nobody_can_tell_who_listens_the_task_runs(node):
    node.networks.board.fail("await_listeners", Internal("the kernel does not tell"))
    node.tasks.assign(a_task(published=WEB))
    status = await node.reach(S.RUNNING)
    assert (status.message, status.error) == ("started", "")


async def test_a_program_that_ends_before_it_listens_fails_at_once(node):
    node.networks.board.gate("await_listeners")
    node.tasks.assign(a_task(published=WEB))
    await until(lambda: node.networks.board.count("await_listeners"))
    node.runtime.exit(task_id(), code=3)
    status = await node.reach(S.FAILED)
    assert status.error == "task: non-zero exit (3)"
    assert "RUNNING" not in node.states()


async def test_a_task_that_is_unwanted_before_it_listens_is_stopped(node):
    node.networks.board.gate("await_listeners")
    node.tasks.assign(a_task(published=WEB))
    await until(lambda: node.networks.board.count("await_listeners"))
    node.want(S.SHUTDOWN)
    await node.reach(S.SHUTDOWN)
    assert "RUNNING" not in node.states()
