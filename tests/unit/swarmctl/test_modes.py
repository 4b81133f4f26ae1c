"""Modes: what the flags make of them, when a job is done, and how lists show it."""

from __future__ import annotations

import pytest

from shoal.docker.objects import ServiceCounts
from shoal.errors import InvalidArgument
from shoal.model.enums import RestartCondition, TaskState
from shoal.model.specs import GlobalJobMode, GlobalMode, ReplicatedJobMode, ReplicatedMode
from shoal.model.types import JobStatus, RestartPolicy
from swarmctl.edit.service import FOR_GOOD, edit_service
from swarmctl.progress.core import Look, Outcome, Wait, step
from swarmctl.render.pretty import service_text
from swarmctl.render.rows import replicas
from swarmctl.types import ServiceEntry
from tests.unit.swarmctl.rows import NODE_A, NODE_B, a_service, a_spec, a_task

COMPLETE, FAILED, RUNNING = TaskState.COMPLETE, TaskState.FAILED, TaskState.RUNNING
DONE = TaskState.SHUTDOWN
JOB = ReplicatedJobMode(max_concurrent=2, total_completions=3)
ALL = frozenset({NODE_A, NODE_B})


@pytest.mark.parametrize(
    ("flags", "mode"),
    [
        ({}, ReplicatedMode(1)),
        ({"mode": "replicated", "replicas": 4}, ReplicatedMode(4)),
        ({"mode": "global"}, GlobalMode()),
        ({"mode": "global-job"}, GlobalJobMode()),
        ({"mode": "replicated-job"}, ReplicatedJobMode(1, 1)),
        ({"mode": "replicated-job", "replicas": 5}, ReplicatedJobMode(5, 5)),
        ({"mode": "replicated-job", "replicas": 5, "max_concurrent": 2}, ReplicatedJobMode(2, 5)),
    ],
)
def test_modes_of_new_services(flags, mode):
    assert edit_service(a_spec(mode=ReplicatedMode(1)), flags).mode == mode


def test_changing_the_numbers_of_a_job():
    spec = a_spec(mode=JOB)
    assert edit_service(spec, {"replicas": 9}).mode == ReplicatedJobMode(2, 9)
    assert edit_service(spec, {"max_concurrent": 1}).mode == ReplicatedJobMode(1, 3)
    limited = edit_service(spec, {"ttl_after_finish": 7})
    assert limited.ttl_after_finish_ns == 7
    assert edit_service(limited, {}).ttl_after_finish_ns == 7
    assert edit_service(limited, {"ttl_after_finish": FOR_GOOD}).ttl_after_finish_ns is None


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"mode": "global", "replicas": 1}, "^replicas can only be used with replicated or"),
        ({"mode": "global-job", "replicas": 1}, "^replicas can only be used with replicated or"),
        ({"mode": "global", "max_concurrent": 1}, "^max-concurrent can only be used with"),
        ({"max_concurrent": 1}, "^max-concurrent can only be used with replicated-job mode$"),
        (
            {"mode": "replicated-job", "restart_condition": RestartCondition.ANY},
            "^restart-condition any cannot be used with jobs",
        ),
    ],
)
def test_flags_a_mode_has_no_use_for(flags, text):
    with pytest.raises(InvalidArgument, match=text):
        edit_service(a_spec(mode=ReplicatedMode(1)), flags)


def _look(mode, *tasks, **restart):
    spec = a_spec(mode=mode)
    policy = RestartPolicy().replaced(**restart)
    template = spec.task.replaced(restart=policy)
    service = a_service(spec=spec.replaced(task=template))
    return Look(service, tuple(task.replaced(spec=template) for task in tasks), ALL)


def _work(slot, state, *, desired=COMPLETE, **fields):
    return a_task(slot, state, task_id=f"t{slot}{state.name}", desired=desired, **fields)


def _lines(wait):
    return [f"{line.key}: {line.text}" for line in wait.lines]


def test_a_job_is_done_when_all_of_it_is_complete():
    first = step(Wait(), _look(JOB, _work(0, COMPLETE), _work(1, RUNNING)), 0.0)
    assert first.outcome is None
    assert _lines(first) == [
        "job progress: 1 out of 3 complete",
        "active tasks: 1 out of 2 tasks",
        "1/3: complete",
        "2/3: running",
    ]
    last = step(first, _look(JOB, *(_work(slot, COMPLETE) for slot in range(3))), 1.0)
    assert last.outcome is Outcome.CONVERGED
    assert _lines(last)[-1] == "job: complete"


def test_a_job_fails_when_no_work_is_left_but_what_failed_for_good():
    tasks = [_work(0, COMPLETE), _work(1, FAILED, desired=DONE, error="exit 3")]
    never = {"condition": RestartCondition.NONE}
    assert step(Wait(), _look(JOB, *tasks, _work(2, RUNNING), **never), 0.0).outcome is None
    wait = step(Wait(), _look(JOB, *tasks, _work(2, COMPLETE), **never), 0.0)
    assert wait.outcome is Outcome.FAILED
    assert wait.message == "job failed (2 out of 3 complete): task t1FAILED: exit 3"


def test_a_job_waits_while_attempts_are_left():
    one = ReplicatedJobMode(1, 1)
    failed = _work(0, FAILED, desired=DONE)
    assert step(Wait(), _look(one, failed, max_attempts=1), 0.0).outcome is None
    assert step(Wait(), _look(one, failed), 0.0).outcome is None
    again = failed.replaced(id="again")
    done = step(Wait(), _look(one, failed, again, max_attempts=1), 0.0)
    assert done.outcome is Outcome.FAILED


def test_a_global_job_has_as_many_places_as_nodes():
    mode = GlobalJobMode()
    on_a = _work(0, COMPLETE, node_id=NODE_A)
    on_b = a_task(0, RUNNING, task_id="b", node_id=NODE_B, desired=COMPLETE)
    assert step(Wait(), _look(mode, on_a, on_b), 0.0).outcome is None
    ended = on_b.replaced(status=on_a.status)
    assert step(Wait(), _look(mode, on_a, ended), 0.0).outcome is Outcome.CONVERGED


def test_a_global_job_without_a_node_is_done_after_a_while():
    wait = step(Wait(), _look(GlobalJobMode()), 0.0)
    assert wait.outcome is None
    assert step(wait, _look(GlobalJobMode()), 4.0).outcome is None
    assert step(wait, _look(GlobalJobMode()), 6.0).outcome is Outcome.CONVERGED


def test_a_job_of_nothing_is_done():
    assert step(Wait(), _look(ReplicatedJobMode(0, 0)), 0.0).outcome is Outcome.CONVERGED


@pytest.mark.parametrize(
    ("mode", "counts", "text"),
    [
        (GlobalMode(), ServiceCounts(2, 3, 0), "2/3"),
        (JOB, ServiceCounts(1, 2, 1), "1/2 (1/3 completed)"),
        (GlobalJobMode(), ServiceCounts(1, 3, 2), "1/3 (2/3 completed)"),
    ],
)
def test_replicas_as_docker_prints_them(mode, counts, text):
    assert replicas(ServiceEntry(a_service(spec=a_spec(mode=mode)), counts)) == text


def test_a_job_for_people():
    status = JobStatus(iteration=2, last_execution_at_ns=0)
    text = service_text(a_service(spec=a_spec(mode=JOB)).replaced(job_status=status), 60 * 10**9)
    assert "Service Mode:\tReplicated Job\n Total Completions:\t3\n Max Concurrent:\t2\n" in text
    assert " Iteration:\t2\n" in text
    assert " Kept After End:\tfor good\n" in text
