"""Tasks whose containers have health checks, over a runtime that answers as the test says."""

from __future__ import annotations

import asyncio

import pytest

from shoal.errors import Unavailable
from shoal.model.enums import TaskState as S
from shoal.model.types import HealthCheck, PortConfig
from tests.support.fakes import FakeRuntime
from tests.unit.worker.agent.support import FakeNode, a_task, task_id, until
from worker.agent import runner
from worker.agent.health import HEALTH_LABEL, check_in, label_of, spelled
from worker.health import files
from worker.health.core import HEALTHY, UNHEALTHY, Check, Health, Probe
from worker.health.files import HEALTH_FILE, KeptHealth
from worker.images.model import ImageConfig

MS = 1_000_000
CHECK = HealthCheck(test=("CMD", "probe", "it"), interval_ns=MS, retries=2)


@pytest.fixture
async def node(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "RETRY_PAUSE_S", 0.002)
    async with FakeNode(tmp_path) as node:
        yield node


async def test_a_task_is_running_when_its_first_check_has_succeeded(node):
    node.runtime.checks = [1, 0]
    port = PortConfig(target_port=80, published_port=80)
    node.tasks.assign(a_task(health_check=CHECK, published=[port]))
    status = await node.reach(S.RUNNING)
    assert status.message == "started"
    assert node.states() == ["ACCEPTED", "PREPARING", "READY", "STARTING", "RUNNING"]
    said = [s.message for _, s in node.reporter.reports if s.state is S.STARTING]
    assert said[-1] == "waiting for a health check to succeed (exit 1: probe it)"
    assert node.networks.board.count("await_listeners") == 0  # the check is in its place


async def test_one_that_never_succeeds_fails_and_its_container_is_stopped(node):
    node.runtime.checks = [3]
    node.tasks.assign(a_task(health_check=CHECK))
    status = await node.reach(S.FAILED)
    assert status.error == "task: unhealthy container"
    assert status.message == "failed its health check: exit 3: probe it"
    assert "RUNNING" not in node.states()
    assert node.runtime.board.count("stop") == 1
    assert node.runtime.containers[task_id()].state == "exited"


async def test_a_running_task_that_becomes_unhealthy_fails(node):
    node.runtime.checks = [0, 1, 0, 1, 1]
    node.tasks.assign(a_task(health_check=CHECK))
    await node.reach(S.RUNNING)
    assert (await node.reach(S.FAILED)).error == "task: unhealthy container"
    assert node.runtime.board.count("exec_start") == 5


async def test_checks_that_cannot_be_run_have_failed(node):
    node.runtime.board.fail("exec_start", Unavailable("no supervisor"), times=2)
    node.tasks.assign(a_task(health_check=CHECK))
    status = await node.reach(S.FAILED)
    assert status.message == "failed its health check: exit -1: no supervisor"


async def test_failures_in_the_start_period_do_not_count(node):
    node.runtime.checks = [1] * 6 + [0]
    early = CHECK.replaced(start_period_ns=1 << 62, start_interval_ns=MS, interval_ns=1 << 50)
    node.clock._now_ns = 1_000  # the clock of the runtime's containers
    node.tasks.assign(a_task(health_check=early))
    await node.reach(S.RUNNING)


async def test_an_exit_while_waiting_is_reported_as_it_was(node):
    node.runtime.board.gate("exec_start")
    node.tasks.assign(a_task(health_check=CHECK))
    await until(lambda: node.runtime.board.count("exec_start"))
    node.runtime.exit(task_id(), 7)
    assert (await node.reach(S.FAILED)).error == "task: non-zero exit (7)"
    await until(lambda: not checking())


async def test_a_task_that_is_not_wanted_any_more_is_not_checked_any_more(node):
    node.runtime.checks = [1]
    node.tasks.assign(a_task(health_check=CHECK.replaced(retries=1 << 30)))
    await until(lambda: node.runtime.board.count("exec_start") > 2)
    node.want(S.SHUTDOWN)
    await node.reach(S.SHUTDOWN)
    assert not checking()


