"""service rebalance."""

from __future__ import annotations

import threading
import time

import pytest

from shoal.api.v1 import control_pb2
from shoal.model.enums import TaskState
from tests.unit.swarmctl.conftest import run
from tests.unit.swarmctl.rows import NODE_B, a_service, a_task


@pytest.fixture
def web(daemon):
    service = a_service()
    daemon.state.services = {service.id: service}
    return service


def test_a_plan_shows_the_moves_and_asks_for_none(daemon, web):
    name = web.spec.annotations.name
    shown = run("service", "rebalance", "--plan", name, host=daemon.address)
    assert shown.exit_code == 0, shown.output
    head, line = shown.stdout.splitlines()
    assert head.split() == ["TASK", "ID", "FROM", "TO"]
    assert line.split()[:2] == [f"{name}.1", "t1"]
    (request,) = (
        one
        for one in daemon.state.requests
        if isinstance(one, control_pb2.RebalanceServicesRequest)
    )
    assert request.plan_only


def test_what_is_never_moved_is_told(daemon, web):
    shown = run("service", "rebalance", "--all", host=daemon.address)
    assert shown.exit_code == 0
    assert "db is left as it is: it is packed" in shown.stderr
    assert "nothing to move" in shown.stderr


@pytest.mark.parametrize("arguments", [("--all", "web"), ()])
def test_it_needs_names_or_all(daemon, web, arguments):
    refused = run("service", "rebalance", *arguments, host=daemon.address)
    assert refused.exit_code != 0
    assert "either name services, or give --all" in refused.stderr


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [(TaskState.RUNNING, 0, ""), (TaskState.FAILED, 1, "1 moves failed, the tasks run on")],
)
def test_it_returns_when_the_tasks_have_moved(daemon, web, end, code, said):
    task = a_task(node_id=NODE_B, state=TaskState.STARTING, service=web)
    task = task.replaced(takes_over=True)
    daemon.state.tasks, daemon.state.looks_to_run = {task.id: task}, 1000

    def finish() -> None:
        status = task.status.replaced(state=end, timestamp_ns=time.time_ns())
        daemon.state.tasks[task.id] = task.replaced(status=status)

    timer = threading.Timer(1.0, finish)
    timer.start()
    try:
        moved = run("service", "rebalance", web.spec.annotations.name, host=daemon.address)
    finally:
        timer.cancel()
    assert moved.exit_code == code, moved.output
    assert "1 on their way" in moved.stderr
    assert said in moved.stderr