async def test_a_paused_container_is_not_checked(node):
    node.tasks.assign(a_task(health_check=CHECK))
    await node.reach(S.RUNNING)
    node.runtime._put(task_id(), paused=True)
    await asyncio.sleep(0.02)
    count = node.runtime.board.count("exec_start")
    node.runtime.checks = [1]
    await asyncio.sleep(0.02)
    assert node.runtime.board.count("exec_start") == count
    assert node.state() is S.RUNNING
    node.runtime._put(task_id(), paused=False)
    await node.reach(S.FAILED)


async def test_the_image_may_have_the_check_and_the_service_switch_it_off(node):
    node.images.configs["web"] = ImageConfig(
        cmd=("serve",), healthcheck=HealthCheck(test=("CMD-SHELL", "up"), interval_ns=MS, retries=1)
    )
    node.runtime.checks = [1]
    node.tasks.assign(a_task())
    assert (await node.reach(S.FAILED)).message == "failed its health check: exit 1: /bin/sh -c up"
    node.tasks.assign(a_task(2, health_check=HealthCheck(test=("NONE",))))
    await node.reach(S.RUNNING, 2)


@pytest.mark.parametrize("was", [S.STARTING, S.RUNNING])
async def test_the_next_worker_goes_on_where_the_last_one_was(tmp_path, was):
    runtime = FakeRuntime()
    runtime.checks = [0 if was is S.RUNNING else 1]
    slow = CHECK.replaced(retries=1 << 30)
    async with FakeNode(tmp_path, runtime) as first:
        first.tasks.assign(a_task(health_check=slow))
        await first.reach(was)
        await until(lambda: runtime.board.count("exec_start") > 1)
    files.save(
        first.container_dir(task_id()),
        KeptHealth(Health(HEALTHY if was is S.RUNNING else "starting", 1 << 29), "left1"),
    )
    runtime.checks = [0]
    asked = runtime.board.count("exec_start")
    async with FakeNode(tmp_path, runtime) as second:
        await second.reach(S.RUNNING)
        await until(lambda: runtime.board.count("exec_start") > asked + 1)
        assert ("exec_status", "left1") in runtime.board.calls
        assert second.states() in ([], ["RUNNING"], ["STARTING", "RUNNING"])
    kept = files.load(first.container_dir(task_id()))
    assert kept is not None
    assert kept.health.status == HEALTHY


async def test_a_failing_streak_outlives_the_worker(tmp_path):
    runtime = FakeRuntime()
    async with FakeNode(tmp_path, runtime) as first:
        first.tasks.assign(a_task(health_check=CHECK.replaced(retries=100)))
        await first.reach(S.RUNNING)
    files.save(first.container_dir(task_id()), KeptHealth(Health(HEALTHY, 99)))
    runtime.checks = [1]
    asked = runtime.board.count("exec_start")
    async with FakeNode(tmp_path, runtime) as second:
        await second.reach(S.FAILED)
        assert runtime.board.count("exec_start") == asked + 1


def checking() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("health")]


def test_the_label_says_the_check():
    check = Check(("a", "b"), retries=7)
    assert check_in({HEALTH_LABEL: label_of(check)}) == check
    assert check_in({HEALTH_LABEL: label_of(None)}) is None
    assert check_in({}) is None


def test_what_a_check_said_is_one_short_line():
    assert spelled(Health()) == ""
    assert spelled(Health(log=(Probe(1, 2, 0, ""),))) == "exit 0"
    assert spelled(Health(log=(Probe(1, 2, 1, "a\n b\n" + "x" * 999),))).startswith("exit 1: a b x")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"health":{},"version":2}', '{"health":7}'])
def test_a_file_that_says_nothing(tmp_path, text):
    assert files.load(str(tmp_path)) is None
    kept = KeptHealth(Health(UNHEALTHY, 3, (Probe(1, 2, 3, "é\n"),)), "x")
    files.save(str(tmp_path), kept)
    assert files.load(str(tmp_path)) == kept
    (tmp_path / HEALTH_FILE).write_text(text)
    assert files.load(str(tmp_path)) is None
